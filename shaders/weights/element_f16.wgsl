//! One element of a weight matrix `[params.rows, params.cols]` in f16, two a word, each row padded
//! to a whole word, bound from binding 3.

@group(0) @binding(3) var<storage, read> w: array<u32>;

fn load_w(row: u32, col: u32) -> f32 {
    let pair = unpack2x16float(w[row * ((params.cols + 1u) / 2u) + col / 2u]);
    return select(pair.x, pair.y, col % 2u == 1u);
}
