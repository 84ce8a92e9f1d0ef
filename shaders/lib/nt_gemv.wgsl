//! A body of products X·Wᵀ (`lib/nt_tile.wgsl` says what that is) for few rows or few channels:
//! a lane sums TN channels over one of SLICES parts of k, and the parts meet in workgroup memory.
//!
//! The next block is on its way while one is multiplied. Rows and channels beyond the last are
//! computed from the last and not stored: all lanes stay until the barrier.
//!
//! All lanes of a slice read the same activations, which is one load a subgroup on a GPU. The
//! sums of the slices are added in order, so that repeated runs are equal to the bit.

const TM: u32 = 1u;  //#spec rows a workgroup
const TN: u32 = 1u;  //#spec channels a lane
const CHANNELS: u32 = 64u;  //#spec lanes along n
const SLICES: u32 = 4u;  //#spec parts of k
const K_FAST: u32 = 0u;  //#spec 1: neighbouring lanes are neighbours along k, for rows of words
const WX: u32 = CHANNELS * SLICES;
const WY: u32 = 1u;
const SPREAD: u32 = 1u;  //#spec columns of W for each that is stored: 1, or 2 where x is gathered
const PARTS: u32 = W_STEP / (8u * SPREAD);
const ROW_STEP: u32 = 1u;
const SHARE: u32 = 1u;
const TAIL_STEP: u32 = 4u * SLICES;
const OUTPUTS: u32 = TM * TN * CHANNELS;

var<workgroup> slice_sums: array<f32, OUTPUTS * SLICES>;

// Adds the sums of the slices and stores them.
fn add_slices(row0: u32, col0: u32, index: u32) {
    for (var at = index; at < OUTPUTS; at += WX) {
        let output = at / CHANNELS;
        let row = row0 + output / TN;
        let target_channel = col0 + output % TN * CHANNELS + at % CHANNELS;
        var sum = 0.0;
        for (var s = 0u; s < SLICES; s++) {
            sum += slice_sums[(output * SLICES + s) * CHANNELS + at % CHANNELS];
        }
        if row < params.m && target_channel < params.n {
            store_y(row, target_channel, sum);
        }
    }
}

fn multiply(lane: vec2<u32>, tile: u32) {
    let tiles_m = (params.m + TM - 1u) / TM;
    let row0 = tile % tiles_m * TM;
    let col0 = tile / tiles_m * (CHANNELS * TN);
    let slice = select(lane.x / CHANNELS, lane.x % SLICES, K_FAST == 1u);
    let channel = select(lane.x % CHANNELS, lane.x / SLICES, K_FAST == 1u);
    var base: array<u32, TM>;
    //#unroll
    for (var i = 0u; i < TM; i++) {
        base[i] = params.in_offset + min(row0 + i, params.m - 1u) * params.ld_in;
    }
    var col: array<u32, TN>;
    //#unroll
    for (var j = 0u; j < TN; j++) {
        col[j] = min(col0 + j * CHANNELS + channel, params.n - 1u);
    }
    var acc: array<f32, TM * TN>;
    let blocks = (params.k + W_STEP - 1u) / W_STEP;
    var next: array<WBlock, TN>;
    //#unroll
    for (var j = 0u; j < TN; j++) {
        next[j] = load_w_block(col[j], min(slice, blocks - 1u));
    }
    for (var b = slice; b < blocks; b += SLICES) {
        var block: array<WBlock, TN>;
        //#unroll
        for (var j = 0u; j < TN; j++) {
            block[j] = next[j];
            next[j] = load_w_block(col[j], min(b + SLICES, blocks - 1u));
        }
        var sum: array<f32, TM * TN>;
        var x_sum: array<f32, TM>;
        for (var part = 0u; part < PARTS; part++) {
            let k0 = b * W_STEP + part * 8u * SPREAD;
            var weights: array<mat2x4<f32>, TN>;
            //#unroll
            for (var j = 0u; j < TN; j++) {
                weights[j] = w_unscaled(block[j], part);
            }
            //#unroll
            for (var h = 0u; h < TM; h++) {
                //#unroll
                for (var half = 0u; half < 2u; half++) {
                    //#include "lib/held_own.wgsl"
                    x_sum[h] += dot(held, vec4(1.0));
                    //#unroll
                    for (var j = 0u; j < TN; j++) {
                        sum[h * TN + j] += dot(held, weights[j][half]);
                    }
                }
            }
        }
        //#unroll
        for (var j = 0u; j < TN; j++) {
            //#unroll
            for (var i = 0u; i < TM; i++) {
                acc[i * TN + j] += w_sum(sum[i * TN + j], x_sum[i], block[j]);
            }
        }
    }
    let tail_first = 4u * slice;
    //#include "lib/tail_none.wgsl"
    //#unroll
    for (var output = 0u; output < TM * TN; output++) {
        slice_sums[(output * SLICES + slice) * CHANNELS + channel] = acc[output];
    }
    workgroupBarrier();
    add_slices(row0, col0, lane.x);
}
