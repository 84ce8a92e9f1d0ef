//! A body of products X·Wᵀ (`lib/nt_tile.wgsl` says what that is) for some rows: a lane owns one
//! channel and TM rows, dequantises its weights in registers and reads activations, which all
//! lanes share, from workgroup memory. After the wide-tile kernels of ONNX Runtime's WebGPU
//! backend.

const TM: u32 = 8u;  //#spec rows a workgroup
const WX: u32 = 64u;  //#spec lanes, each a channel
const WY: u32 = 1u;
const SPREAD: u32 = 1u;  //#spec columns of W for each that is stored: 1, or 2 where x is gathered
const PARTS: u32 = W_STEP / (8u * SPREAD);
const STAGE: u32 = 32u;
const QUADS: u32 = STAGE / 4u;
const TN: u32 = 1u;
const ROW_STEP: u32 = 1u;
const SHARE: u32 = 1u;
const TAIL_STEP: u32 = 4u;
const BLOCKS: u32 = STAGE / W_STEP;

var<workgroup> x_tile: array<vec4<f32>, TM * QUADS>;

fn multiply(lane: vec2<u32>, tile: u32) {
    let tiles_m = (params.m + TM - 1u) / TM;
    let row0 = tile % tiles_m * TM;
    let channel = tile / tiles_m * WX + lane.x;
    // Lanes beyond the last channel compute that one again: they take part in the barriers.
    let col = array<u32, TN>(min(channel, params.n - 1u));
    let last = (params.k - 1u) / W_STEP;
    var acc: array<f32, TM>;
    for (var k0 = 0u; k0 < params.k; k0 += STAGE) {
        for (var t = lane.x; t < TM * QUADS; t += WX) {
            let row = min(row0 + t / QUADS, params.m - 1u);
            let col = k0 + 4u * (t % QUADS);
            var quad = vec4<f32>();
            if col < params.k {
                quad = load_x4(params.in_offset + row * params.ld_in, col, params.k);
            }
            x_tile[t] = quad;
        }
        workgroupBarrier();
        for (var b = 0u; b < BLOCKS; b++) {
            // Behind the last block the last one again, times activations that are 0.
            let block = load_w_block(col[0], min(k0 / W_STEP + b, last));
            for (var part = 0u; part < PARTS; part++) {
                let weights = w_part(block, part);
                let quad = 2u * SPREAD * (b * PARTS + part);
                //#unroll
                for (var i = 0u; i < TM; i++) {
                    //#unroll
                    for (var half = 0u; half < 2u; half++) {
                        //#include "lib/staged_own.wgsl"
                        acc[i] += dot(held, weights[half]);
                    }
                }
            }
        }
        workgroupBarrier();
    }
    let tail_first = 0u;
    //#include "lib/tail_none.wgsl"
    //#unroll
    for (var i = 0u; i < TM; i++) {
        if row0 + i < params.m && channel < params.n {
            store_y(row0 + i, channel, acc[i]);
        }
    }
}
