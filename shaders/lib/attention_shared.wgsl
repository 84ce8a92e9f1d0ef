//! What the bodies of attention through workgroup memory share.
//!
//! A workgroup holds HELD rows (query rows of a key-value head, or keys) and streams all rows of
//! the other kind past them, SLOTS at a time. The PARTS lanes of a slot divide the elements of the
//! streamed row, which stay in registers: each multiplies every PARTS-th quad with those of all
//! held rows and leaves its share of the products in `shares`. Then a lane sums up the shares of
//! the MINE held rows that are its own in this slot, and hands their weights to the others of the
//! slot, which add the weighted row to accumulators of the slot. Those are summed over slots in the
//! end, in order. So a few rows give work to hundreds of lanes, no streamed row is stored, and what
//! is waited for in memory is loaded a round ahead.
//! The includer gives CHUNKS, quads of a head, and PRODUCTS, kinds of products of two rows.

const HELD: u32 = 8u;  //#spec rows that a workgroup holds, a multiple of 4
const PARTS: u32 = 8u;  //#spec lanes of a streamed row
const SLOTS: u32 = 16u;  //#spec rows streamed at a time, a multiple of 4
const WG: u32 = PARTS * SLOTS;
const QUADS: u32 = (CHUNKS + PARTS - 1u) / PARTS;
// Quads of a held row in workgroup memory: those behind the last are 0.
const PADDED: u32 = QUADS * PARTS;
const MINE: u32 = (HELD + PARTS - 1u) / PARTS;
const GROUPS: u32 = HELD / 4u;
const PLANES: u32 = PRODUCTS * GROUPS;
// Neighbouring slots begin in different banks, and so do planes.
const SLOT_STRIDE: u32 = PARTS + 1u;
const PLANE_STRIDE: u32 = SLOTS * SLOT_STRIDE + 4u;

// Shares of the products of four held rows: [plane][slot][part].
var<workgroup> shares: array<vec4<f32>, PLANES * PLANE_STRIDE>;

fn add_dot(a: vec4<f32>, b: vec4<f32>, sum: f32) -> f32 {
    return fma(a.w, b.w, fma(a.z, b.z, fma(a.y, b.y, fma(a.x, b.x, sum))));
}

// The product of a slot's row with held row i % HELD, of kind i / HELD.
fn product(slot: u32, i: u32) -> f32 {
    let at = i / 4u * PLANE_STRIDE + slot * SLOT_STRIDE;
    var sum = 0.0;
    //#unroll
    for (var p = 0u; p < PARTS; p++) {
        sum += shares[at + p][i % 4u];
    }
    return sum;
}

// Where quad j of a lane stands in a row; quads behind the last are copies of the last.
fn column(part: u32, j: u32) -> u32 {
    return min(part + j * PARTS, CHUNKS - 1u);
}

// What a lane is there for.
struct Task {
    sequence: u32,
    kv_head: u32,
    // Held rows, the last one included. A row behind the last repeats it and is not stored.
    first: u32,
    last: u32,
    slot: u32,
    part: u32,
}

// Workgroups for `rows` rows to hold of each key-value head.
fn workgroups_for(rows: u32) -> u32 {
    return (rows + HELD - 1u) / HELD * params.batch * params.kv_heads;
}

// Of a workgroup that is the `place`-th to begin: all heads' first rows, then the next.
fn task_at(place: u32, lane: u32, rows: u32) -> Task {
    let lists = params.batch * params.kv_heads;
    let list = place % lists;
    let first = place / lists * HELD;
    let last = min(first + HELD, rows) - 1u;
    return Task(
        list / params.kv_heads, list % params.kv_heads, first, last, lane / PARTS, lane % PARTS,
    );
}

// Part of a streamed row of either kind: k and v, or q and d_out.
struct Streamed {
    x: array<vec4<f32>, QUADS>,
    y: array<vec4<f32>, QUADS>,
}

// In the end `shares` holds PLANES accumulators of each lane: number n of a part, over all slots.
fn over_slots(n: u32, part: u32) -> vec4<f32> {
    var sum = vec4<f32>();
    for (var s = 0u; s < SLOTS; s += 4u) {
        let at = n * WG + s * PARTS + part;
        sum += (shares[at] + shares[at + PARTS])
            + (shares[at + 2u * PARTS] + shares[at + 3u * PARTS]);
    }
    return sum;
}

// Rows of q are numbered by heads of a group, then queries; this is where one of them lies.
fn head_row(task: Task, row: u32) -> u32 {
    let group = params.heads / params.kv_heads;
    let token = task.sequence * params.q_len + row / group;
    return token * params.heads + task.kv_head * group + row % group;
}

fn key_row(task: Task, key: u32) -> u32 {
    return (task.sequence * params.kv_stride + key) * params.kv_heads + task.kv_head;
}
