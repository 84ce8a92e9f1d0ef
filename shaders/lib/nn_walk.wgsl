//! The walk of `lib/nn_tile.wgsl` over the rows of W, four at a time, pasted behind `acc`.
for (var n0 = 0u; n0 < params.n; n0 += 4u) {
    //#include "lib/nn_grad.wgsl"
    //#unroll
    for (var step = 0u; step < 4u; step++) {
        // Where n is no multiple of 4, its last row again, times a gradient that reads as 0.
        let block = load_w_block(min(n0 + step, params.n - 1u), b_load);
        //#unroll
        for (var part = 0u; part < PARTS; part++) {
            let weights = w_part(block, part);
            //#unroll
            for (var i = 0u; i < TM; i++) {
                acc[i * PARTS + part] += weights * grad[i][step];
            }
        }
    }
}
