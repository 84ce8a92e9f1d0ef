//! What `lib/nt_cooperative.wgsl` does with its matrices, by the functions for them; the includer
//! gives the types. `lib/coop_emulated.wgsl` has the same names without them.

var<workgroup> x_tile: array<Staged, ROWS * STRIDE>;
var<workgroup> w_tile: array<Staged, CHANNELS * STRIDE>;

// Four columns of a row of X, from element `at` of its tile on.
fn stage_x(at: u32, four: vec4<Staged>) {
    //#unroll
    for (var c = 0u; c < 4u; c++) {
        x_tile[at + c] = four[c];
    }
}

fn stage_w(at: u32, four: vec4<Staged>) {
    //#unroll
    for (var c = 0u; c < 4u; c++) {
        w_tile[at + c] = four[c];
    }
}

// SIDE rows of X from element `at` of their tile on.
fn matrix_a(at: u32) -> MatrixA {
    return coopLoadT<MatrixA>(&x_tile[at], STRIDE);
}

// By columns: a column of Wᵀ is a channel, whose weights are neighbours.
fn matrix_b(at: u32) -> MatrixB {
    return coopLoad<MatrixB>(&w_tile[at], STRIDE);
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
