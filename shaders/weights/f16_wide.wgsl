//! Weights in f16, row-major, `w_cols()` a multiple of 16, loaded 64 bits at a time.
//!
//! Same names as `weights/f32.wgsl`.

//#include "weights/sixteen_wide.wgsl"

fn w_part(block: WBlock, part: u32) -> mat2x4<f32> {
    let bits = select(block.low, block.high, part == 1u);
    return mat2x4<f32>(
        vec4(unpack2x16float(bits.x), unpack2x16float(bits.y)),
        vec4(unpack2x16float(bits.z), unpack2x16float(bits.w)),
    );
}

//#include "weights/sum_plain.wgsl"
