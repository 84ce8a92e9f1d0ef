//! out[0] (+)= sum over counted rows of log(sum) + max - target_logit, out[1] (+)= counted rows
//!
//! targets: [rows] u32 · stats: [rows, 3] f32 (max, sum, target logit) · out: [2] f32
//! Grid: one workgroup. Shared: 4·WG bytes. Needs: nothing beyond core WebGPU.

//#include "lib/reduce.wgsl"

const WG: u32 = 64u;  //#spec power of two, 8..=256
const IGNORE: u32 = 0xffffffffu;

struct Params {
    rows: u32,
    accumulate: u32,
}

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> targets: array<u32>;
@group(0) @binding(2) var<storage, read> stats: array<f32>;
@group(0) @binding(3) var<storage, read_write> out: array<f32>;

@compute @workgroup_size(WG)
fn cross_entropy_loss(lane: Lane) {
    var lane_loss = 0.0;
    var lane_counted = 0.0;
    for (var r = lane.index; r < params.rows; r += WG) {
        if targets[r] != IGNORE {
            // The difference first: max and target logit may be large and close.
            lane_loss += log(stats[3u * r + 1u]) + (stats[3u * r] - stats[3u * r + 2u]);
            lane_counted += 1.0;
        }
    }
    var loss = workgroup_sum(lane_loss, lane);
    var counted = workgroup_sum(lane_counted, lane);
    if lane.index == 0u {
        if params.accumulate != 0u {
            loss += out[0];
            counted += out[1];
        }
        out[0] = loss;
        out[1] = counted;
    }
}
