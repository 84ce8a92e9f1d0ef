//! stats[r] = (max_c z[r,c], sum_c exp(z[r,c] - max), z[r,targets[r]]), over chunks of columns,
//! z = scale · logits
//!
//! logits: [rows, ld] f32, columns 0..cols are vocabulary ids col0..col0+cols
//! targets: [tokens] u32 · stats: [tokens, 3] f32 · token of row r: row0 + r
//! Grid: one workgroup a row. Shared: 4·WG bytes. Needs: nothing beyond core WebGPU.

//#include "lib/reduce.wgsl"
//#include "lib/scalar.wgsl"

const WG: u32 = 64u;  //#spec power of two, 8..=256

// Below every logit, and finite: WGSL need not support infinities.
const LOWEST: f32 = -3.0e38;

struct Params {
    rows: u32,
    cols: u32,
    ld: u32,
    row0: u32,
    col0: u32,
    first: u32,
    scale: f32,
}

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> logits: array<Element>;
@group(0) @binding(2) var<storage, read> targets: array<u32>;
@group(0) @binding(3) var<storage, read_write> stats: array<f32>;

@compute @workgroup_size(WG)
fn cross_entropy_forward(
    lane: Lane,
    @builtin(workgroup_id) workgroup: vec3<u32>,
    @builtin(num_workgroups) workgroups: vec3<u32>,
) {
    let row = workgroup.y * workgroups.x + workgroup.x;
    if row >= params.rows {
        return;
    }
    let base = row * params.ld / LANES;
    // Maximum and sum in one pass: the logits are the largest tensor of a step.
    var lane_max = LOWEST;
    var lane_sum = 0.0;
    for (var c = lane.index; c < params.cols / LANES; c += WG) {
        let z = params.scale * logits[base + c];
        let merged = max(lane_max, lanes_max(z));
        lane_sum = lane_sum * exp(lane_max - merged) + lanes_sum(exp(z - merged));
        lane_max = merged;
    }
    var row_max = workgroup_max(lane_max, lane);
    var row_sum = workgroup_sum(lane_sum * exp(lane_max - row_max), lane);
    if lane.index == 0u {
        let token = params.row0 + row;
        let slot = 3u * token;
        let column = targets[token] - params.col0;
        var target_logit = 0.0;
        if params.first == 0u {
            let old_max = stats[slot];
            let merged = max(old_max, row_max);
            row_sum = stats[slot + 1u] * exp(old_max - merged) + row_sum * exp(row_max - merged);
            row_max = merged;
            target_logit = stats[slot + 2u];
        }
        // Wraps for ids below col0, and for the id of ignored rows stays out of range.
        if column < params.cols {
            target_logit = params.scale * lanes_at(logits[base + column / LANES], column % LANES);
        }
        stats[slot] = row_max;
        stats[slot + 1u] = row_sum;
        stats[slot + 2u] = target_logit;
    }
}
