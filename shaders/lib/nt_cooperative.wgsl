//! A body of products X·Wᵀ (`lib/nt_tile.wgsl` says what that is): matrices that the lanes of a
//! subgroup multiply together, from tiles in workgroup memory, weights dequantised once a tile.
//! `lib/coop_*.wgsl` say how large the matrices are and in which numbers.
//!
//! A workgroup is GROUPS_M x GROUPS_N subgroups of 32 lanes, each with a tile of its own; a
//! subgroup is 32 neighbouring lanes, and devices with subgroups of another size must not run
//! this. Sums begin as zeros from memory and go back through it, a matrix of a subgroup at a time,
//! so that no backend's idea of an empty matrix counts. A stage is loaded into registers while the
//! one before is multiplied.
//!
//! Run with f16 on an H200; the other kinds are validated, translated, and run with emulated
//! matrices.

//#include "lib/coop_f16.wgsl"

const LANES: u32 = 32u;
const GROUPS_M: u32 = 1u;  //#spec subgroups along m
const GROUPS_N: u32 = 1u;  //#spec subgroups along n
const ROWS: u32 = 32u;  //#spec rows a workgroup
const CHANNELS: u32 = 32u;  //#spec channels a workgroup
const WX: u32 = LANES * GROUPS_M * GROUPS_N;
const WY: u32 = 1u;
const DEPTH: u32 = 32u;
const K_FAST: u32 = 0u;  //#spec 1: neighbouring lanes load neighbours along k, for rows of words
const TM: u32 = ROWS / GROUPS_M / SIDE;
const TN: u32 = CHANNELS / GROUPS_N / SIDE;
const PARTS: u32 = W_STEP / 8u;
const QUADS: u32 = DEPTH / 4u;
const OCTETS: u32 = DEPTH / 8u;
// Rows begin at multiples of 16 bytes, which loads of matrices ask for, and in other banks.
const STRIDE: u32 = DEPTH + 8u;
const SUM_STRIDE: u32 = SIDE + 4u;
const SUMS: u32 = SIDE * SUM_STRIDE;
const X_LOADS: u32 = ROWS * QUADS / WX;
const W_LOADS: u32 = CHANNELS * OCTETS / WX;

// A matrix of each subgroup.
var<workgroup> sums: array<f32, GROUPS_M * GROUPS_N * SUMS>;

fn clear_sums(lane: u32) {
    for (var t = lane; t < GROUPS_M * GROUPS_N * SUMS; t += WX) {
        sums[t] = 0.0;
    }
}

// Stores the matrix of sums of the lane's subgroup, neighbours by neighbouring lanes.
fn store_sums(row0: u32, col0: u32, lane: u32) {
    for (var t = lane % LANES; t < SIDE * SIDE; t += LANES) {
        let row = row0 + t / SIDE;
        let channel = col0 + t % SIDE;
        if row < params.m && channel < params.n {
            store_y(row, channel, sums[lane / LANES * SUMS + t / SIDE * SUM_STRIDE + t % SIDE]);
        }
    }
}

// Which eight columns of a stage load `t` brings.
fn octet_of(t: u32) -> u32 {
    return select(t / CHANNELS, t % OCTETS, K_FAST == 1u);
}

fn multiply(lane: vec2<u32>, tile: u32) {
    let tiles_m = (params.m + ROWS - 1u) / ROWS;
    let row0 = tile % tiles_m * ROWS;
    let col0 = tile / tiles_m * CHANNELS;
    let last = (params.k - 1u) / W_STEP;
    let group = lane.x / LANES;
    let own_sums = group * SUMS;
    let own_row = group / GROUPS_N * TM * SIDE;
    let own_channel = group % GROUPS_N * TN * SIDE;
    clear_sums(lane.x);
    workgroupBarrier();
    var acc: array<MatrixC, TM * TN>;
    //#unroll
    for (var i = 0u; i < TM; i++) {
        //#unroll
        for (var j = 0u; j < TN; j++) {
            acc[i * TN + j] = matrix_c(own_sums);
        }
    }
    var x_next: array<vec4<Staged>, X_LOADS>;
    var w_next: array<WBlock, W_LOADS>;
    // A round more than there are stages.
    for (var k0 = 0u; k0 < params.k + DEPTH; k0 += DEPTH) {
        // Beyond the last row, channel and block the last again: not stored, or times 0.
        //#unroll
        for (var h = 0u; h < X_LOADS; h++) {
            let t = lane.x + h * WX;
            let base = params.in_offset + min(row0 + t / QUADS, params.m - 1u) * params.ld_in;
            let q = t % QUADS;
            //#include "lib/stage_own.wgsl"
            x_next[h] = staged(quad);
        }
        //#unroll
        for (var h = 0u; h < W_LOADS; h++) {
            let t = lane.x + h * WX;
            let c = select(t % CHANNELS, t / OCTETS, K_FAST == 1u);
            let block = min((k0 / 8u + octet_of(t)) / PARTS, last);
            w_next[h] = load_w_block(min(col0 + c, params.n - 1u), block);
        }
        if k0 > 0u {
            //#include "lib/nt_cooperative_sums.wgsl"
        }
        workgroupBarrier();
        //#unroll
        for (var h = 0u; h < X_LOADS; h++) {
            let t = lane.x + h * WX;
            stage_x(t / QUADS * STRIDE + 4u * (t % QUADS), x_next[h]);
        }
        //#unroll
        for (var h = 0u; h < W_LOADS; h++) {
            let t = lane.x + h * WX;
            let c = select(t % CHANNELS, t / OCTETS, K_FAST == 1u);
            let octet = octet_of(t);
            let weights = w_part(w_next[h], (k0 / 8u + octet) % PARTS);
            stage_w(c * STRIDE + 8u * octet, staged(weights[0]));
            stage_w(c * STRIDE + 8u * octet + 4u, staged(weights[1]));
        }
        workgroupBarrier();
    }
    //#unroll
    for (var i = 0u; i < TM; i++) {
        //#unroll
        for (var j = 0u; j < TN; j++) {
            workgroupBarrier();
            store_c(acc[i * TN + j], own_sums);
            workgroupBarrier();
            store_sums(row0 + own_row + i * SIDE, col0 + own_channel + j * SIDE, lane.x);
        }
    }
}
