//! The walk of `lib/nn_tile.wgsl` over the rows of W, four at a time, pasted behind `acc`.
//!
//! One addition to a sum of `acc` a step and four columns at a time: drivers on the CPU keep the
//! sums in memory, and few registers hold four rows of weights.
for (var n0 = 0u; n0 < params.n; n0 += 4u) {
    //#include "lib/nn_grad.wgsl"
    //#unroll
    for (var part = 0u; part < PARTS; part++) {
        var w: array<mat2x4<f32>, 4>;
        //#unroll
        for (var step = 0u; step < 4u; step++) {
            w[step] = w_part(block[step], part);
        }
        //#unroll
        for (var half = 0u; half < 2u; half++) {
            //#unroll
            for (var i = 0u; i < TM; i++) {
                let four = grad[i];
                acc[i * PARTS + part][half] += w[0][half] * four.x + w[1][half] * four.y
                    + w[2][half] * four.z + w[3][half] * four.w;
            }
        }
    }
}
