//! dx[r,c] (+)= rstd[r] · w[c] · dy[r,c] − x[r,c] · rstd[r]³ / cols · Σ_k w[k] · dy[r,k] · x[r,k]
//!
//! x, dy, dx: [rows, cols] f32 · w: [cols] f32 · rstd: [rows] f32
//! Grid: one workgroup a row. Shared: 4·WG bytes. Needs: nothing beyond core WebGPU.

//#include "lib/scalar.wgsl"
//#include "lib/reduce.wgsl"

const WG: u32 = 64u;  //#spec power of two, 8..=256

struct Params {
    rows: u32,
    cols: u32,
    accumulate: u32,
    pad: u32,
}

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> x: array<Element>;
@group(0) @binding(2) var<storage, read> w: array<Element>;
@group(0) @binding(3) var<storage, read> rstd: array<f32>;
@group(0) @binding(4) var<storage, read> dy: array<Element>;
@group(0) @binding(5) var<storage, read_write> dx: array<Element>;

@compute @workgroup_size(WG)
fn rms_norm_backward(
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
    var partial = 0.0;
    for (var c = lane.index; c < count; c += WG) {
        partial += lanes_dot(w[c] * dy[base + c], x[base + c]);
    }
    let scale = rstd[row];
    let pull = workgroup_sum(partial, lane) * scale * scale / f32(params.cols);
    for (var c = lane.index; c < count; c += WG) {
        let value = scale * (w[c] * dy[base + c] - x[base + c] * pull);
        if params.accumulate == 1u {
            dx[base + c] += value;
        } else {
            dx[base + c] = value;
        }
    }
}
