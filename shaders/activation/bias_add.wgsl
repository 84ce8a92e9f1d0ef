//! y[r,c] += b[c]
//!
//! b: [cols] f32 · y: [rows, cols] f32 from offset, updated in place
//! Grid: one invocation per LANES elements. Shared: none. Needs: nothing beyond core WebGPU.

//#include "lib/scalar.wgsl"

const WG: u32 = 256u;

struct Params {
    rows: u32,
    cols: u32,
    offset: u32,
}

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> b: array<Element>;
@group(0) @binding(2) var<storage, read_write> y: array<Element>;

@compute @workgroup_size(WG)
fn bias_add(
    @builtin(local_invocation_index) lane: u32,
    @builtin(workgroup_id) workgroup: vec3<u32>,
    @builtin(num_workgroups) workgroups: vec3<u32>,
) {
    let i = (workgroup.y * workgroups.x + workgroup.x) * WG + lane;
    let cols = params.cols / LANES;
    if i >= params.rows * cols {
        return;
    }
    y[params.offset / LANES + i] += b[i % cols];
}
