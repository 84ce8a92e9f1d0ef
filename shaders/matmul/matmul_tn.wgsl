//! dW[n,k] (+)= alpha · dY[m,n]ᵀ · X[m,k], or `splits` partial sums over m of it
//!
//! dy: [m, n] f32, rows ld_dy apart · x: [m, k] f32 · dw: [splits, n, k] f32
//! Grid: x and y, folded: one workgroup a tile of (WY·TN) x (WX·TK) outputs; z: the part of m.
//! Shared: none. Needs: nothing beyond core WebGPU.
//!
//! Every thread owns an outer product of TN rows and TK columns and walks over its part of m.

const TN: u32 = 4u;  //#spec rows a thread, a multiple of 4
const TK: u32 = 4u;  //#spec columns a thread, a multiple of 4
const WX: u32 = 8u;  //#spec lanes along k
const WY: u32 = 8u;  //#spec lanes along n
const DY_BINDING: u32 = 1u;
const X_BINDING: u32 = 2u;
const NQ: u32 = TN / 4u;
const KQ: u32 = TK / 4u;

struct Params {
    m: u32,
    n: u32,
    k: u32,
    ld_dy: u32,
    dy_offset: u32,
    splits: u32,
    accumulate: u32,
    alpha: f32,
}

@group(0) @binding(0) var<uniform> params: Params;
//#include "lib/dy_vec4.wgsl"
//#include "lib/x_vec4.wgsl"
@group(0) @binding(3) var<storage, read_write> dw: array<f32>;

// A quad of columns is owned whole where rows are aligned; a quad beyond the last reads the
// first one and is not stored.
fn quad(at: u32, len: u32) -> u32 {
    return select(0u, at, at < len);
}

fn store_quad(base: u32, col: u32, values: vec4<f32>) {
    let at = base + col;
    // Rolled: this is written out for every quad of a thread, and compile time counts.
    for (var c = 0u; c < 4u; c++) {
        if col + c < params.k {
            var value = params.alpha * values[c];
            if params.accumulate == 1u {
                value += dw[at + c];
            }
            dw[at + c] = value;
        }
    }
}

@compute @workgroup_size(WX, WY)
fn matmul_tn(
    @builtin(local_invocation_id) lane: vec3<u32>,
    @builtin(workgroup_id) workgroup: vec3<u32>,
    @builtin(num_workgroups) workgroups: vec3<u32>,
) {
    let tile = workgroup.y * workgroups.x + workgroup.x;
    let tiles_k = (params.k + WX * TK - 1u) / (WX * TK);
    let n0 = (tile / tiles_k * WY + lane.y) * TN;
    let k0 = (tile % tiles_k * WX + lane.x) * TK;
    if n0 >= params.n || k0 >= params.k {
        return;
    }
    let span = (params.m + params.splits - 1u) / params.splits;
    let first = min(workgroup.z * span, params.m);
    let last = min(first + span, params.m);
    var acc: array<vec4<f32>, TN * KQ>;
    for (var row = first; row < last; row++) {
        var inputs: array<vec4<f32>, KQ>;
        //#unroll
        for (var q = 0u; q < KQ; q++) {
            inputs[q] = load_x4(row * params.k, quad(k0 + q * 4u, params.k), params.k);
        }
        let base = params.dy_offset + row * params.ld_dy;
        //#unroll
        for (var p = 0u; p < NQ; p++) {
            let grad = load_dy4(base, quad(n0 + p * 4u, params.n), params.n);
            //#unroll
            for (var c = 0u; c < 4u; c++) {
                //#unroll
                for (var q = 0u; q < KQ; q++) {
                    acc[(p * 4u + c) * KQ + q] += grad[c] * inputs[q];
                }
            }
        }
    }
    let part = workgroup.z * params.n * params.k;
    //#unroll
    for (var r = 0u; r < TN; r++) {
        //#unroll
        for (var q = 0u; q < KQ; q++) {
            if n0 + r < params.n {
                store_quad(part + (n0 + r) * params.k, k0 + q * 4u, acc[r * KQ + q]);
            }
        }
    }
}
