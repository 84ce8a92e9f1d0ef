//! dv[j,g,:] = Σ_{i,h} p[i,j] · d_out[i,h,:],  dk[j,g,:] = scale · Σ_{i,h} ds[i,j] · q[i,h,:],
//! over the queries i that attend key j and the heads h of the group of g
//!
//! p = exp(scale · q·k − lse[i,h]),  ds = p · (d_out[i,h,:] · v[j,g,:] − delta[i,h])
//!
//! q, d_out: [batch · q_len, heads, head_dim] f32 · k, v, dk, dv: [batch · kv_stride, kv_heads,
//! head_dim] f32 · stats: [batch · q_len, heads, 2] f32, lse and delta · the rest as in
//! attention_forward
//! Grid: x and y, folded, as the body says. Shared: up to 16 KiB, by body. Needs: nothing beyond
//! core WebGPU.

//#include "lib/scalar.wgsl"
//#include "lib/attention.wgsl"

const HEAD_DIM: u32 = 64u;  //#spec params.head_dim
const CHUNKS: u32 = HEAD_DIM / LANES;

struct Params {
    batch: u32,
    q_len: u32,
    kv_len: u32,
    kv_stride: u32,
    position0: u32,
    heads: u32,
    kv_heads: u32,
    head_dim: u32,
    window: u32,
    scale: f32,
}

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> q: array<Element>;
@group(0) @binding(2) var<storage, read> k: array<Element>;
@group(0) @binding(3) var<storage, read> v: array<Element>;
@group(0) @binding(4) var<storage, read> segments: array<vec2<u32>>;
@group(0) @binding(5) var<storage, read> stats: array<vec2<f32>>;
@group(0) @binding(6) var<storage, read> d_out: array<Element>;
@group(0) @binding(7) var<storage, read_write> dk: array<Element>;
@group(0) @binding(8) var<storage, read_write> dv: array<Element>;

//#include "lib/attention_backward_kv_own.wgsl"

@compute @workgroup_size(WG)
fn attention_backward_kv(
    @builtin(local_invocation_index) lane: u32,
    @builtin(workgroup_id) workgroup: vec3<u32>,
    @builtin(num_workgroups) workgroups: vec3<u32>,
) {
    attend(lane, workgroup.y * workgroups.x + workgroup.x);
}
