//! One element of a weight matrix `[params.rows, params.cols]` in bf16, two a word, each row
//! padded to a whole word, bound from binding 3.

@group(0) @binding(3) var<storage, read> w: array<u32>;

fn load_w(row: u32, col: u32) -> f32 {
    let word = w[row * ((params.cols + 1u) / 2u) + col / 2u];
    return bitcast<f32>(select(word << 16u, word & 0xffff0000u, col % 2u == 1u));
}
