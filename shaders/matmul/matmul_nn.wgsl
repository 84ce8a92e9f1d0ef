//! dX[m,k] (+)= alpha · dY[m,n] · W[n,k]
//!
//! dy: [m, n] f32, rows ld_in apart · w: [n, k] in any weight format · dx: [m, k] f32, rows ld_out
//! apart. Grid: one workgroup a tile of (WY·TM) rows x WX blocks of W_STEP columns, m fastest,
//! folded over y. Shared: none. Needs: nothing beyond core WebGPU.
//!
//! Every thread owns TM rows of one block of columns and walks over n, so that the same packing
//! serves this product and `matmul_nt`: no transposed copy of the weights.

const TM: u32 = 4u;  //#spec rows a thread
const WX: u32 = 4u;  //#spec lanes along k
const WY: u32 = 16u;  //#spec lanes along m
const SHARE: u32 = 1u;  //#spec rows that the lanes of a subgroup load for each other, 1 or WX
const DY_BINDING: u32 = 1u;

struct Params {
    m: u32,
    n: u32,
    k: u32,
    ld_in: u32,
    in_offset: u32,
    ld_out: u32,
    out_offset: u32,
    accumulate: u32,
    alpha: f32,
    pad0: u32,
    pad1: u32,
    pad2: u32,
}

@group(0) @binding(0) var<uniform> params: Params;
//#include "lib/dy_vec4.wgsl"
@group(0) @binding(2) var<storage, read_write> dx: array<f32>;
//#include "weights/f32.wgsl"

const PARTS: u32 = W_STEP / 8u;

fn w_rows() -> u32 {
    return params.n;
}

fn w_cols() -> u32 {
    return params.k;
}

fn store_quad(row: u32, col: u32, values: vec4<f32>) {
    let at = params.out_offset + row * params.ld_out + col;
    // Rolled: this is written out for every quad of a thread, and compile time counts.
    for (var c = 0u; c < 4u; c++) {
        if col + c < params.k {
            var value = params.alpha * values[c];
            if params.accumulate == 1u {
                value += dx[at + c];
            }
            dx[at + c] = value;
        }
    }
}

@compute @workgroup_size(WX, WY)
fn matmul_nn(
    @builtin(local_invocation_id) lane: vec3<u32>,
    @builtin(workgroup_id) workgroup: vec3<u32>,
    @builtin(num_workgroups) workgroups: vec3<u32>,
) {
    let tile = workgroup.y * workgroups.x + workgroup.x;
    let tiles_m = (params.m + WY * TM - 1u) / (WY * TM);
    let row0 = (tile % tiles_m * WY + lane.y) * TM;
    let b = tile / tiles_m * WX + lane.x;
    // Lanes that load for others stay.
    if row0 >= params.m || (SHARE == 1u && b * W_STEP >= params.k) {
        return;
    }
    let b_load = min(b, (params.k - 1u) / W_STEP);
    // Rows beyond the last are computed from the last and not stored.
    var base: array<u32, TM / SHARE>;
    //#unroll
    for (var h = 0u; h < TM / SHARE; h++) {
        let row = min(row0 + h * SHARE + lane.x % SHARE, params.m - 1u);
        base[h] = params.in_offset + row * params.ld_in;
    }
    var acc: array<mat2x4<f32>, TM * PARTS>;
    for (var n0 = 0u; n0 < params.n; n0 += 4u) {
        var grad: array<vec4<f32>, TM>;
        //#unroll
        for (var h = 0u; h < TM / SHARE; h++) {
            let held = load_dy4(base[h], n0, params.n);
            //#unroll
            for (var s = 0u; s < SHARE; s++) {
                //#include "lib/row_own.wgsl"
                grad[h * SHARE + s] = row;
            }
        }
        //#unroll
        for (var step = 0u; step < 4u; step++) {
            // Where n is no multiple of 4, its last row again, times a gradient that reads as 0.
            let block = load_w_block(min(n0 + step, params.n - 1u), b_load);
            //#unroll
            for (var part = 0u; part < PARTS; part++) {
                let weights = w_part(block, part);
                //#unroll
                for (var i = 0u; i < TM; i++) {
                    acc[i * PARTS + part] += weights * grad[i][step];
                }
            }
        }
    }
    //#unroll
    for (var i = 0u; i < TM; i++) {
        //#unroll
        for (var part = 0u; part < PARTS; part++) {
            if row0 + i < params.m {
                let col = b * W_STEP + part * 8u;
                store_quad(row0 + i, col, acc[i * PARTS + part][0]);
                store_quad(row0 + i, col + 4u, acc[i * PARTS + part][1]);
            }
        }
    }
}
