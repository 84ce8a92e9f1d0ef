//! A body of products dY·W (`lib/nn_tile.wgsl` says what that is): TM rows and KQ quads of columns
//! a thread, both operands staged DEPTH rows of W at a time in workgroup memory, weights
//! dequantised once a tile.
//!
//! The tile of W is as W itself, a row of channels after the other, so that it is not transposed
//! on its way in. Quads of columns of a thread are WX apart, rows of dY WY apart. A stage is loaded
//! into registers while the one before is multiplied.

const TM: u32 = 4u;  //#spec rows a thread
const KQ: u32 = 1u;  //#spec quads of columns a thread
const WX: u32 = 16u;  //#spec lanes along k
const WY: u32 = 16u;  //#spec lanes along m
const DEPTH: u32 = 16u;  //#spec rows of W staged at a time, a multiple of 4
const K_FAST: u32 = 0u;  //#spec 1: neighbouring lanes load neighbours along k, for rows of words
const PARTS: u32 = W_STEP / 8u;
const ROWS: u32 = TM * WY;
const COLS: u32 = 4u * KQ * WX;
const OCTETS: u32 = COLS / 8u;
const QUADS: u32 = DEPTH / 4u;
const DY_STRIDE: u32 = QUADS + 1u;
const W_STRIDE: u32 = COLS / 4u + 1u;
const LANES: u32 = WX * WY;
const DY_LOADS: u32 = (ROWS * QUADS + LANES - 1u) / LANES;
const W_LOADS: u32 = (DEPTH * OCTETS + LANES - 1u) / LANES;

var<workgroup> dy_tile: array<vec4<f32>, ROWS * DY_STRIDE>;
var<workgroup> w_tile: array<vec4<f32>, DEPTH * W_STRIDE>;

// Which eight columns of a row of the tile load `t` brings.
fn octet_of(t: u32) -> u32 {
    return select(t / DEPTH, t % OCTETS, K_FAST == 1u);
}

fn multiply(lane: vec2<u32>, tile: u32) {
    let index = lane.y * WX + lane.x;
    let tiles_m = (params.m + ROWS - 1u) / ROWS;
    let row0 = tile % tiles_m * ROWS;
    let col0 = tile / tiles_m * COLS;
    let last = (params.k - 1u) / W_STEP;
    var acc: array<vec4<f32>, TM * KQ>;
    var dy_next: array<vec4<f32>, DY_LOADS>;
    var w_next: array<WBlock, W_LOADS>;
    // A round more than there are stages.
    for (var n0 = 0u; n0 < params.n + DEPTH; n0 += DEPTH) {
        //#unroll
        for (var h = 0u; h < DY_LOADS; h++) {
            let t = index + h * LANES;
            let row = min(row0 + t / QUADS, params.m - 1u);
            let n = n0 + 4u * (t % QUADS);
            dy_next[h] = vec4<f32>();
            if n < params.n && t < ROWS * QUADS {
                dy_next[h] = load_dy4(params.in_offset + row * params.ld_in, n, params.n);
            }
        }
        //#unroll
        for (var h = 0u; h < W_LOADS; h++) {
            let t = index + h * LANES;
            if t < DEPTH * OCTETS {
                let r = select(t % DEPTH, t / OCTETS, K_FAST == 1u);
                let part = col0 / 8u + octet_of(t);
                // Behind the last row the last one again, times 0; columns there are not stored.
                w_next[h] = load_w_block(min(n0 + r, params.n - 1u), min(part / PARTS, last));
            }
        }
        if n0 > 0u {
            //#include "lib/nn_shared_sums.wgsl"
        }
        workgroupBarrier();
        //#unroll
        for (var h = 0u; h < DY_LOADS; h++) {
            let t = index + h * LANES;
            if t < ROWS * QUADS {
                dy_tile[t / QUADS * DY_STRIDE + t % QUADS] = dy_next[h];
            }
        }
        //#unroll
        for (var h = 0u; h < W_LOADS; h++) {
            let t = index + h * LANES;
            if t < DEPTH * OCTETS {
                let r = select(t % DEPTH, t / OCTETS, K_FAST == 1u);
                let octet = octet_of(t);
                let weights = w_part(w_next[h], (col0 / 8u + octet) % PARTS);
                w_tile[r * W_STRIDE + 2u * octet] = weights[0];
                w_tile[r * W_STRIDE + 2u * octet + 1u] = weights[1];
            }
        }
        workgroupBarrier();
    }
    //#unroll
    for (var i = 0u; i < TM; i++) {
        //#unroll
        for (var j = 0u; j < KQ; j++) {
            let row = row0 + lane.y + i * WY;
            let col = col0 + 4u * (lane.x + j * WX);
            let values = acc[i * KQ + j];
            for (var c = 0u; c < 4u; c++) {
                if row < params.m && col + c < params.k {
                    store_dx(row, col + c, values[c]);
                }
            }
        }
    }
}
