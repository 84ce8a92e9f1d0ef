//! Weights in f32, row-major, `w_cols()` a multiple of 8. The fastest way to load them.
//!
//! All files here define the same names: `W_STEP` (columns in a block), `WBlock`,
//! `load_w_block(n, block)` (row `n`, columns `block * W_STEP ..`) and `w_part(block, part)`
//! (columns `8 * part .. 8 * part + 8` of a block, `part < W_STEP / 8`). Where one row of
//! activations is multiplied, scaling every weight costs as much as the product: `w_unscaled` has
//! the weights without scale, and `w_sum(sum, x_sum, block)` makes of their sum of products with
//! activations, and of the sum of these, the block's part of the result.
//! `w_raw` and `w_raw_sum` are the same with weights that have the factors `W_FACTORS` too much,
//! by place in four, where the includer has divided the activations by them.
//! The includer gives `w_rows()` and `w_cols()`, the shape of the matrix that is bound.

@group(0) @binding(3) var<storage, read> w: array<vec4<f32>>;

const W_STEP: u32 = 8u;

struct WBlock {
    low: vec4<f32>,
    high: vec4<f32>,
}

fn load_w_block(n: u32, block: u32) -> WBlock {
    let at = (n * w_cols() + block * W_STEP) / 4u;
    return WBlock(w[at], w[at + 1u]);
}

fn w_part(block: WBlock, part: u32) -> mat2x4<f32> {
    return mat2x4<f32>(block.low, block.high);
}

//#include "weights/sum_plain.wgsl"
