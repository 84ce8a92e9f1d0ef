//! stats[r,h] = (lse[r,h], delta[r,h]), delta[r,h] = Σ_d out[r,h,d] · d_out[r,h,d]: what the
//! softmax's backward needs of a row, in one buffer, since that pass binds as many as there may be
//!
//! out, d_out: [rows, heads, head_dim] f32 · lse: [rows, heads] f32 · stats: [rows, heads, 2] f32
//! Grid: one invocation a row and head. Shared: none. Needs: nothing beyond core WebGPU.

//#include "lib/scalar.wgsl"

const WG: u32 = 64u;

struct Params {
    rows: u32,
    heads: u32,
    head_dim: u32,
}

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> out: array<Element>;
@group(0) @binding(2) var<storage, read> d_out: array<Element>;
@group(0) @binding(3) var<storage, read> lse: array<f32>;
@group(0) @binding(4) var<storage, read_write> stats: array<vec2<f32>>;

@compute @workgroup_size(WG)
fn attention_delta(
    @builtin(local_invocation_index) lane: u32,
    @builtin(workgroup_id) workgroup: vec3<u32>,
    @builtin(num_workgroups) workgroups: vec3<u32>,
) {
    let i = (workgroup.y * workgroups.x + workgroup.x) * WG + lane;
    if i >= params.rows * params.heads {
        return;
    }
    let chunks = params.head_dim / LANES;
    var sum = 0.0;
    for (var c = i * chunks; c < (i + 1u) * chunks; c++) {
        sum += lanes_dot(out[c], d_out[c]);
    }
    stats[i] = vec2(lse[i], sum);
}
