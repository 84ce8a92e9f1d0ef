//! A body of products X·Wᵀ (`lib/nt_tile.wgsl` says what that is): TM x TN outputs a thread, both
//! operands staged DEPTH columns at a time in workgroup memory, weights dequantised once a tile.
//!
//! Tiles keep four columns of k in a word of four, so that neither operand is transposed on its
//! way in, and a thread reads as many words a product as from k-major tiles. Words of the same
//! columns are neighbours, and rows and channels of a thread WY and WX apart, so that neighbouring
//! lanes read neighbours.
//!
//! A stage is loaded into registers while the one before is multiplied: memory takes longer to
//! answer than a stage takes to multiply.

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
// Odd, so that words of one row are in other banks.
const X_STRIDE: u32 = ROWS + 1u;
const W_STRIDE: u32 = CHANNELS + 1u;
const LANES: u32 = WX * WY;
const X_LOADS: u32 = (ROWS * QUADS + LANES - 1u) / LANES;
const W_LOADS: u32 = (CHANNELS * OCTETS + LANES - 1u) / LANES;

var<workgroup> x_tile: array<vec4<f32>, QUADS * X_STRIDE>;
var<workgroup> w_tile: array<vec4<f32>, QUADS * W_STRIDE>;

// Which eight columns of a stage load `t` brings.
fn octet_of(t: u32) -> u32 {
    return select(t / CHANNELS, t % OCTETS, K_FAST == 1u);
}

fn multiply(workgroup_lane: vec2<u32>, tile: u32) {
    let index = workgroup_lane.y * WX + workgroup_lane.x;
    // Of 32 neighbouring lanes, 8 along n and 4 along m: they read fewer words than a line.
    let eights = index / 8u % (4u * (WX / 8u));
    let lane = vec2(
        index % 8u + eights / 4u * 8u,
        eights % 4u + index / (4u * WX) * 4u,
    );
    let tiles_m = (params.m + ROWS - 1u) / ROWS;
    let tile_row0 = tile % tiles_m * ROWS;
    let col0 = tile / tiles_m * CHANNELS;
    let last = (params.k - 1u) / W_STEP;
    var acc: array<f32, TM * TN>;
    var x_next: array<vec4<f32>, X_LOADS>;
    var w_next: array<WBlock, W_LOADS>;
    // A round more than there are stages.
    for (var k0 = 0u; k0 < params.k + DEPTH * SPREAD; k0 += DEPTH * SPREAD) {
        // Rows and channels beyond the last are copies of the last and not stored.
        //#unroll
        for (var h = 0u; h < X_LOADS; h++) {
            let t = index + h * LANES;
            if t < ROWS * QUADS {
                let row = min(tile_row0 + t / QUADS, params.m - 1u);
                let base = params.in_offset + row * params.ld_in;
                let q = t % QUADS;
                //#include "lib/stage_own.wgsl"
                x_next[h] = quad;
            }
        }
        //#unroll
        for (var h = 0u; h < W_LOADS; h++) {
            let t = index + h * LANES;
            if t < CHANNELS * OCTETS {
                let c = select(t % CHANNELS, t / OCTETS, K_FAST == 1u);
                let part = k0 / (8u * SPREAD) + octet_of(t);
                // Behind the last block the last one again, times activations that are 0.
                w_next[h] = load_w_block(min(col0 + c, params.n - 1u), min(part / PARTS, last));
            }
        }
        if k0 > 0u {
            //#include "lib/nt_shared_sums.wgsl"
        }
        workgroupBarrier();
        //#include "lib/nt_shared_store.wgsl"
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
