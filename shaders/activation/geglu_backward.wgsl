//! out = gelu(gate) · up, backward: gate becomes d_gate and up becomes d_up
//!
//! d_up = d_out · g · s,  d_gate = d_out · up · s · (1 + g · (1 − s) · z'),
//! s = sigmoid(z), z = 2·sqrt(2/π)·(g + 0.044715·g³)
//!
//! d_out, gate, up: [count] f32
//! Grid: one invocation per LANES elements. Shared: none. Needs: nothing beyond core WebGPU.

//#include "lib/scalar.wgsl"
//#include "lib/gelu.wgsl"

const WG: u32 = 256u;

struct Params {
    count: u32,
}

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> d_out: array<Element>;
@group(0) @binding(2) var<storage, read_write> gate: array<Element>;
@group(0) @binding(3) var<storage, read_write> up: array<Element>;

@compute @workgroup_size(WG)
fn geglu_backward(
    @builtin(local_invocation_index) lane: u32,
    @builtin(workgroup_id) workgroup: vec3<u32>,
    @builtin(num_workgroups) workgroups: vec3<u32>,
) {
    let i = (workgroup.y * workgroups.x + workgroup.x) * WG + lane;
    if i >= params.count / LANES {
        return;
    }
    let d = d_out[i];
    let g = gate[i];
    let u = up[i];
    let bounded = gelu_clamp(g);
    let z = gelu_argument(bounded);
    // exp of a negative number only: WGSL may assume that no infinity occurs. The complement is
    // computed by itself, because 1 - sigmoid cancels for large z.
    let small = exp(-abs(z));
    let large = 1.0 / (1.0 + small);
    let positive = z >= Element(0.0);
    let sigmoid = select(small * large, large, positive);
    let complement = select(large, small * large, positive);
    gate[i] = d * u * sigmoid * (1.0 + bounded * complement * gelu_slope(bounded));
    up[i] = d * g * sigmoid;
}
