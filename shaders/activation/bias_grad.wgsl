//! partials[p,c] = Σ dy[r,c] over the p-th block of ceil(rows / parts) rows
//!
//! dy: [rows, cols] f32 · partials: [parts, cols] f32
//! Grid: one invocation a column of a part. Shared: none. Needs: nothing beyond core WebGPU.

const WG: u32 = 64u;

struct Params {
    rows: u32,
    cols: u32,
    parts: u32,
}

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> dy: array<f32>;
@group(0) @binding(2) var<storage, read_write> partials: array<f32>;

@compute @workgroup_size(WG)
fn bias_grad(
    @builtin(local_invocation_index) lane: u32,
    @builtin(workgroup_id) workgroup: vec3<u32>,
    @builtin(num_workgroups) workgroups: vec3<u32>,
) {
    let i = (workgroup.y * workgroups.x + workgroup.x) * WG + lane;
    if i >= params.parts * params.cols {
        return;
    }
    let part = i / params.cols;
    let col = i - part * params.cols;
    let block = (params.rows + params.parts - 1u) / params.parts;
    let end = min((part + 1u) * block, params.rows);
    var sum = 0.0;
    for (var r = part * block; r < end; r++) {
        sum += dy[r * params.cols + col];
    }
    partials[i] = sum;
}
