//! y[i] = sum_j v_j, v_j = x[i] + j for j in 0..12, then steps times v_j = a·v_j + b
//!
//! x: [count] f32 · y: [count] f32 · steps: a multiple of 16
//! Measures how fast a device multiplies and adds: twelve chains that wait for nobody but
//! themselves, in registers. Their sum is stored, so that none of them can be left out.
//! Grid: one invocation an element, folded over y. Shared: none. Needs: nothing beyond core WebGPU.

const WG: u32 = 64u;
const FUSED: u32 = 1u; //#spec

struct Params {
    count: u32,
    steps: u32,
    a: f32,
    b: f32,
}

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> x: array<f32>;
@group(0) @binding(2) var<storage, read_write> y: array<f32>;

fn next(v: vec4<f32>, a: vec4<f32>, b: vec4<f32>) -> vec4<f32> {
    if FUSED == 1u {
        return fma(v, a, b);
    }
    return v * a + b;
}

@compute @workgroup_size(WG)
fn fma_rate(
    @builtin(local_invocation_index) lane: u32,
    @builtin(workgroup_id) workgroup: vec3<u32>,
    @builtin(num_workgroups) workgroups: vec3<u32>,
) {
    let i = (workgroup.y * workgroups.x + workgroup.x) * WG + lane;
    if i >= params.count {
        return;
    }
    let a = vec4(params.a);
    let b = vec4(params.b);
    var v0 = x[i] + vec4(0.0, 1.0, 2.0, 3.0);
    var v1 = v0 + 4.0;
    var v2 = v0 + 8.0;
    for (var step = 0u; step < params.steps; step += 16u) {
        //#unroll
        for (var u = 0u; u < 16u; u++) {
            v0 = next(v0, a, b);
            v1 = next(v1, a, b);
            v2 = next(v2, a, b);
        }
    }
    y[i] = dot(v0 + v1 + v2, vec4(1.0));
}
