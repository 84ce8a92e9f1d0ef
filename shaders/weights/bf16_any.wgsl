//! Weights in bfloat16, row-major, any number of columns (a row is padded to a whole word); columns
//! beyond the last read as 0.
//!
//! Same names as `weights/f32.wgsl`.

@group(0) @binding(3) var<storage, read> w: array<u32>;

const W_STEP: u32 = 8u;

struct WBlock {
    bits: vec4<u32>,
}

// The word that holds columns `col` (even) and `col + 1`; both are zero beyond the last.
fn w_word(n: u32, col: u32) -> u32 {
    var bits = 0u;
    if col < w_cols() {
        bits = w[n * ((w_cols() + 1u) / 2u) + col / 2u];
        if col + 1u == w_cols() {
            bits &= 0xFFFFu;
        }
    }
    return bits;
}

fn w_pair(bits: u32) -> vec2<f32> {
    return vec2(bitcast<f32>(bits << 16u), bitcast<f32>(bits & 0xFFFF0000u));
}

fn load_w_block(n: u32, block: u32) -> WBlock {
    let c = block * W_STEP;
    return WBlock(vec4(w_word(n, c), w_word(n, c + 2u), w_word(n, c + 4u), w_word(n, c + 6u)));
}

fn w_part(block: WBlock, part: u32) -> mat2x4<f32> {
    return mat2x4<f32>(
        vec4(w_pair(block.bits.x), w_pair(block.bits.y)),
        vec4(w_pair(block.bits.z), w_pair(block.bits.w)),
    );
}

//#include "weights/sum_plain.wgsl"
