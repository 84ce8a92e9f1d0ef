//! Weights in bf16, row-major, `w_cols()` a multiple of 16, loaded 64 bits at a time.
//!
//! Same names as `weights/f32.wgsl`.

//#include "weights/sixteen_wide.wgsl"

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
