//! out[t,:] = scale · W[ids[t] − row0, :] for ids in row0..row0+rows, the shard of the table that
//! W is
//!
//! ids: [tokens] u32 · out: [tokens, cols] f32, rows of other ids untouched · W: [rows, cols] in
//! any format
//! Grid: one invocation an element. Shared: none. Needs: nothing beyond core WebGPU.

//#include "weights/element_f32.wgsl"

const WG: u32 = 256u;

struct Params {
    tokens: u32,
    cols: u32,
    row0: u32,
    rows: u32,
    scale: f32,
}

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> ids: array<u32>;
@group(0) @binding(2) var<storage, read_write> out: array<f32>;

@compute @workgroup_size(WG)
fn embedding_gather(
    @builtin(local_invocation_index) lane: u32,
    @builtin(workgroup_id) workgroup: vec3<u32>,
    @builtin(num_workgroups) workgroups: vec3<u32>,
) {
    let i = (workgroup.y * workgroups.x + workgroup.x) * WG + lane;
    if i >= params.tokens * params.cols {
        return;
    }
    let token = i / params.cols;
    // Ids below row0 wrap around and are out of range too.
    let row = ids[token] - params.row0;
    if row < params.rows {
        out[i] = params.scale * load_w(row, i - token * params.cols);
    }
}
