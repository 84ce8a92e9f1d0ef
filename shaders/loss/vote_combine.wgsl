//! p = weight · exp(z - max) / sum;  acc := p if first, else max(acc, p) or acc + p
//!
//! logits, acc: [rows, ld] f32, columns 0..cols · stats: [tokens, 3] f32 (max, sum, -) of this exit
//! token of row r: row0 + r
//! Grid: one workgroup a row. Shared: none. Needs: nothing beyond core WebGPU.

const WG: u32 = 64u;  //#spec power of two, 8..=256
const MODE_SUM: u32 = 1u;

struct Params {
    rows: u32,
    cols: u32,
    ld: u32,
    row0: u32,
    mode: u32,
    first: u32,
    weight: f32,
}

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> logits: array<f32>;
@group(0) @binding(2) var<storage, read> stats: array<f32>;
@group(0) @binding(3) var<storage, read_write> acc: array<f32>;

@compute @workgroup_size(WG)
fn vote_combine(
    @builtin(local_invocation_index) lane: u32,
    @builtin(workgroup_id) workgroup: vec3<u32>,
    @builtin(num_workgroups) workgroups: vec3<u32>,
) {
    let row = workgroup.y * workgroups.x + workgroup.x;
    if row >= params.rows {
        return;
    }
    let base = row * params.ld;
    let slot = 3u * (params.row0 + row);
    let row_max = stats[slot];
    let factor = params.weight / stats[slot + 1u];
    for (var c = lane; c < params.cols; c += WG) {
        let p = factor * exp(logits[base + c] - row_max);
        if params.first != 0u {
            acc[base + c] = p;
        } else if params.mode == MODE_SUM {
            acc[base + c] += p;
        } else {
            acc[base + c] = max(acc[base + c], p);
        }
    }
}
