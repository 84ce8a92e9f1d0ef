//! Products of a part of a block of weights, eight columns that are stored, pasted into a loop over
//! `part`: `lib/nt_tile.wgsl`.
let k0 = b * W_STEP + part * 8u * SPREAD;
var weights: array<mat2x4<f32>, TN>;
//#unroll
for (var j = 0u; j < TN; j++) {
    weights[j] = w_part(block[j], part);
}
//#unroll
for (var h = 0u; h < TM / SHARE; h++) {
    //#unroll
    for (var half = 0u; half < 2u; half++) {
        //#include "lib/held_own.wgsl"
        //#unroll
        for (var s = 0u; s < SHARE; s++) {
            //#paste "lib/row_own.wgsl"
            //#unroll
            for (var j = 0u; j < TN; j++) {
                acc[(h * SHARE + s) * TN + j] += dot(row, weights[j][half]);
            }
        }
    }
}
