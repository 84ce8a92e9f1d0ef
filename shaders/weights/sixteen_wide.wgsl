//! Sixteen columns of dense 16-bit weights, loaded 64 bits at a time.

@group(0) @binding(3) var<storage, read> w: array<vec4<u64>>;

const W_STEP: u32 = 16u;

//#include "weights/halves.wgsl"

struct WBlock {
    low: vec4<u32>,
    high: vec4<u32>,
}

fn load_w_block(n: u32, block: u32) -> WBlock {
    let all = w[n * (w_cols() / 16u) + block];
    return WBlock(halves_2(all.xy), halves_2(all.zw));
}
