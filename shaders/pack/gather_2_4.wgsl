//! kept[n, 2q + j] (+)= dense[n, 4q + p_j], the columns of each four that positions name
//!
//! dense: [rows, cols] f32 · kept: [rows, 2·ceil(cols / 4)] f32
//! positions: [ceil(cols / 32), ceil(rows / together)] u32: bits 4i..4i + 2 of a word are p_0 of
//! the four columns i of its block of 32, the two bits behind them p_1
//! Grid: one invocation four columns of a row. Shared: none. Needs: nothing beyond core WebGPU.

const WG: u32 = 64u;

struct Params {
    rows: u32,
    cols: u32,
    together: u32,
    accumulate: u32,
}

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> dense: array<f32>;
@group(0) @binding(2) var<storage, read> positions: array<u32>;
@group(0) @binding(3) var<storage, read_write> kept: array<f32>;

fn put(n: u32, column: u32, at: u32) {
    var value = 0.0;
    if column < params.cols {
        value = dense[n * params.cols + column];
    }
    if params.accumulate == 1u {
        value += kept[at];
    }
    kept[at] = value;
}

@compute @workgroup_size(WG)
fn gather_2_4(
    @builtin(local_invocation_index) lane: u32,
    @builtin(workgroup_id) workgroup: vec3<u32>,
    @builtin(num_workgroups) workgroups: vec3<u32>,
) {
    let i = (workgroup.y * workgroups.x + workgroup.x) * WG + lane;
    let fours = (params.cols + 3u) / 4u;
    if i >= params.rows * fours {
        return;
    }
    let n = i / fours;
    let four = i - n * fours;
    let groups = (params.rows + params.together - 1u) / params.together;
    let word = positions[four / 8u * groups + n / params.together] >> (4u * (four % 8u));
    put(n, 4u * four + (word & 3u), 2u * i);
    put(n, 4u * four + ((word >> 2u) & 3u), 2u * i + 1u);
}
