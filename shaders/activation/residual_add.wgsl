//! out[i] = a[i] + b[i]
//!
//! a, b, out: [count] f32
//! Grid: one invocation per LANES elements. Shared: none. Needs: nothing beyond core WebGPU.

//#include "lib/scalar.wgsl"

const WG: u32 = 256u;

struct Params {
    count: u32,
}

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> a: array<Element>;
@group(0) @binding(2) var<storage, read> b: array<Element>;
@group(0) @binding(3) var<storage, read_write> out: array<Element>;

@compute @workgroup_size(WG)
fn residual_add(
    @builtin(local_invocation_index) lane: u32,
    @builtin(workgroup_id) workgroup: vec3<u32>,
    @builtin(num_workgroups) workgroups: vec3<u32>,
) {
    let i = (workgroup.y * workgroups.x + workgroup.x) * WG + lane;
    if i >= params.count / LANES {
        return;
    }
    out[i] = a[i] + b[i];
}
