//! dw[row,:] += scale · Σ dy[order[s],:] over s in start..end, for each segment (row, start, end)
//!
//! segments: [segments, 3] u32, each row at most once · order: [tokens] u32 ·
//! dy: [tokens, cols] f32 · dw: [rows, cols] f32
//! Grid: one invocation per LANES columns of a segment. Shared: none. Needs: nothing beyond core
//! WebGPU.

//#include "lib/scalar.wgsl"

const WG: u32 = 64u;

struct Params {
    segments: u32,
    cols: u32,
    tokens: u32,
    rows: u32,
    scale: f32,
}

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> segments: array<u32>;
@group(0) @binding(2) var<storage, read> order: array<u32>;
@group(0) @binding(3) var<storage, read> dy: array<Element>;
@group(0) @binding(4) var<storage, read_write> dw: array<Element>;

@compute @workgroup_size(WG)
fn embedding_scatter(
    @builtin(local_invocation_index) lane: u32,
    @builtin(workgroup_id) workgroup: vec3<u32>,
    @builtin(num_workgroups) workgroups: vec3<u32>,
) {
    let i = (workgroup.y * workgroups.x + workgroup.x) * WG + lane;
    let cols = params.cols / LANES;
    if i >= params.segments * cols {
        return;
    }
    let segment = i / cols;
    let col = i - segment * cols;
    let end = segments[3u * segment + 2u];
    var sum = Element(0.0);
    for (var s = segments[3u * segment + 1u]; s < end; s++) {
        sum += dy[order[s] * cols + col];
    }
    dw[segments[3u * segment] * cols + col] += params.scale * sum;
}
