//! A body of products dYᵀ·X (`lib/tn_tile.wgsl` says what that is) where one side is a few
//! quads, as of adapters: lanes are neighbours along the other side, tokens are divided among
//! SLICES, and the sums of the slices meet in workgroup memory.
//!
//! A lane has NQ x KQ blocks of 4 x 4 outputs. It loads AHEAD tokens before it multiplies them. The
//! slices are added in order, so that repeated runs are equal to the bit.

const NQ: u32 = 1u;  //#spec quads of rows a lane
const KQ: u32 = 1u;  //#spec quads of columns a lane
const WX: u32 = 16u;  //#spec lanes along the long side
const SLICES: u32 = 16u;
const WY: u32 = SLICES;
const ALONG_N: u32 = 1u;  //#spec 1: lanes are neighbours along n, else along k
const AHEAD: u32 = 4u;
const ROW_QUADS: u32 = NQ * select(1u, WX, ALONG_N == 1u);
const COL_QUADS: u32 = KQ * select(WX, 1u, ALONG_N == 1u);

var<workgroup> slice_sums: array<vec4<f32>, 4u * SLICES * WX>;

// Adds the sums of the slices of a quad and stores it.
fn add_slices(part: u32, row: u32, col: u32, lane: vec2<u32>) {
    var sum = vec4<f32>();
    for (var s = 0u; s < SLICES; s++) {
        sum += slice_sums[(lane.y * SLICES + s) * WX + lane.x];
    }
    if row < params.n && col < params.k {
        store_quad(part, row, col, sum);
    }
}

fn multiply(lane: vec2<u32>, tile: u32, part: u32) {
    let slice = lane.y;
    let tiles_k = (params.k + 4u * COL_QUADS - 1u) / (4u * COL_QUADS);
    let n0 = 4u * (tile / tiles_k * ROW_QUADS + select(0u, lane.x, ALONG_N == 1u));
    let k0 = 4u * (tile % tiles_k * COL_QUADS + select(lane.x, 0u, ALONG_N == 1u));
    let n_step = 4u * ROW_QUADS / NQ;
    let k_step = 4u * COL_QUADS / KQ;
    let span = (params.m + params.splits - 1u) / params.splits;
    let first = min(part * span, params.m);
    let last = min(first + span, params.m);
    var acc: array<vec4<f32>, 4u * NQ * KQ>;
    for (var m0 = first + slice; m0 < last; m0 += AHEAD * SLICES) {
        var grad: array<vec4<f32>, AHEAD * NQ>;
        var inputs: array<vec4<f32>, AHEAD * KQ>;
        //#unroll
        for (var a = 0u; a < AHEAD; a++) {
            let row = m0 + a * SLICES;
            //#unroll
            for (var p = 0u; p < NQ; p++) {
                let col = n0 + p * n_step;
                grad[a * NQ + p] = vec4<f32>();
                if row < last && col < params.n {
                    let base = params.dy_offset + row * params.ld_dy;
                    grad[a * NQ + p] = load_dy4(base, col, params.n);
                }
            }
            //#unroll
            for (var q = 0u; q < KQ; q++) {
                let col = k0 + q * k_step;
                inputs[a * KQ + q] = vec4<f32>();
                if row < last && col < params.k {
                    inputs[a * KQ + q] = load_x4(row * params.k, col, params.k);
                }
            }
        }
        //#unroll
        for (var a = 0u; a < AHEAD; a++) {
            //#unroll
            for (var p = 0u; p < NQ; p++) {
                //#unroll
                for (var c = 0u; c < 4u; c++) {
                    //#unroll
                    for (var q = 0u; q < KQ; q++) {
                        acc[(p * 4u + c) * KQ + q] += grad[a * NQ + p][c] * inputs[a * KQ + q];
                    }
                }
            }
        }
    }
    //#unroll
    for (var p = 0u; p < NQ; p++) {
        //#unroll
        for (var q = 0u; q < KQ; q++) {
            workgroupBarrier();
            //#unroll
            for (var c = 0u; c < 4u; c++) {
                slice_sums[(c * SLICES + slice) * WX + lane.x] = acc[(p * 4u + c) * KQ + q];
            }
            workgroupBarrier();
            if slice < 4u {
                add_slices(part, n0 + p * n_step + slice, k0 + q * k_step, lane);
            }
        }
    }
}
