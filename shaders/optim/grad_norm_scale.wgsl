//! out[0] = norm = sqrt(sum of partials)
//! out[1] = min(1, max_norm / (norm + 1e-6)), or 1 if max_norm <= 0
//!
//! partials: [parts] f32 · out: [2] f32
//! Grid: one workgroup. Shared: 4·WG bytes. Needs: nothing beyond core WebGPU.

//#include "lib/reduce.wgsl"

const WG: u32 = 256u;  //#spec power of two, 8..=256

struct Params {
    parts: u32,
    max_norm: f32,
}

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> partials: array<f32>;
@group(0) @binding(2) var<storage, read_write> out: array<f32>;

@compute @workgroup_size(WG)
fn grad_norm_scale(lane: Lane) {
    var lane_sum = 0.0;
    for (var i = lane.index; i < params.parts; i += WG) {
        lane_sum += partials[i];
    }
    let norm = sqrt(workgroup_sum(lane_sum, lane));
    if lane.index == 0u {
        var scale = 1.0;
        if params.max_norm > 0.0 {
            scale = min(1.0, params.max_norm / (norm + 1.0e-6));
        }
        out[0] = norm;
        out[1] = scale;
    }
}
