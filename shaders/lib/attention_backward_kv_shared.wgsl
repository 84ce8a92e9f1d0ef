//! The body of `attention_backward_kv` through workgroup memory: `lib/attention_shared.wgsl` says
//! how.
//!
//! A workgroup holds keys with their values and streams query rows with d_out, those of all heads
//! of the group. Grid: one workgroup per HELD keys of a key-value head, the first keys first, since
//! most queries see them.

const PRODUCTS: u32 = 2u;
//#include "lib/attention_shared.wgsl"
//#include "lib/attention_shared_backward.wgsl"

// By slot and held key: the weight that the slot's query gives it.
var<workgroup> weights: array<f32, SLOTS * HELD>;

fn stage(task: Task, lane: u32) {
    for (var t = lane; t < HELD * PADDED; t += WG) {
        let row = key_row(task, min(task.first + t / PADDED, task.last));
        let c = t % PADDED;
        let at = row * CHUNKS + min(c, CHUNKS - 1u);
        held_x[t] = select(vec4<f32>(), k[at] * params.scale, c < CHUNKS);
        held_y[t] = select(vec4<f32>(), v[at], c < CHUNKS);
    }
}

fn load_query(task: Task, at: u32) -> Streamed {
    var row: Streamed;
    //#unroll
    for (var j = 0u; j < QUADS; j++) {
        row.x[j] = q[at * CHUNKS + column(task.part, j)];
        row.y[j] = d_out[at * CHUNKS + column(task.part, j)];
    }
    return row;
}

// Stores accumulator i, those of dk and then those of dv, which `shares` has of all slots.
fn store(task: Task, i: u32) {
    let held = i / QUADS % HELD;
    let c = task.part + i % QUADS * PARTS;
    if task.slot < PLANES && task.first + held <= task.last && c < CHUNKS {
        let at = key_row(task, task.first + held) * CHUNKS + c;
        let total = over_slots(task.slot, task.part);
        if i < HELD * QUADS {
            dk[at] = total * params.scale;
        } else {
            dv[at] = total;
        }
    }
}

fn attend(lane: u32, workgroup: u32) {
    if workgroup >= workgroups_for(params.kv_len) {
        return;
    }
    let task = task_at(workgroup, lane, params.kv_len);
    stage(task, lane);
    let group = params.heads / params.kv_heads;
    var seen_by: array<vec2<u32>, MINE>;
    //#unroll
    for (var m = 0u; m < MINE; m++) {
        let key = min(task.first + task.part + m * PARTS, task.last);
        seen_by[m] = vec2(first_query(key), end_query(task.sequence, key)) * group;
    }
    var sum_k: array<vec4<f32>, HELD * QUADS>;
    var sum_v: array<vec4<f32>, HELD * QUADS>;
    // Rows behind the last are loaded as the last, and see nothing.
    let last_row = params.q_len * group - 1u;
    let end_row = end_query(task.sequence, task.last) * group;
    var at = head_row(task, min(first_query(task.first) * group + task.slot, last_row));
    var next = load_query(task, at);
    var next_of_row = stats[at];
    workgroupBarrier();

    for (var row0 = first_query(task.first) * group; row0 < end_row; row0 += SLOTS) {
        let i = row0 + task.slot;
        let row = next;
        let of_row = next_of_row;
        at = head_row(task, min(i + SLOTS, last_row));
        next = load_query(task, at);
        next_of_row = stats[at];
        multiply(task, row);
        workgroupBarrier();
        //#unroll
        for (var m = 0u; m < MINE; m++) {
            let held = task.part + m * PARTS;
            if held < HELD {
                let seen = i >= seen_by[m].x && i < seen_by[m].y;
                let weight = weigh(task.slot, held, seen, of_row);
                weights[task.slot * HELD + held] = weight;
            }
        }
        workgroupBarrier();
        //#unroll
        for (var h = 0u; h < HELD; h++) {
            let weight = vec4(weights[task.slot * HELD + h]);
            let slope = vec4(slopes[task.slot * HELD + h]);
            //#unroll
            for (var j = 0u; j < QUADS; j++) {
                sum_k[h * QUADS + j] = fma(row.x[j], slope, sum_k[h * QUADS + j]);
                sum_v[h * QUADS + j] = fma(row.y[j], weight, sum_v[h * QUADS + j]);
            }
        }
    }
    finish(task, lane, 0u, sum_k);
    finish(task, lane, HELD * QUADS, sum_v);
}

fn finish(task: Task, lane: u32, first: u32, sum: array<vec4<f32>, HELD * QUADS>) {
    //#unroll
    for (var turn = 0u; turn < HELD * QUADS / PLANES; turn++) {
        workgroupBarrier();
        //#unroll
        for (var n = 0u; n < PLANES; n++) {
            shares[n * WG + lane] = sum[turn * PLANES + n];
        }
        workgroupBarrier();
        store(task, first + turn * PLANES + task.slot);
    }
}
