//! partials[part0 + i] = sum of x[j]² over the slice i of `parts` equal slices of 0..count
//!
//! x: [count] f32 · partials: [≥ part0 + parts] f32
//! Grid: one workgroup a part. Shared: 4·WG bytes. Needs: nothing beyond core WebGPU.

//#include "lib/reduce.wgsl"

const WG: u32 = 256u;  //#spec power of two, 8..=256

struct Params {
    count: u32,
    part0: u32,
    parts: u32,
}

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> x: array<f32>;
@group(0) @binding(2) var<storage, read_write> partials: array<f32>;

@compute @workgroup_size(WG)
fn sum_squares(
    lane: Lane,
    @builtin(workgroup_id) workgroup: vec3<u32>,
    @builtin(num_workgroups) workgroups: vec3<u32>,
) {
    let part = workgroup.y * workgroups.x + workgroup.x;
    if part >= params.parts {
        return;
    }
    let slice = (params.count + params.parts - 1u) / params.parts;
    let start = part * slice;
    let end = min(start + slice, params.count);
    var squares = 0.0;
    for (var i = start + lane.index; i < end; i += WG) {
        squares += x[i] * x[i];
    }
    let total = workgroup_sum(squares, lane);
    if lane.index == 0u {
        partials[params.part0 + part] = total;
    }
}
