//! A body of products X·Wᵀ (`lib/nt_tile.wgsl` says what that is): matrices that the lanes of a
//! subgroup multiply together, from tiles in workgroup memory, weights dequantised once a tile.
//! `lib/coop_*.wgsl` say how large the matrices are and in which numbers.
//!
//! A workgroup is one whole subgroup of WX lanes, because nothing else says which lanes are in
//! which subgroup: devices with subgroups of another size must not run this. Sums begin as zeros
//! from memory and go back through it, so that no backend's idea of an empty matrix counts.
//!
//! Not run on any device yet: it is validated, translated, and run with emulated matrices.

//#include "lib/coop_f16.wgsl"

const WX: u32 = 32u;
const WY: u32 = 1u;
const ROWS: u32 = 32u;
const CHANNELS: u32 = 32u;
const DEPTH: u32 = 32u;
const K_FAST: u32 = 0u;  //#spec 1: neighbouring lanes load neighbours along k, for rows of words
const TM: u32 = ROWS / SIDE;
const TN: u32 = CHANNELS / SIDE;
const PARTS: u32 = W_STEP / 8u;
const QUADS: u32 = DEPTH / 4u;
const OCTETS: u32 = DEPTH / 8u;
// Rows begin at multiples of 16 bytes, which loads of matrices ask for, and in other banks.
const STRIDE: u32 = DEPTH + 8u;
const SUM_STRIDE: u32 = CHANNELS + 4u;

var<workgroup> x_tile: array<Staged, ROWS * STRIDE>;
var<workgroup> w_tile: array<Staged, CHANNELS * STRIDE>;
var<workgroup> sums: array<f32, ROWS * SUM_STRIDE>;

fn stage_w(at: u32, weights: vec4<f32>) {
    let four = staged(weights);
    //#unroll
    for (var c = 0u; c < 4u; c++) {
        w_tile[at + c] = four[c];
    }
}

fn clear_sums(lane: u32) {
    for (var t = lane; t < ROWS * SUM_STRIDE; t += WX) {
        sums[t] = 0.0;
    }
}

fn stage_x(at: u32, activations: vec4<f32>) {
    let four = staged(activations);
    //#unroll
    for (var c = 0u; c < 4u; c++) {
        x_tile[at + c] = four[c];
    }
}

fn multiply(lane: vec2<u32>, tile: u32) {
    let tiles_m = (params.m + ROWS - 1u) / ROWS;
    let row0 = tile % tiles_m * ROWS;
    let col0 = tile / tiles_m * CHANNELS;
    let last = (params.k - 1u) / W_STEP;
    clear_sums(lane.x);
    workgroupBarrier();
    var acc: array<MatrixC, TM * TN>;
    //#unroll
    for (var i = 0u; i < TM; i++) {
        //#unroll
        for (var j = 0u; j < TN; j++) {
            acc[i * TN + j] = matrix_c(i * SIDE * SUM_STRIDE + j * SIDE);
        }
    }
    for (var k0 = 0u; k0 < params.k; k0 += DEPTH) {
        // Rows and channels beyond the last are copies of the last and not stored.
        for (var t = lane.x; t < ROWS * QUADS; t += WX) {
            let base = params.in_offset + min(row0 + t / QUADS, params.m - 1u) * params.ld_in;
            let q = t % QUADS;
            //#include "lib/stage_own.wgsl"
            stage_x(t / QUADS * STRIDE + 4u * q, quad);
        }
        for (var t = lane.x; t < CHANNELS * OCTETS; t += WX) {
            let c = select(t % CHANNELS, t / OCTETS, K_FAST == 1u);
            let octet = select(t / CHANNELS, t % OCTETS, K_FAST == 1u);
            let part = k0 / 8u + octet;
            // Behind the last block the last one again, times activations that are 0.
            let block = load_w_block(min(col0 + c, params.n - 1u), min(part / PARTS, last));
            let weights = w_part(block, part % PARTS);
            stage_w(c * STRIDE + 8u * octet, weights[0]);
            stage_w(c * STRIDE + 8u * octet + 4u, weights[1]);
        }
        workgroupBarrier();
        for (var at = 0u; at < DEPTH; at += SIDE) {
            var b: array<MatrixB, TN>;
            //#unroll
            for (var j = 0u; j < TN; j++) {
                b[j] = matrix_b(j * SIDE * STRIDE + at);
            }
            //#unroll
            for (var i = 0u; i < TM; i++) {
                let a = matrix_a(i * SIDE * STRIDE + at);
                //#unroll
                for (var j = 0u; j < TN; j++) {
                    acc[i * TN + j] = multiply_add(a, b[j], acc[i * TN + j]);
                }
            }
        }
        workgroupBarrier();
    }
    //#unroll
    for (var i = 0u; i < TM; i++) {
        //#unroll
        for (var j = 0u; j < TN; j++) {
            store_c(acc[i * TN + j], i * SIDE * SUM_STRIDE + j * SIDE);
        }
    }
    workgroupBarrier();
    // A lane a channel: neighbouring lanes write neighbours.
    let channel = col0 + lane.x;
    for (var row = 0u; row < ROWS; row++) {
        if row0 + row < params.m && channel < params.n {
            store_y(row0 + row, channel, sums[row * SUM_STRIDE + lane.x]);
        }
    }
}
