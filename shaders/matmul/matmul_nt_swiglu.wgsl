//! hidden[m,n] = silu(gate[m,n]) · (X[m,k] · W[n,k]ᵀ),  silu(g) = g · sigmoid(g)
//!
//! x: [m, k] f32 · w: [n, k] in any weight format · gate, hidden: [m, n] f32, rows ld_out apart
//! Grid: one workgroup a tile of outputs whose size the body chooses, m fastest, folded over y.
//! Shared: by body, what is above 16 KiB stated by its variant. Needs: as `matmul_nt`.
//!
//! How: the bodies of `matmul_nt`, with SwiGLU where they store: nothing is read again, and the up
//! projection itself is written only with `lib/up_kept.wgsl`.

const X_BINDING: u32 = 1u;
const GATE_BINDING: u32 = 4u;  //#spec the first binding behind those of the weights

struct Params {
    m: u32,
    n: u32,
    k: u32,
    ld_in: u32,
    in_offset: u32,
    ld_out: u32,
    out_offset: u32,
    keep_up: u32,
}

@group(0) @binding(0) var<uniform> params: Params;
//#include "lib/x_vec4.wgsl"
//#include "lib/stored_one.wgsl"
@group(0) @binding(2) var<storage, read_write> hidden: array<Stored>;
//#include "weights/f32.wgsl"
@group(0) @binding(GATE_BINDING) var<storage, read> gate: array<Stored>;
//#include "lib/up_dropped.wgsl"

fn w_rows() -> u32 {
    return params.n;
}

fn w_cols() -> u32 {
    return params.k;
}

// Takes one sum over k.
fn store_y(row: u32, channel: u32, product: Stored) {
    let at = (params.out_offset + row * params.ld_out + channel) / STORED;
    let g = gate[at];
    // exp of a negative number only: WGSL may assume that no infinity occurs.
    let small = exp(-abs(g));
    let sigmoid = select(small, Stored(1.0), g >= Stored(0.0)) / (1.0 + small);
    hidden[at] = g * sigmoid * product;
    keep_up(at, product);
}

//#include "lib/nt_tile.wgsl"

@compute @workgroup_size(WX, WY)
fn matmul_nt_swiglu(
    @builtin(local_invocation_id) lane: vec3<u32>,
    @builtin(workgroup_id) workgroup: vec3<u32>,
    @builtin(num_workgroups) workgroups: vec3<u32>,
) {
    multiply(lane.xy, workgroup.y * workgroups.x + workgroup.x);
}
