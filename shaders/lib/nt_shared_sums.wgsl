//! The products of a stage of `lib/nt_shared.wgsl`, pasted into its loop.

//#unroll
for (var q = 0u; q < QUADS; q++) {
    var weights: array<vec4<f32>, TN>;
    //#unroll
    for (var j = 0u; j < TN; j++) {
        weights[j] = w_tile[q * W_STRIDE + lane.x + j * WX];
    }
    //#unroll
    for (var i = 0u; i < TM; i++) {
        let row = x_tile[q * X_STRIDE + lane.y + i * WY];
        //#unroll
        for (var j = 0u; j < TN; j++) {
            // Four fused operations; the sum of a dot product would be a fifth.
            acc[i * TN + j] = fma(row.x, weights[j].x, acc[i * TN + j]);
            acc[i * TN + j] = fma(row.y, weights[j].y, acc[i * TN + j]);
            acc[i * TN + j] = fma(row.z, weights[j].z, acc[i * TN + j]);
            acc[i * TN + j] = fma(row.w, weights[j].w, acc[i * TN + j]);
        }
    }
}
