//! logits[r,c] := scale · (exp(z[r,c] - max) / sum - [c = targets[r]]), 0 in ignored rows
//!
//! logits: [rows, ld] f32, columns 0..cols are vocabulary ids col0..col0+cols, overwritten
//! targets: [tokens] u32 · stats: [tokens, 3] f32 (max, sum, -) · token of row r: row0 + r
//! Grid: one workgroup a row. Shared: none. Needs: nothing beyond core WebGPU.

//#include "lib/scalar.wgsl"

const WG: u32 = 64u;  //#spec power of two, 8..=256
const IGNORE: u32 = 0xffffffffu;

struct Params {
    rows: u32,
    cols: u32,
    ld: u32,
    row0: u32,
    col0: u32,
    scale: f32,
}

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read_write> logits: array<Element>;
@group(0) @binding(2) var<storage, read> targets: array<u32>;
@group(0) @binding(3) var<storage, read> stats: array<f32>;

@compute @workgroup_size(WG)
fn cross_entropy_backward(
    @builtin(local_invocation_index) lane: u32,
    @builtin(workgroup_id) workgroup: vec3<u32>,
    @builtin(num_workgroups) workgroups: vec3<u32>,
) {
    let row = workgroup.y * workgroups.x + workgroup.x;
    if row >= params.rows {
        return;
    }
    let base = row * params.ld / LANES;
    let token = params.row0 + row;
    let id = targets[token];
    // Selected, not multiplied by zero: an ignored row may hold anything, infinities included.
    if id == IGNORE {
        for (var c = lane; c < params.cols / LANES; c += WG) {
            logits[base + c] = Element(0.0);
        }
        return;
    }
    let row_max = stats[3u * token];
    let inverse_sum = 1.0 / stats[3u * token + 1u];
    for (var c = lane; c < params.cols / LANES; c += WG) {
        let probability = exp(logits[base + c] - row_max) * inverse_sum;
        // Wraps for ids below.
        let hit = lanes_unit(id - params.col0 - c * LANES);
        logits[base + c] = params.scale * (probability - hit);
    }
}
