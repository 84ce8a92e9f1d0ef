//! A body of products dYᵀ·X: every thread owns an outer product of TN rows and TK columns and walks
//! over its part of m, without workgroup memory.
//!
//! All bodies `lib/tn_*.wgsl` define the same names: `WX` and `WY`, the shape of a workgroup, and
//! `multiply(lane, tile, part)`, which computes the outputs of one workgroup over one part of m
//! and hands them to `store_quad(part, n, k, products)`. The includer gives that, `load_dy4` and
//! `load_x4`.

const TN: u32 = 4u;  //#spec rows a thread, a multiple of 4
const TK: u32 = 4u;  //#spec columns a thread, a multiple of 4
const WX: u32 = 8u;  //#spec lanes along k
const WY: u32 = 8u;  //#spec lanes along n
const SHARE: u32 = 1u;  //#spec quads that the lanes of a subgroup load for each other, 1 or WX
const AHEAD: u32 = 4u;  //#spec quads of gradients loaded at once, a multiple of 4 and SHARE
const KQ: u32 = TK / 4u;

// A quad of columns is owned whole where rows are aligned; a quad beyond the last reads the
// first one and is not stored.
fn quad(at: u32, len: u32) -> u32 {
    return select(0u, at, at < len);
}

fn multiply(lane: vec2<u32>, tile: u32, part: u32) {
    let tiles_k = (params.k + WX * TK - 1u) / (WX * TK);
    let n0 = (tile / tiles_k * WY + lane.y) * TN;
    let k0 = (tile % tiles_k * WX + lane.x) * TK;
    // Lanes that load for others stay.
    if n0 >= params.n || (SHARE == 1u && k0 >= params.k) {
        return;
    }
    let span = (params.m + params.splits - 1u) / params.splits;
    let first = min(part * span, params.m);
    let last = min(first + span, params.m);
    var acc: array<vec4<f32>, TN * KQ>;
    // Four rows a step: drivers on the CPU keep the sums in memory. A row behind the last is the
    // last one again, times a gradient of 0.
    for (var step = first; step < last; step += 4u) {
        var inputs: array<vec4<f32>, 4u * KQ>;
        //#unroll
        for (var u = 0u; u < 4u; u++) {
            //#unroll
            for (var q = 0u; q < KQ; q++) {
                let base = min(step + u, last - 1u) * params.k;
                inputs[u * KQ + q] = load_x4(base, quad(k0 + q * 4u, params.k), params.k);
            }
        }
        //#unroll
        for (var g = 0u; g < TN / AHEAD; g++) {
            // Of each four one for each row: four columns of dY.
            var grad: array<vec4<f32>, AHEAD>;
            //#unroll
            for (var h = 0u; h < AHEAD / SHARE; h++) {
                let mine = h * SHARE + lane.x % SHARE;
                let row_at = step + mine % 4u;
                let base = params.dy_offset + min(row_at, last - 1u) * params.ld_dy;
                let col = quad(n0 + g * AHEAD + mine / 4u * 4u, params.n);
                let held = select(vec4(0.0), load_dy4(base, col, params.n), row_at < last);
                //#unroll
                for (var s = 0u; s < SHARE; s++) {
                    //#paste "lib/row_own.wgsl"
                    grad[h * SHARE + s] = row;
                }
            }
            //#unroll
            for (var r = 0u; r < AHEAD; r++) {
                const four = r / 4u * 4u;
                const c = r % 4u;
                //#unroll
                for (var q = 0u; q < KQ; q++) {
                    acc[(g * AHEAD + r) * KQ + q] += grad[four][c] * inputs[q]
                        + grad[four + 1u][c] * inputs[KQ + q]
                        + grad[four + 2u][c] * inputs[2u * KQ + q]
                        + grad[four + 3u][c] * inputs[3u * KQ + q];
                }
            }
        }
    }
    //#unroll
    for (var r = 0u; r < TN; r++) {
        //#unroll
        for (var q = 0u; q < KQ; q++) {
            if n0 + r < params.n {
                store_quad(part, n0 + r, k0 + q * 4u, acc[r * KQ + q]);
            }
        }
    }
}
