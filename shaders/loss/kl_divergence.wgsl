//! kl[r] (+)= sum_c p[r,c] (d - 1 + exp(-d)), d = log p[r,c] - log q[r,c], over chunks of columns
//!
//! reference, logits: [rows, ld] f32, of p and q · reference_stats, stats: [tokens, 3] f32
//! kl: [tokens] f32 · token of row r: row0 + r
//! Grid: one workgroup a row. Shared: 4·WG bytes. Needs: nothing beyond core WebGPU.

//#include "lib/reduce.wgsl"

const WG: u32 = 64u;  //#spec power of two, 8..=256

// Below this |d| the series is exact to f32, and d - 1 + exp(-d) is mostly rounding.
const SERIES: f32 = 0.25;
// Below this d, exp(-d) is so large that p exp(-d) is better taken as q.
const FAR: f32 = -8.0;

struct Params {
    rows: u32,
    cols: u32,
    ld: u32,
    row0: u32,
    first: u32,
}

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> reference: array<f32>;
@group(0) @binding(2) var<storage, read> logits: array<f32>;
@group(0) @binding(3) var<storage, read> reference_stats: array<f32>;
@group(0) @binding(4) var<storage, read> stats: array<f32>;
@group(0) @binding(5) var<storage, read_write> kl: array<f32>;

fn term(log_p: f32, log_q: f32) -> f32 {
    let d = log_p - log_q;
    let p = exp(log_p);
    if abs(d) < SERIES {
        let tail = 1.0 / 24.0 - d * (1.0 / 120.0 - d * (1.0 / 720.0));
        return p * d * d * (0.5 - d * (1.0 / 6.0 - d * tail));
    }
    if d < FAR {
        return p * (d - 1.0) + exp(log_q);
    }
    return p * (d - 1.0 + exp(-d));
}

@compute @workgroup_size(WG)
fn kl_divergence(
    lane: Lane,
    @builtin(workgroup_id) workgroup: vec3<u32>,
    @builtin(num_workgroups) workgroups: vec3<u32>,
) {
    let row = workgroup.y * workgroups.x + workgroup.x;
    if row >= params.rows {
        return;
    }
    let base = row * params.ld;
    let token = params.row0 + row;
    let p_max = reference_stats[3u * token];
    let p_log = log(reference_stats[3u * token + 1u]);
    let q_max = stats[3u * token];
    let q_log = log(stats[3u * token + 1u]);
    var lane_sum = 0.0;
    for (var c = lane.index; c < params.cols; c += WG) {
        lane_sum += term(reference[base + c] - p_max - p_log, logits[base + c] - q_max - q_log);
    }
    var sum = workgroup_sum(lane_sum, lane);
    if lane.index == 0u {
        if params.first == 0u {
            sum += kl[token];
        }
        kl[token] = sum;
    }
}
