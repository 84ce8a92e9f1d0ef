//! out[i] (+)= alpha · sum_p partials[p·len + i]
//!
//! partials: [parts, len] f32 · out: [len] f32
//! Grid: one thread an element, folded over y. Shared: none. Needs: nothing beyond core WebGPU.

const WG: u32 = 64u;

struct Params {
    parts: u32,
    len: u32,
    accumulate: u32,
    alpha: f32,
}

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> partials: array<f32>;
@group(0) @binding(2) var<storage, read_write> out: array<f32>;

@compute @workgroup_size(WG)
fn sum_partials(
    @builtin(local_invocation_index) lane: u32,
    @builtin(workgroup_id) workgroup: vec3<u32>,
    @builtin(num_workgroups) workgroups: vec3<u32>,
) {
    let i = (workgroup.y * workgroups.x + workgroup.x) * WG + lane;
    if i >= params.len {
        return;
    }
    var sum = 0.0;
    for (var part = 0u; part < params.parts; part++) {
        sum += partials[part * params.len + i];
    }
    sum *= params.alpha;
    if params.accumulate == 1u {
        sum += out[i];
    }
    out[i] = sum;
}
