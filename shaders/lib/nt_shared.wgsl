//! A body of products X·Wᵀ (`lib/nt_tile.wgsl` says what that is): TM x TN outputs a thread, both
//! operands staged DEPTH columns at a time in workgroup memory, weights dequantised once a tile.
//!
//! Tiles keep four columns of k in a word of four, so that neither operand is transposed on its
//! way in, and a thread reads as many words a product as from k-major tiles. Rows of a tile are
//! an odd number of such words apart, and rows and channels of a thread WY and WX apart, so that
//! neighbouring lanes read other banks.

const TM: u32 = 4u;  //#spec rows a thread
const TN: u32 = 4u;  //#spec channels a thread
const WX: u32 = 16u;  //#spec lanes along n
const WY: u32 = 16u;  //#spec lanes along m
const DEPTH: u32 = 16u;  //#spec stored columns staged at a time, a multiple of 8
const K_FAST: u32 = 0u;  //#spec 1: neighbouring lanes load neighbours along k, for rows of words
const ROW_STEP: u32 = WY;
const SHARE: u32 = 1u;
const TAIL_STEP: u32 = 4u;
const SPREAD: u32 = 1u;  //#spec columns of W for each that is stored: 1, or 2 where x is gathered
const PARTS: u32 = W_STEP / (8u * SPREAD);
const ROWS: u32 = TM * WY;
const CHANNELS: u32 = TN * WX;
const QUADS: u32 = DEPTH / 4u;
const OCTETS: u32 = DEPTH / 8u;
const STRIDE: u32 = QUADS + 1u;

var<workgroup> x_tile: array<vec4<f32>, ROWS * STRIDE>;
var<workgroup> w_tile: array<vec4<f32>, CHANNELS * STRIDE>;

fn multiply(lane: vec2<u32>, tile: u32) {
    let index = lane.y * WX + lane.x;
    let tiles_m = (params.m + ROWS - 1u) / ROWS;
    let tile_row0 = tile % tiles_m * ROWS;
    let col0 = tile / tiles_m * CHANNELS;
    let last = (params.k - 1u) / W_STEP;
    var acc: array<f32, TM * TN>;
    for (var k0 = 0u; k0 < params.k; k0 += DEPTH * SPREAD) {
        // Rows and channels beyond the last are copies of the last and not stored.
        for (var t = index; t < ROWS * QUADS; t += WX * WY) {
            let row = min(tile_row0 + t / QUADS, params.m - 1u);
            let base = params.in_offset + row * params.ld_in;
            let q = t % QUADS;
            //#include "lib/stage_own.wgsl"
            x_tile[t / QUADS * STRIDE + t % QUADS] = quad;
        }
        for (var t = index; t < CHANNELS * OCTETS; t += WX * WY) {
            let c = select(t % CHANNELS, t / OCTETS, K_FAST == 1u);
            let octet = select(t / CHANNELS, t % OCTETS, K_FAST == 1u);
            let part = k0 / (8u * SPREAD) + octet;
            // Behind the last block the last one again, times activations that are 0.
            let block = load_w_block(min(col0 + c, params.n - 1u), min(part / PARTS, last));
            let weights = w_part(block, part % PARTS);
            w_tile[c * STRIDE + 2u * octet] = weights[0];
            w_tile[c * STRIDE + 2u * octet + 1u] = weights[1];
        }
        workgroupBarrier();
        for (var q = 0u; q < QUADS; q++) {
            var weights: array<vec4<f32>, TN>;
            //#unroll
            for (var j = 0u; j < TN; j++) {
                weights[j] = w_tile[(lane.x + j * WX) * STRIDE + q];
            }
            //#unroll
            for (var i = 0u; i < TM; i++) {
                let row = x_tile[(lane.y + i * WY) * STRIDE + q];
                //#unroll
                for (var j = 0u; j < TN; j++) {
                    acc[i * TN + j] += dot(row, weights[j]);
                }
            }
        }
        workgroupBarrier();
    }
    let row0 = tile_row0 + lane.y;
    var col: array<u32, TN>;
    //#unroll
    for (var j = 0u; j < TN; j++) {
        col[j] = min(col0 + lane.x + j * WX, params.n - 1u);
    }
    let tail_first = 0u;
    //#include "lib/tail_none.wgsl"
    //#unroll
    for (var i = 0u; i < TM; i++) {
        //#unroll
        for (var j = 0u; j < TN; j++) {
            let row = row0 + i * ROW_STEP;
            let channel = col0 + lane.x + j * WX;
            if row < params.m && channel < params.n {
                store_y(row, channel, acc[i * TN + j]);
            }
        }
    }
}
