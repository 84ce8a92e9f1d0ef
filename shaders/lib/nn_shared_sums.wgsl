//! The products of a stage of `lib/nn_shared.wgsl`, pasted into its loop.

//#unroll
for (var q = 0u; q < QUADS; q++) {
    var grad: array<vec4<f32>, TM>;
    //#unroll
    for (var i = 0u; i < TM; i++) {
        grad[i] = dy_tile[(lane.y + i * WY) * DY_STRIDE + q];
    }
    //#unroll
    for (var step = 0u; step < 4u; step++) {
        //#unroll
        for (var j = 0u; j < KQ; j++) {
            let weights = w_tile[(4u * q + step) * W_STRIDE + lane.x + j * WX];
            //#unroll
            for (var i = 0u; i < TM; i++) {
                acc[i * KQ + j] += weights * grad[i][step];
            }
        }
    }
}
