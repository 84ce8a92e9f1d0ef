//! A body of products X·Wᵀ: a register tile of TM x TN outputs a thread, without workgroup memory.
//!
//! All bodies `lib/nt_*.wgsl` define the same names: `WX` and `WY`, the shape of a workgroup, and
//! `multiply(lane, tile)`, which computes the outputs of one workgroup and hands each to
//! `store_y(row, channel, product)`. The includer gives that, `load_x4` and the weights.
//!
//! Behind its loop over k, a body includes `lib/tail_none.wgsl`, which another file may replace to
//! add to the sums.
//!
//! The loop over the parts of a block is `lib/parts_rolled.wgsl`, which another file may replace.
//!
//! Channels of a thread are WX apart, so that neighbouring lanes read neighbouring words of the
//! packed formats. The caches share the loads. Where four values are stored at once
//! (`lib/stored_four.wgsl`) all channels of a thread are neighbours.

const TM: u32 = 4u;  //#spec rows a thread
const TN: u32 = 4u;  //#spec channels a thread, a multiple of 4
const WX: u32 = 16u;  //#spec lanes along n
const WY: u32 = 4u;  //#spec lanes along m
const SHARE: u32 = 1u;  //#spec rows that the lanes of a subgroup load for each other, 1 or WX
const SPREAD: u32 = 1u;  //#spec columns of W for each that is stored: 1, or 2 where x is gathered
const ROW_STEP: u32 = 1u;
const TAIL_STEP: u32 = 4u;
const PARTS: u32 = W_STEP / (8u * SPREAD);
const QUADS: u32 = TN / 4u;

// Between channels of a thread, and between the first ones of neighbouring lanes.
const APART: u32 = WX - (WX - 1u) * (STORED / 4u);
const BESIDE: u32 = 1u + (TN - 1u) * (STORED / 4u);

// Stores four channels of a row.
fn store_quad(row: u32, channel: u32, values: vec4<f32>) {
    // Rolled: this is written out for every quad of a thread, and compile time counts.
    for (var c = 0u; c < 4u; c += STORED) {
        if channel + c * APART < params.n {
            store_y(row, channel + c * APART, stored_of(values, c));
        }
    }
}

fn multiply(lane: vec2<u32>, tile: u32) {
    let tiles_m = (params.m + WY * TM - 1u) / (WY * TM);
    let row0 = (tile % tiles_m * WY + lane.y) * TM;
    let col0 = tile / tiles_m * (WX * TN) + lane.x * BESIDE;
    // Lanes that load for others stay.
    if row0 >= params.m || (SHARE == 1u && col0 >= params.n) {
        return;
    }
    // Rows and channels beyond the last are computed from the last and not stored.
    var base: array<u32, TM / SHARE>;
    //#unroll
    for (var h = 0u; h < TM / SHARE; h++) {
        let row = min(row0 + h * SHARE + lane.x % SHARE, params.m - 1u);
        base[h] = params.in_offset + row * params.ld_in;
    }
    var col: array<u32, TN>;
    //#unroll
    for (var j = 0u; j < TN; j++) {
        col[j] = min(col0 + j * APART, params.n - 1u);
    }
    var acc: array<f32, TM * TN>;
    let blocks = (params.k + W_STEP - 1u) / W_STEP;
    for (var b = 0u; b < blocks; b++) {
        //#include "lib/blocks_each.wgsl"
        //#include "lib/parts_rolled.wgsl"
    }
    let tail_first = 0u;
    //#include "lib/tail_none.wgsl"
    //#unroll
    for (var i = 0u; i < TM; i++) {
        //#unroll
        for (var q = 0u; q < QUADS; q++) {
            if row0 + i < params.m {
                const at = i * TN + q * 4u;
                let values = vec4(acc[at], acc[at + 1u], acc[at + 2u], acc[at + 3u]);
                store_quad(row0 + i, col0 + q * 4u * APART, values);
            }
        }
    }
}
