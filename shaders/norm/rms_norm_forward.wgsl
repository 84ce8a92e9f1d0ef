//! y[r,c] (+)= x[r,c] · rstd[r] · w[c],  rstd[r] = 1 / sqrt(mean_c x[r,c]² + eps)
//!
//! x: [rows, cols] f32 · y: [rows, cols] f32 from out_offset · w: [cols] f32 · rstd: [rows] f32
//! Grid: one workgroup a row. Shared: 4·WG bytes. Needs: nothing beyond core WebGPU.

//#include "lib/scalar.wgsl"
//#include "lib/reduce.wgsl"

const WG: u32 = 64u;  //#spec power of two, 8..=256

struct Params {
    rows: u32,
    cols: u32,
    eps: f32,
    out_offset: u32,
    accumulate: u32,
}

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> x: array<Element>;
@group(0) @binding(2) var<storage, read> w: array<Element>;
@group(0) @binding(3) var<storage, read_write> y: array<Element>;
@group(0) @binding(4) var<storage, read_write> rstd: array<f32>;

@compute @workgroup_size(WG)
fn rms_norm_forward(
    lane: Lane,
    @builtin(workgroup_id) workgroup: vec3<u32>,
    @builtin(num_workgroups) workgroups: vec3<u32>,
) {
    let row = workgroup.y * workgroups.x + workgroup.x;
    if row >= params.rows {
        return;
    }
    let count = params.cols / LANES;
    let base = row * count;
    var squares = 0.0;
    for (var c = lane.index; c < count; c += WG) {
        let value = x[base + c];
        squares += lanes_dot(value, value);
    }
    let mean = workgroup_sum(squares, lane) / f32(params.cols);
    let scale = inverseSqrt(mean + params.eps);
    let first = params.out_offset / LANES + base;
    for (var c = lane.index; c < count; c += WG) {
        let value = x[base + c] * scale * w[c];
        if params.accumulate == 1u {
            y[first + c] += value;
        } else {
            y[first + c] = value;
        }
    }
    if lane.index == 0u {
        rstd[row] = scale;
    }
}
