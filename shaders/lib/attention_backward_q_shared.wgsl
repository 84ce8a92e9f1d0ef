//! The body of `attention_backward_q` through workgroup memory: `lib/attention_shared.wgsl` says
//! how.
//!
//! A workgroup holds query rows and streams keys with their values. Grid: one workgroup per HELD
//! query rows of a key-value head.

const PRODUCTS: u32 = 2u;
//#include "lib/attention_shared.wgsl"
//#include "lib/attention_shared_keys.wgsl"
//#include "lib/attention_shared_backward.wgsl"

fn stage(task: Task, lane: u32) {
    for (var t = lane; t < HELD * PADDED; t += WG) {
        let row = head_row(task, min(task.first + t / PADDED, task.last));
        let c = t % PADDED;
        let at = row * CHUNKS + min(c, CHUNKS - 1u);
        held_x[t] = select(vec4<f32>(), q[at] * params.scale, c < CHUNKS);
        held_y[t] = select(vec4<f32>(), d_out[at], c < CHUNKS);
    }
}

// Stores accumulator i, which `shares` has of all slots.
fn store(task: Task, i: u32) {
    let held = i / QUADS;
    let c = task.part + i % QUADS * PARTS;
    if task.slot < PLANES && task.first + held <= task.last && c < CHUNKS {
        let at = head_row(task, task.first + held) * CHUNKS + c;
        dq[at] = over_slots(task.slot, task.part) * params.scale;
    }
}

fn attend(lane: u32, workgroup: u32) {
    let rows = params.q_len * (params.heads / params.kv_heads);
    if workgroup >= workgroups_for(rows) {
        return;
    }
    let task = query_task(lane, workgroup, rows);
    stage(task, lane);
    var seen_by: array<vec2<u32>, MINE>;
    var of_row: array<vec2<f32>, MINE>;
    //#unroll
    for (var m = 0u; m < MINE; m++) {
        let held = task.part + m * PARTS;
        let row = head_row(task, min(task.first + held, task.last));
        seen_by[m] = keys_of(task, held);
        of_row[m] = stats[row];
    }
    var sum: array<vec4<f32>, HELD * QUADS>;
    let keys = keys_of_all(task);
    var next = load_key(task, min(keys.x + task.slot, keys.y - 1u));
    workgroupBarrier();

    for (var key0 = keys.x; key0 < keys.y; key0 += SLOTS) {
        // Keys behind the last are loaded as the last, and not seen.
        let key = key0 + task.slot;
        let row = next;
        next = load_key(task, min(key + SLOTS, keys.y - 1u));
        multiply(task, row);
        workgroupBarrier();
        //#unroll
        for (var m = 0u; m < MINE; m++) {
            if task.part + m * PARTS < HELD {
                let seen = key >= seen_by[m].x && key < seen_by[m].y;
                weigh(task.slot, task.part + m * PARTS, seen, of_row[m]);
            }
        }
        workgroupBarrier();
        //#unroll
        for (var h = 0u; h < HELD; h++) {
            let slope = vec4(slopes[task.slot * HELD + h]);
            //#unroll
            for (var j = 0u; j < QUADS; j++) {
                sum[h * QUADS + j] = fma(row.x[j], slope, sum[h * QUADS + j]);
            }
        }
    }

    //#unroll
    for (var turn = 0u; turn < HELD * QUADS / PLANES; turn++) {
        workgroupBarrier();
        //#unroll
        for (var n = 0u; n < PLANES; n++) {
            shares[n * WG + lane] = sum[turn * PLANES + n];
        }
        workgroupBarrier();
        store(task, turn * PLANES + task.slot);
    }
}
