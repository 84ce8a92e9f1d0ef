//! The names of `lib/coop_f16.wgsl` on any device, in f32: operands are left in their tiles, and
//! each lane holds all of the sums. Tests run the body with it, because the machines of
//! tests have no cooperative matrices.

const SIDE: u32 = 16u;
const ELEMENTS: u32 = SIDE * SIDE;

alias Staged = f32;
// Where they begin.
alias MatrixA = u32;
alias MatrixB = u32;
// Element (i, j) is at i SIDE + j.
alias MatrixC = array<f32, ELEMENTS>;

fn staged(values: vec4<f32>) -> vec4<Staged> {
    return values;
}

var<workgroup> x_tile: array<Staged, ROWS * STRIDE>;
var<workgroup> w_tile: array<Staged, CHANNELS * STRIDE>;

fn stage_x(at: u32, four: vec4<Staged>) {
    for (var c = 0u; c < 4u; c++) {
        x_tile[at + c] = four[c];
    }
}

fn stage_w(at: u32, four: vec4<Staged>) {
    for (var c = 0u; c < 4u; c++) {
        w_tile[at + c] = four[c];
    }
}

fn matrix_a(at: u32) -> MatrixA {
    return at;
}

fn matrix_b(at: u32) -> MatrixB {
    return at;
}

fn matrix_c(at: u32) -> MatrixC {
    var c: MatrixC;
    for (var e = 0u; e < ELEMENTS; e++) {
        c[e] = sums[at + e / SIDE * SUM_STRIDE + e % SIDE];
    }
    return c;
}

fn multiply_add(a: MatrixA, b: MatrixB, c: MatrixC) -> MatrixC {
    var sum = c;
    for (var e = 0u; e < ELEMENTS; e++) {
        for (var s = 0u; s < SIDE; s++) {
            sum[e] += x_tile[a + e / SIDE * STRIDE + s] * w_tile[b + e % SIDE * STRIDE + s];
        }
    }
    return sum;
}

fn store_c(c: MatrixC, at: u32) {
    var values = c;
    for (var e = 0u; e < ELEMENTS; e++) {
        sums[at + e / SIDE * SUM_STRIDE + e % SIDE] = values[e];
    }
}
