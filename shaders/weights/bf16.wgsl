//! Weights in bfloat16, row-major, `w_cols()` a multiple of 8. A bfloat16 is the upper half of a
//! float.
//!
//! Same names as `weights/f32.wgsl`.

@group(0) @binding(3) var<storage, read> w: array<vec4<u32>>;

const W_STEP: u32 = 8u;

struct WBlock {
    bits: vec4<u32>,
}

fn load_w_block(n: u32, block: u32) -> WBlock {
    return WBlock(w[n * (w_cols() / 8u) + block]);
}

fn w_part(block: WBlock, part: u32) -> mat2x4<f32> {
    let even = bitcast<vec4<f32>>(block.bits << vec4(16u));
    let odd = bitcast<vec4<f32>>(block.bits & vec4(0xFFFF0000u));
    return mat2x4<f32>(
        vec4(even.x, odd.x, even.y, odd.y),
        vec4(even.z, odd.z, even.w, odd.w),
    );
}

//#include "weights/sum_plain.wgsl"
