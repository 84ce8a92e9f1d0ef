//! w[n,c] = 0 for two of each four columns c, those with the smaller Σ |w[n,c]| over `shared`
//! consecutive rows n; of equal ones the first are kept. NaN counts as 0.
//!
//! w: [rows, cols] f32 as words, in place
//! Grid: one invocation four columns of `shared` rows. Shared: none. Needs: nothing beyond core
//! WebGPU.

const WG: u32 = 64u;
const FOUR: u32 = 4u;
const INFINITE: u32 = 0x7f800000u;

struct Params {
    rows: u32,
    cols: u32,
    // `shared` is a reserved word.
    together: u32,
}

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read_write> w: array<u32>;

// The bits of the score of a column: those of floats that are not negative are in their order.
fn score(first: u32, end: u32, c: u32) -> u32 {
    var sum = 0.0;
    var bits = 0u;
    if c < params.cols {
        for (var n = first; n < end; n++) {
            let size = w[n * params.cols + c] & 0x7fffffffu;
            bits = select(size, 0u, size > INFINITE);
            sum += bitcast<f32>(bits);
        }
    }
    // One row needs no sum, which might flush a subnormal.
    return select(bitcast<u32>(sum), bits, params.together == 1u);
}

// Whether a column with score `b` behind one with score `a` is kept before it.
fn passes(a: u32, b: u32) -> u32 {
    return u32(b > a);
}

@compute @workgroup_size(WG)
fn prune_2_4(
    @builtin(local_invocation_index) lane: u32,
    @builtin(workgroup_id) workgroup: vec3<u32>,
    @builtin(num_workgroups) workgroups: vec3<u32>,
) {
    let i = (workgroup.y * workgroups.x + workgroup.x) * WG + lane;
    let fours = (params.cols + FOUR - 1u) / FOUR;
    if i >= (params.rows + params.together - 1u) / params.together * fours {
        return;
    }
    let group = i / fours;
    let column = FOUR * (i - group * fours);
    let first = group * params.together;
    let end = min(first + params.together, params.rows);
    let a = score(first, end, column);
    let b = score(first, end, column + 1u);
    let c = score(first, end, column + 2u);
    let d = score(first, end, column + 3u);
    let ab = passes(a, b);
    let ac = passes(a, c);
    let ad = passes(a, d);
    let bc = passes(b, c);
    let bd = passes(b, d);
    let cd = passes(c, d);
    // How many columns are kept before each.
    let before = vec4(ab + ac + ad, 1u - ab + bc + bd, 2u - ac - bc + cd, 3u - ad - bd - cd);
    for (var n = first; n < end; n++) {
        //#unroll
        for (var j = 0u; j < FOUR; j++) {
            if before[j] >= 2u && column + j < params.cols {
                w[n * params.cols + column + j] = 0u;
            }
        }
    }
}
