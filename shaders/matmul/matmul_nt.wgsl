//! Y[m,n] (+)= alpha · X[m,k] · W[n,k]ᵀ
//!
//! x: [m, k] f32, rows ld_in apart · w: [n, k] in any weight format · y: [m, n] f32, rows ld_out
//! apart. Grid: one workgroup a tile of outputs whose size the body chooses, m fastest, folded over
//! y. Shared: by body, what is above 16 KiB stated by its variant. Needs: nothing beyond core
//! WebGPU, except `lib/nt_tile.wgsl` with shared rows and `lib/nt_subgroup.wgsl`.
//!
//! How is the body's: `lib/nt_tile.wgsl` says what a body is.

const X_BINDING: u32 = 1u;

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
//#include "lib/x_vec4.wgsl"
//#include "lib/stored_one.wgsl"
@group(0) @binding(2) var<storage, read_write> y: array<Stored>;
//#include "weights/f32.wgsl"

fn w_rows() -> u32 {
    return params.n;
}

fn w_cols() -> u32 {
    return params.k;
}

// Takes one sum over k.
fn store_y(row: u32, channel: u32, product: Stored) {
    let at = (params.out_offset + row * params.ld_out + channel) / STORED;
    var value = params.alpha * product;
    if params.accumulate == 1u {
        value += y[at];
    }
    y[at] = value;
}

//#include "lib/nt_tile.wgsl"

@compute @workgroup_size(WX, WY)
fn matmul_nt(
    @builtin(local_invocation_id) lane: vec3<u32>,
    @builtin(workgroup_id) workgroup: vec3<u32>,
    @builtin(num_workgroups) workgroups: vec3<u32>,
) {
    multiply(lane.xy, workgroup.y * workgroups.x + workgroup.x);
}
