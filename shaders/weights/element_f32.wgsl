//! One element of a weight matrix `[params.rows, params.cols]` in f32, bound from binding 3.

@group(0) @binding(3) var<storage, read> w: array<f32>;

fn load_w(row: u32, col: u32) -> f32 {
    return w[row * params.cols + col];
}
