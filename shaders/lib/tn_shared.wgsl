//! A body of products dYᵀ·X (`lib/tn_tile.wgsl` says what that is): NQ x KQ blocks of 4 x 4 outputs
//! a thread, both operands staged DEPTH tokens at a time in workgroup memory.
//!
//! Tiles are as the operands are, one token's elements after the other: a thread reads a quad of
//! each and adds their outer product. Quads of a thread are WY and WX apart.

const NQ: u32 = 1u;  //#spec quads of rows a thread
const KQ: u32 = 1u;  //#spec quads of columns a thread
const WX: u32 = 16u;  //#spec lanes along k
const WY: u32 = 16u;  //#spec lanes along n
const DEPTH: u32 = 16u;  //#spec tokens staged at a time
const ROW_QUADS: u32 = NQ * WY;
const COL_QUADS: u32 = KQ * WX;

var<workgroup> dy_tile: array<vec4<f32>, DEPTH * ROW_QUADS>;
var<workgroup> x_tile: array<vec4<f32>, DEPTH * COL_QUADS>;

fn multiply(lane: vec2<u32>, tile: u32, part: u32) {
    let index = lane.y * WX + lane.x;
    let tiles_k = (params.k + 4u * COL_QUADS - 1u) / (4u * COL_QUADS);
    let n0 = tile / tiles_k * (4u * ROW_QUADS);
    let k0 = tile % tiles_k * (4u * COL_QUADS);
    let span = (params.m + params.splits - 1u) / params.splits;
    let first = min(part * span, params.m);
    let last = min(first + span, params.m);
    var acc: array<vec4<f32>, 4u * NQ * KQ>;
    for (var m0 = first; m0 < last; m0 += DEPTH) {
        // Quads beyond the last column and tokens beyond the last are 0.
        for (var t = index; t < DEPTH * ROW_QUADS; t += WX * WY) {
            let row = m0 + t / ROW_QUADS;
            let col = n0 + 4u * (t % ROW_QUADS);
            var quad = vec4<f32>();
            if row < last && col < params.n {
                quad = load_dy4(params.dy_offset + row * params.ld_dy, col, params.n);
            }
            dy_tile[t] = quad;
        }
        for (var t = index; t < DEPTH * COL_QUADS; t += WX * WY) {
            let row = m0 + t / COL_QUADS;
            let col = k0 + 4u * (t % COL_QUADS);
            var quad = vec4<f32>();
            if row < last && col < params.k {
                quad = load_x4(row * params.k, col, params.k);
            }
            x_tile[t] = quad;
        }
        workgroupBarrier();
        for (var r = 0u; r < DEPTH; r++) {
            var inputs: array<vec4<f32>, KQ>;
            //#unroll
            for (var q = 0u; q < KQ; q++) {
                inputs[q] = x_tile[r * COL_QUADS + lane.x + q * WX];
            }
            //#unroll
            for (var p = 0u; p < NQ; p++) {
                let grad = dy_tile[r * ROW_QUADS + lane.y + p * WY];
                //#unroll
                for (var c = 0u; c < 4u; c++) {
                    //#unroll
                    for (var q = 0u; q < KQ; q++) {
                        acc[(p * 4u + c) * KQ + q] += grad[c] * inputs[q];
                    }
                }
            }
        }
        workgroupBarrier();
    }
    //#unroll
    for (var p = 0u; p < NQ; p++) {
        //#unroll
        for (var c = 0u; c < 4u; c++) {
            //#unroll
            for (var q = 0u; q < KQ; q++) {
                let row = n0 + 4u * (lane.y + p * WY) + c;
                if row < params.n {
                    let col = k0 + 4u * (lane.x + q * WX);
                    store_quad(part, row, col, acc[(p * 4u + c) * KQ + q]);
                }
            }
        }
    }
}
