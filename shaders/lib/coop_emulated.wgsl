//! The names of `lib/coop_f32.wgsl` on any device: each lane holds all of a matrix. Tests run the
//! body with it, because no device here has cooperative matrices.

const SIDE: u32 = 8u;
const ELEMENTS: u32 = SIDE * SIDE;

alias Staged = f32;
alias MatrixA = array<f32, ELEMENTS>;
alias MatrixB = array<f32, ELEMENTS>;
alias MatrixC = array<f32, ELEMENTS>;

fn staged(values: vec4<f32>) -> vec4<Staged> {
    return values;
}

// Element (i, j) is at i SIDE + j of each matrix.
fn matrix_a(at: u32) -> MatrixA {
    var a: MatrixA;
    for (var e = 0u; e < ELEMENTS; e++) {
        a[e] = x_tile[at + e / SIDE * STRIDE + e % SIDE];
    }
    return a;
}

fn matrix_b(at: u32) -> MatrixB {
    var b: MatrixB;
    for (var e = 0u; e < ELEMENTS; e++) {
        b[e] = w_tile[at + e % SIDE * STRIDE + e / SIDE];
    }
    return b;
}

fn matrix_c(at: u32) -> MatrixC {
    var c: MatrixC;
    for (var e = 0u; e < ELEMENTS; e++) {
        c[e] = sums[at + e / SIDE * SUM_STRIDE + e % SIDE];
    }
    return c;
}

fn multiply_add(a: MatrixA, b: MatrixB, c: MatrixC) -> MatrixC {
    var left = a;
    var right = b;
    var sum = c;
    for (var e = 0u; e < ELEMENTS; e++) {
        for (var s = 0u; s < SIDE; s++) {
            sum[e] += left[e / SIDE * SIDE + s] * right[s * SIDE + e % SIDE];
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
