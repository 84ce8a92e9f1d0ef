//! Weights in f32, row-major, any number of columns; columns beyond the last read as 0.
//!
//! Same names as `weights/f32.wgsl`.

@group(0) @binding(3) var<storage, read> w: array<f32>;

const W_STEP: u32 = 8u;

struct WBlock {
    low: vec4<f32>,
    high: vec4<f32>,
}

fn w_at(base: u32, col: u32) -> f32 {
    var value = 0.0;
    if col < w_cols() {
        value = w[base + col];
    }
    return value;
}

fn load_w_block(n: u32, block: u32) -> WBlock {
    let base = n * w_cols();
    let c = block * W_STEP;
    return WBlock(
        vec4(w_at(base, c), w_at(base, c + 1u), w_at(base, c + 2u), w_at(base, c + 3u)),
        vec4(w_at(base, c + 4u), w_at(base, c + 5u), w_at(base, c + 6u), w_at(base, c + 7u)),
    );
}

fn w_part(block: WBlock, part: u32) -> mat2x4<f32> {
    return mat2x4<f32>(block.low, block.high);
}

//#include "weights/sum_plain.wgsl"
