//! Weights in f16, row-major, `w_cols()` a multiple of 8; loaded as f16, for adapters that have
//! the type.
//!
//! Same names as `weights/f32.wgsl`.

enable f16;

@group(0) @binding(3) var<storage, read> w: array<vec4<f16>>;

const W_STEP: u32 = 8u;

struct WBlock {
    low: vec4<f16>,
    high: vec4<f16>,
}

fn load_w_block(n: u32, block: u32) -> WBlock {
    let at = (n * w_cols() + block * W_STEP) / 4u;
    return WBlock(w[at], w[at + 1u]);
}

fn w_part(block: WBlock, part: u32) -> mat2x4<f32> {
    return mat2x4<f32>(vec4<f32>(block.low), vec4<f32>(block.high));
}

//#include "weights/sum_plain.wgsl"
