//! `lib/coop_calls.wgsl` with tiles of four elements a word, which Vulkan takes for the strides of
//! its matrices and Metal does not.

var<workgroup> x_tile: array<vec4<Staged>, ROWS * STRIDE / 4u>;
var<workgroup> w_tile: array<vec4<Staged>, CHANNELS * STRIDE / 4u>;

// Four columns of a row of X, from element `at` of its tile on.
fn stage_x(at: u32, four: vec4<Staged>) {
    x_tile[at / 4u] = four;
}

fn stage_w(at: u32, four: vec4<Staged>) {
    w_tile[at / 4u] = four;
}

// SIDE rows of X from element `at` of their tile on.
fn matrix_a(at: u32) -> MatrixA {
    return coopLoadT<MatrixA>(&x_tile[at / 4u], STRIDE / 4u);
}

// By columns: a column of Wᵀ is a channel, whose weights are neighbours.
fn matrix_b(at: u32) -> MatrixB {
    return coopLoad<MatrixB>(&w_tile[at / 4u], STRIDE / 4u);
}

fn matrix_c(at: u32) -> MatrixC {
    return coopLoadT<MatrixC>(&sums[at], SUM_STRIDE);
}

fn multiply_add(a: MatrixA, b: MatrixB, c: MatrixC) -> MatrixC {
    return coopMultiplyAdd(a, b, c);
}

fn store_c(c: MatrixC, at: u32) {
    coopStoreT(c, &sums[at], SUM_STRIDE);
}
