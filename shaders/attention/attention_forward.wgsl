//! out[i,h,:] = Σ_j softmax_j(scale · q[i,h,:] · k[j,g,:]) · v[j,g,:]
//! lse[i,h] = ln Σ_j exp(scale · q[i,h,:] · k[j,g,:])
//!
//! q, out: [batch · q_len, heads, head_dim] f32 · k, v: [batch · kv_stride, kv_heads, head_dim] f32
//! · lse: [batch · q_len, heads] f32 · g = h / (heads / kv_heads); query i stands at position
//! position0 + i and attends the keys of its segment up to it (with a window, the last ones only).
//! segments: [batch · q_len, 2] u32, first key and end query of each query's segment
//!
//! Softmax online: a running maximum, a running sum and an accumulator per query, rescaled when
//! the maximum grows, so no score reaches memory.
//! Grid: x and y, folded, as the body says. Shared: up to 16 KiB, by body. Needs: nothing beyond
//! core WebGPU.

//#include "lib/scalar.wgsl"
//#include "lib/attention.wgsl"

const HEAD_DIM: u32 = 64u;  //#spec params.head_dim
const CHUNKS: u32 = HEAD_DIM / LANES;
// Finite, because WGSL may assume that no infinity occurs.
const LOWEST: f32 = -1e30;

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
@group(0) @binding(5) var<storage, read_write> out: array<Element>;
@group(0) @binding(6) var<storage, read_write> lse: array<f32>;

//#include "lib/attention_forward_own.wgsl"

@compute @workgroup_size(WG)
fn attention_forward(
    @builtin(local_invocation_index) lane: u32,
    @builtin(workgroup_id) workgroup: vec3<u32>,
    @builtin(num_workgroups) workgroups: vec3<u32>,
) {
    attend(lane, workgroup.y * workgroups.x + workgroup.x);
}
