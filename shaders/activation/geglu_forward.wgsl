//! out[i] = gelu(gate[i]) · up[i],  gelu(g) = g · sigmoid(2·sqrt(2/π)·(g + 0.044715·g³))
//!
//! gate, up, out: [count] f32
//! Grid: one invocation per LANES elements. Shared: none. Needs: nothing beyond core WebGPU.

//#include "lib/scalar.wgsl"
//#include "lib/gelu.wgsl"

const WG: u32 = 256u;

struct Params {
    count: u32,
}

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> gate: array<Element>;
@group(0) @binding(2) var<storage, read> up: array<Element>;
@group(0) @binding(3) var<storage, read_write> out: array<Element>;

@compute @workgroup_size(WG)
fn geglu_forward(
    @builtin(local_invocation_index) lane: u32,
    @builtin(workgroup_id) workgroup: vec3<u32>,
    @builtin(num_workgroups) workgroups: vec3<u32>,
) {
    let i = (workgroup.y * workgroups.x + workgroup.x) * WG + lane;
    if i >= params.count / LANES {
        return;
    }
    let g = gate[i];
    let u = gelu_argument(gelu_clamp(g));
    // exp of a negative number only: WGSL may assume that no infinity occurs.
    let small = exp(-abs(u));
    let sigmoid = select(small, Element(1.0), u >= Element(0.0)) / (1.0 + small);
    out[i] = g * sigmoid * up[i];
}
