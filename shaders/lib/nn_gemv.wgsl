//! A body of products dY·W (`lib/nn_tile.wgsl` says what that is) for few rows or few columns: a
//! lane sums eight columns over one of SLICES parts of n, and the parts meet in workgroup memory.
//!
//! Lanes of one block of columns are neighbours, so that they read the same words. The sums of
//! the slices are added in order, so that repeated runs are equal to the bit.

const TM: u32 = 1u;  //#spec rows a workgroup
const OCTETS: u32 = 4u;  //#spec lanes along k, eight columns each
const SLICES: u32 = 32u;  //#spec parts of n
const WX: u32 = OCTETS * SLICES;
const WY: u32 = 1u;
const PARTS: u32 = W_STEP / 8u;
const OUTPUTS: u32 = TM * OCTETS * 8u;

var<workgroup> slice_sums: array<vec4<f32>, OUTPUTS / 4u * SLICES>;

fn multiply(lane: vec2<u32>, tile: u32) {
    let tiles_m = (params.m + TM - 1u) / TM;
    let row0 = tile % tiles_m * TM;
    let octet = lane.x % OCTETS;
    let slice = lane.x / OCTETS;
    let col0 = tile / tiles_m * (OCTETS * 8u);
    let part = col0 / 8u + octet;
    // Rows and columns beyond the last are computed from others and not stored: all lanes stay
    // until the barrier.
    let b = min(part / PARTS, (params.k - 1u) / W_STEP);
    var base: array<u32, TM>;
    //#unroll
    for (var i = 0u; i < TM; i++) {
        base[i] = params.in_offset + min(row0 + i, params.m - 1u) * params.ld_in;
    }
    var acc: array<mat2x4<f32>, TM>;
    for (var n0 = 4u * slice; n0 < params.n; n0 += 4u * SLICES) {
        var grad: array<vec4<f32>, TM>;
        //#unroll
        for (var i = 0u; i < TM; i++) {
            grad[i] = load_dy4(base[i], n0, params.n);
        }
        //#unroll
        for (var step = 0u; step < 4u; step++) {
            // Where n is no multiple of 4, its last row again, times a gradient that reads as 0.
            let weights = w_part(load_w_block(min(n0 + step, params.n - 1u), b), part % PARTS);
            //#unroll
            for (var i = 0u; i < TM; i++) {
                acc[i] += weights * grad[i][step];
            }
        }
    }
    //#unroll
    for (var i = 0u; i < TM; i++) {
        let at = (slice * TM + i) * (2u * OCTETS) + 2u * octet;
        slice_sums[at] = acc[i][0];
        slice_sums[at + 1u] = acc[i][1];
    }
    workgroupBarrier();
    for (var at = lane.x; at < OUTPUTS; at += WX) {
        var sum = 0.0;
        for (var s = 0u; s < SLICES; s++) {
            sum += slice_sums[s * (OUTPUTS / 4u) + at / 4u][at % 4u];
        }
        let row = row0 + at / (8u * OCTETS);
        let col = col0 + at % (8u * OCTETS);
        if row < params.m && col < params.k {
            store_dx(row, col, sum);
        }
    }
}
