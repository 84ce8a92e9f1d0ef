//! Weights in f16, row-major, `w_cols()` a multiple of 8; unpacked by integer and conversion
//! instructions that every adapter has.
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
    return mat2x4<f32>(
        vec4(unpack2x16float(block.bits.x), unpack2x16float(block.bits.y)),
        vec4(unpack2x16float(block.bits.z), unpack2x16float(block.bits.w)),
    );
}

//#include "weights/sum_plain.wgsl"
