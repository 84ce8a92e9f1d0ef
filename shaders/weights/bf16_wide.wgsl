//! Weights in bf16, row-major, `w_cols()` a multiple of 16, loaded 64 bits at a time.
//!
//! Same names as `weights/f32.wgsl`.

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

fn w_part(block: WBlock, part: u32) -> mat2x4<f32> {
    let bits = select(block.low, block.high, part == 1u);
    let even = bitcast<vec4<f32>>(bits << vec4(16u));
    let odd = bitcast<vec4<f32>>(bits & vec4(0xFFFF0000u));
    return mat2x4<f32>(
        vec4(even.x, odd.x, even.y, odd.y),
        vec4(even.z, odd.z, even.w, odd.w),
    );
}

//#include "weights/sum_plain.wgsl"
