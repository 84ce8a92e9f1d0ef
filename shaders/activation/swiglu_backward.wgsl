//! out = silu(gate) · up, backward: gate becomes d_gate and up becomes d_up
//!
//! d_up = d_out · silu(g),  d_gate = d_out · up · s · (1 + g · (1 − s)),  s = sigmoid(g)
//!
//! d_out, gate, up: [count] f32
//! Grid: one invocation per LANES elements. Shared: none. Needs: nothing beyond core WebGPU.

//#include "lib/scalar.wgsl"

const WG: u32 = 256u;

struct Params {
    count: u32,
}

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> d_out: array<Element>;
@group(0) @binding(2) var<storage, read_write> gate: array<Element>;
@group(0) @binding(3) var<storage, read_write> up: array<Element>;

@compute @workgroup_size(WG)
fn swiglu_backward(
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
    // exp of a negative number only: WGSL may assume that no infinity occurs. The complement is
    // computed by itself, because 1 - sigmoid cancels for large g.
    let small = exp(-abs(g));
    let large = 1.0 / (1.0 + small);
    let positive = g >= Element(0.0);
    let sigmoid = select(small * large, large, positive);
    let complement = select(large, small * large, positive);
    gate[i] = d * u * sigmoid * (1.0 + g * complement);
    up[i] = d * g * sigmoid;
}
