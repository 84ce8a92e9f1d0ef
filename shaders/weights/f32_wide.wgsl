//! Weights in f32, row-major, `w_cols()` a multiple of 8, loaded 64 bits at a time.
//!
//! Same names as `weights/f32.wgsl`.

@group(0) @binding(3) var<storage, read> w: array<vec4<u64>>;

const W_STEP: u32 = 8u;

//#include "weights/halves.wgsl"

struct WBlock {
    low: vec4<f32>,
    high: vec4<f32>,
}

fn load_w_block(n: u32, block: u32) -> WBlock {
    let all = w[n * (w_cols() / 8u) + block];
    let low = bitcast<vec4<f32>>(halves_2(all.xy));
    return WBlock(low, bitcast<vec4<f32>>(halves_2(all.zw)));
}

fn w_part(block: WBlock, part: u32) -> mat2x4<f32> {
    return mat2x4<f32>(block.low, block.high);
}

//#include "weights/sum_plain.wgsl"
