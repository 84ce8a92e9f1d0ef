//! The walk of `lib/nn_tile.wgsl` over the rows of row-grouped weights, pasted behind `acc`: the
//! rows of a group keep the same columns, so that a group is summed over the columns that it keeps,
//! and the sums are put where they belong once a group: half the products, and no weight is
//! expanded.
const KEPT_PARTS: u32 = PARTS / 2u;
for (var group0 = 0u; group0 < params.n; group0 += ROW_GROUP) {
    var kept: array<mat2x4<f32>, TM * KEPT_PARTS>;
    for (var n0 = group0; n0 < min(group0 + ROW_GROUP, params.n); n0 += 4u) {
        //#include "lib/nn_grad.wgsl"
        //#unroll
        for (var part = 0u; part < KEPT_PARTS; part++) {
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
                    kept[i * KEPT_PARTS + part][half] += w[0][half] * four.x + w[1][half] * four.y
                        + w[2][half] * four.z + w[3][half] * four.w;
                }
            }
        }
    }
    let positions = load_w_positions(group0, b_load);
    //#unroll
    for (var i = 0u; i < TM; i++) {
        //#unroll
        for (var part = 0u; part < KEPT_PARTS; part++) {
            let sums = kept[i * KEPT_PARTS + part];
            let shifted = positions >> (16u * part);
            acc[i * PARTS + 2u * part] += mat2x4(
                w_expand(sums[0].xy, shifted),
                w_expand(sums[0].zw, shifted >> 4u),
            );
            acc[i * PARTS + 2u * part + 1u] += mat2x4(
                w_expand(sums[1].xy, shifted >> 8u),
                w_expand(sums[1].zw, shifted >> 12u),
            );
        }
    }
}
