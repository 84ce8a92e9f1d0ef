//! A body of products X·Wᵀ (`lib/nt_tile.wgsl` says what that is) for few rows on subgroups of
//! exactly 8 lanes: each lane loads eight of 64 activations and hands them to the others.
//!
//! For drivers that run shaders on the CPU, where a load is a loop over lanes and the rest is not.

//#include "weights/rows_each.wgsl"

const TM: u32 = 1u;  //#spec rows a workgroup
const TN: u32 = ROWS;
const WX: u32 = 8u;  //#spec lanes, all of a subgroup
const WY: u32 = 1u;
const SPREAD: u32 = 1u;  //#spec columns of W for each that is stored: 1, or 2 where x is gathered
const PARTS: u32 = W_STEP / (8u * SPREAD);
const STAGE: u32 = 64u;
const ROW_STEP: u32 = 1u;
const SHARE: u32 = 1u;
const TAIL_STEP: u32 = 4u;
const BLOCKS: u32 = STAGE / W_STEP;
const HOLDERS: u32 = W_STEP / 8u;

fn multiply(lane: vec2<u32>, tile: u32) {
    let tiles_m = (params.m + TM - 1u) / TM;
    let row0 = tile % tiles_m * TM;
    let col0 = tile / tiles_m * (WX * TN) + TN * lane.x;
    // Rows and channels beyond the last are computed from the last and not stored: all lanes
    // load for the others.
    var col: array<u32, TN>;
    //#unroll
    for (var j = 0u; j < TN; j++) {
        col[j] = min(col0 + j, params.n - 1u);
    }
    var acc: array<f32, TM * TN>;
    let last = (params.k - 1u) / W_STEP;
    for (var k0 = 0u; k0 < params.k; k0 += STAGE) {
        var held: array<mat2x4<f32>, TM>;
        //#unroll
        for (var i = 0u; i < TM; i++) {
            let base = params.in_offset + min(row0 + i, params.m - 1u) * params.ld_in;
            held[i] = load_x8(base, k0 + 8u * lane.x, params.k);
        }
        //#unroll
        for (var b = 0u; b < BLOCKS; b++) {
            // Behind the last block the last one again, times activations that read as 0.
            let block = load_w_rows(col[0], min(k0 / W_STEP + b, last));
            var taken: array<mat2x4<f32>, TM>;
            var x_sum: array<f32, TM>;
            //#unroll
            for (var i = 0u; i < TM; i++) {
                //#include "lib/taken_own.wgsl"
                //#unroll
                for (var l = b * HOLDERS; l < b * HOLDERS + HOLDERS; l++) {
                    x_sum[i] += subgroupBroadcast(own_sum, l);
                }
            }
            var sum: array<f32, TM * TN>;
            //#unroll
            for (var part = 0u; part < PARTS; part++) {
                const holder = b * HOLDERS + part * SPREAD;
                var low: array<vec4<f32>, TM>;
                var high: array<vec4<f32>, TM>;
                //#unroll
                for (var i = 0u; i < TM; i++) {
                    //#include "lib/handed_own.wgsl"
                }
                //#unroll
                for (var j = 0u; j < TN; j++) {
                    //#include "lib/dots_own.wgsl"
                }
            }
            //#unroll
            for (var at = 0u; at < TM * TN; at++) {
                acc[at] += w_raw_sum(sum[at], x_sum[at / TN], block[at % TN]);
            }
        }
    }
    let tail_first = 0u;
    //#include "lib/tail_none.wgsl"
    //#unroll
    for (var at = 0u; at < TM * TN; at++) {
        if row0 + at / TN < params.m && col0 + at % TN < params.n {
            store_y(row0 + at / TN, col0 + at % TN, acc[at]);
        }
    }
}
