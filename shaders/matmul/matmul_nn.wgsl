//! dX[m,k] (+)= alpha · dY[m,n] · W[n,k]
//!
//! dy: [m, n] f32, rows ld_in apart · w: [n, k] in any weight format · dx: [m, k] f32, rows ld_out
//! apart. Grid: one workgroup a tile of outputs whose size the body chooses, m fastest, folded
//! over y. Shared: up to 16 KiB, by body. Needs: nothing beyond core WebGPU, except
//! `lib/nn_tile.wgsl` with shared rows.
//!
//! How is the body's: `lib/nn_tile.wgsl` says what a body is. All walk over n, so that the same
//! packing serves this product and `matmul_nt`: no transposed copy of the weights.

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
//#include "lib/stored_one.wgsl"
@group(0) @binding(2) var<storage, read_write> dx: array<Stored>;
//#include "weights/f32.wgsl"

fn w_rows() -> u32 {
    return params.n;
}

fn w_cols() -> u32 {
    return params.k;
}

// Takes one sum over n.
fn store_dx(row: u32, col: u32, product: Stored) {
    let at = (params.out_offset + row * params.ld_out + col) / STORED;
    var value = params.alpha * product;
    if params.accumulate == 1u {
        value += dx[at];
    }
    dx[at] = value;
}

//#include "lib/nn_tile.wgsl"

@compute @workgroup_size(WX, WY)
fn matmul_nn(
    @builtin(local_invocation_id) lane: vec3<u32>,
    @builtin(workgroup_id) workgroup: vec3<u32>,
    @builtin(num_workgroups) workgroups: vec3<u32>,
) {
    multiply(lane.xy, workgroup.y * workgroups.x + workgroup.x);
}
