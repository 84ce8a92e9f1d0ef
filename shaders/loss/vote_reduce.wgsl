//! stats[r] = (0, sum_c acc[r,c], log max(acc[r,targets[r]], FLOOR)), summed over chunks of columns
//!
//! acc: [rows, ld] f32, columns 0..cols are vocabulary ids col0..col0+cols
//! targets: [tokens] u32 · stats: [tokens, 3] f32 · token of row r: row0 + r
//! Grid: one workgroup a row. Shared: 4·WG bytes. Needs: nothing beyond core WebGPU.

//#include "lib/reduce.wgsl"

const WG: u32 = 64u;  //#spec power of two, 8..=256

// Above the smallest normal number, so that flushing denormals changes nothing.
const FLOOR: f32 = 1.0e-37;

struct Params {
    rows: u32,
    cols: u32,
    ld: u32,
    row0: u32,
    col0: u32,
    first: u32,
}

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> acc: array<f32>;
@group(0) @binding(2) var<storage, read> targets: array<u32>;
@group(0) @binding(3) var<storage, read_write> stats: array<f32>;

@compute @workgroup_size(WG)
fn vote_reduce(
    lane: Lane,
    @builtin(workgroup_id) workgroup: vec3<u32>,
    @builtin(num_workgroups) workgroups: vec3<u32>,
) {
    let row = workgroup.y * workgroups.x + workgroup.x;
    if row >= params.rows {
        return;
    }
    let base = row * params.ld;
    var lane_sum = 0.0;
    for (var c = lane.index; c < params.cols; c += WG) {
        lane_sum += acc[base + c];
    }
    var sum = workgroup_sum(lane_sum, lane);
    if lane.index == 0u {
        let token = params.row0 + row;
        let slot = 3u * token;
        let column = targets[token] - params.col0;
        var target_log = 0.0;
        if params.first == 0u {
            sum += stats[slot + 1u];
            target_log = stats[slot + 2u];
        }
        // Wraps for ids below col0, and for the id of ignored rows stays out of range.
        if column < params.cols {
            target_log = log(max(acc[base + column], FLOOR));
        }
        stats[slot] = 0.0;
        stats[slot + 1u] = sum;
        stats[slot + 2u] = target_log;
    }
}
