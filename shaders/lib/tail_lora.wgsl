//! The low-rank term of an adapter, pasted behind the loop over k of a body `lib/nt_*.wgsl`: adds
//! scale · inner · Bᵀ to `acc`, with as many loads as a register tile of that size needs.
//!
//! The body gives TM, TN, `row0` and ROW_STEP (its rows), SHARE (those that lanes load for each
//! other), `col` (its channels, none beyond the last), and `tail_first` and TAIL_STEP (which ranks
//! are its own).
for (var r0 = tail_first; r0 < params.rank; r0 += TAIL_STEP) {
    var factors: array<vec4<f32>, TN>;
    //#unroll
    for (var j = 0u; j < TN; j++) {
        factors[j] = load_b4((params.b_row0 + col[j]) * params.rank, r0);
    }
    //#unroll
    for (var h = 0u; h < TM / SHARE; h++) {
        let loaded = min(row0 + (h * SHARE + lane.x % SHARE) * ROW_STEP, params.m - 1u);
        let held = params.lora_scale * load_inner4(loaded * params.rank, r0);
        //#unroll
        for (var s = 0u; s < SHARE; s++) {
            //#paste "lib/row_own.wgsl"
            //#unroll
            for (var j = 0u; j < TN; j++) {
                acc[(h * SHARE + s) * TN + j] += dot(row, factors[j]);
            }
        }
    }
}
