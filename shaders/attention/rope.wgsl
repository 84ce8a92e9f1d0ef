//! Rotary position embedding, in place: the pair (i, i + head_dim/2) of each head is rotated by
//! the angle of its row's position, or by minus that angle with inverse = 1
//!
//! x: [rows, heads, head_dim] f32 from offset · table: [positions, head_dim] f32, cosines then
//! sines · segments: [rows, 2] u32, as in attention_forward · position of a row: position0 +
//! row % seq_len − segments[row].x
//! Grid: one invocation per LANES pairs. Shared: none. Needs: nothing beyond core WebGPU.

//#include "lib/scalar.wgsl"

const WG: u32 = 64u;

struct Params {
    rows: u32,
    seq_len: u32,
    heads: u32,
    head_dim: u32,
    position0: u32,
    offset: u32,
    inverse: u32,
}

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> table: array<Element>;
@group(0) @binding(2) var<storage, read> segments: array<vec2<u32>>;
@group(0) @binding(3) var<storage, read_write> x: array<Element>;

@compute @workgroup_size(WG)
fn rope(
    @builtin(local_invocation_index) lane: u32,
    @builtin(workgroup_id) workgroup: vec3<u32>,
    @builtin(num_workgroups) workgroups: vec3<u32>,
) {
    let i = (workgroup.y * workgroups.x + workgroup.x) * WG + lane;
    let pairs = params.head_dim / 2u / LANES;
    if i >= params.rows * params.heads * pairs {
        return;
    }
    let row_head = i / pairs;
    let pair = i - row_head * pairs;
    let row = row_head / params.heads;
    let position = params.position0 + row % params.seq_len - segments[row].x;
    let cosine = table[position * 2u * pairs + pair];
    let sign = select(1.0, -1.0, params.inverse == 1u);
    let sine = sign * table[position * 2u * pairs + pairs + pair];
    let low = params.offset / LANES + row_head * 2u * pairs + pair;
    let high = low + pairs;
    let a = x[low];
    let b = x[high];
    x[low] = a * cosine - b * sine;
    x[high] = b * cosine + a * sine;
}
