//! The products of a stage of `lib/nt_cooperative.wgsl`, pasted into its loop.

//#unroll
for (var step = 0u; step < DEPTH / SIDE; step++) {
    var b: array<MatrixB, TN>;
    //#unroll
    for (var j = 0u; j < TN; j++) {
        b[j] = matrix_b((own_channel + j * SIDE) * STRIDE + step * SIDE);
    }
    //#unroll
    for (var i = 0u; i < TM; i++) {
        let a = matrix_a((own_row + i * SIDE) * STRIDE + step * SIDE);
        //#unroll
        for (var j = 0u; j < TN; j++) {
            acc[i * TN + j] = multiply_add(a, b[j], acc[i * TN + j]);
        }
    }
}
