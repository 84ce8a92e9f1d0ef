//! The body of `attention_forward` through workgroup memory: `lib/attention_shared.wgsl` says how.
//!
//! A workgroup holds query rows and streams keys with their values. Each slot has a softmax of its
//! own over the keys that it saw, and they are brought to one maximum in the end. Grid: one
//! workgroup per HELD query rows of a key-value head.

const PRODUCTS: u32 = 1u;
//#include "lib/attention_shared.wgsl"
//#include "lib/attention_shared_keys.wgsl"

var<workgroup> query: array<vec4<f32>, HELD * PADDED>;
// By slot and held row: the weight of the slot's key, and what the sums before it are worth.
var<workgroup> weights: array<f32, SLOTS * HELD>;
var<workgroup> decays: array<f32, SLOTS * HELD>;

// The softmax of a held row over the keys of a slot.
struct Softmax {
    keys: vec2<u32>,
    highest: f32,
    total: f32,
}

fn stage(task: Task, lane: u32) {
    for (var t = lane; t < HELD * PADDED; t += WG) {
        let at = head_row(task, min(task.first + t / PADDED, task.last)) * CHUNKS;
        let c = t % PADDED;
        let quad = q[at + min(c, CHUNKS - 1u)] * params.scale;
        query[t] = select(vec4<f32>(), quad, c < CHUNKS);
    }
}

// Leaves a lane's share of the scores of all held rows with the streamed key.
fn multiply(task: Task, row: Streamed) {
    //#unroll
    for (var g = 0u; g < GROUPS; g++) {
        var scores = vec4<f32>();
        //#unroll
        for (var t = 0u; t < 4u; t++) {
            let at = (g * 4u + t) * PADDED + task.part;
            //#unroll
            for (var j = 0u; j < QUADS; j++) {
                scores[t] = add_dot(query[at + j * PARTS], row.x[j], scores[t]);
            }
        }
        shares[g * PLANE_STRIDE + task.slot * SLOT_STRIDE + task.part] = scores;
    }
}

// Hands the key's weight and the decay of what was before to the slot.
fn weigh(slot: u32, held: u32, key: u32, before: Softmax) -> Softmax {
    let score = product(slot, held);
    let seen = key >= before.keys.x && key < before.keys.y;
    // Either the weight or the decay is 1.
    let ratio = exp(-abs(score - before.highest));
    let grew = seen && score > before.highest;
    let weight = select(0.0, select(ratio, 1.0, grew), seen);
    let decay = select(1.0, ratio, grew);
    weights[slot * HELD + held] = weight;
    decays[slot * HELD + held] = decay;
    let highest = select(before.highest, score, grew);
    return Softmax(before.keys, highest, fma(before.total, decay, weight));
}

// Brings the softmax of all slots to one maximum: leaves what a slot's sums are worth in `decays`,
// the total of all slots in the first slot's `weights`, and stores the log-sum-exp.
fn unite(task: Task, of_slot: array<Softmax, MINE>) {
    workgroupBarrier();
    //#unroll
    for (var m = 0u; m < MINE; m++) {
        let held = task.part + m * PARTS;
        if held < HELD {
            weights[task.slot * HELD + held] = of_slot[m].highest;
        }
    }
    workgroupBarrier();
    var peak: array<f32, MINE>;
    //#unroll
    for (var m = 0u; m < MINE; m++) {
        let held = task.part + m * PARTS;
        peak[m] = LOWEST;
        if held < HELD {
            for (var s = 0u; s < SLOTS; s++) {
                peak[m] = max(peak[m], weights[s * HELD + held]);
            }
            decays[task.slot * HELD + held] = exp(of_slot[m].highest - peak[m]);
        }
    }
    workgroupBarrier();
    //#unroll
    for (var m = 0u; m < MINE; m++) {
        let at = task.slot * HELD + task.part + m * PARTS;
        if task.part + m * PARTS < HELD {
            weights[at] = of_slot[m].total * decays[at];
        }
    }
    workgroupBarrier();
    //#unroll
    for (var m = 0u; m < MINE; m++) {
        let held = task.part + m * PARTS;
        if task.slot == 0u && held < HELD {
            var total = 0.0;
            for (var s = 0u; s < SLOTS; s++) {
                total += weights[s * HELD + held];
            }
            weights[held] = total;
            if task.first + held <= task.last {
                lse[head_row(task, task.first + held)] = peak[m] + log(total);
            }
        }
    }
}

// Stores accumulator i, which `shares` has of all slots.
fn store(task: Task, i: u32) {
    let held = i / QUADS;
    let c = task.part + i % QUADS * PARTS;
    if task.slot < PLANES && task.first + held <= task.last && c < CHUNKS {
        let at = head_row(task, task.first + held) * CHUNKS + c;
        out[at] = over_slots(task.slot, task.part) / weights[held];
    }
}

fn attend(lane: u32, workgroup: u32) {
    let rows = params.q_len * (params.heads / params.kv_heads);
    if workgroup >= workgroups_for(rows) {
        return;
    }
    let task = query_task(lane, workgroup, rows);
    stage(task, lane);
    var of_slot: array<Softmax, MINE>;
    //#unroll
    for (var m = 0u; m < MINE; m++) {
        of_slot[m] = Softmax(keys_of(task, task.part + m * PARTS), LOWEST, 0.0);
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
                of_slot[m] = weigh(task.slot, task.part + m * PARTS, key, of_slot[m]);
            }
        }
        workgroupBarrier();
        //#unroll
        for (var h = 0u; h < HELD; h++) {
            let weight = vec4(weights[task.slot * HELD + h]);
            let decay = decays[task.slot * HELD + h];
            //#unroll
            for (var j = 0u; j < QUADS; j++) {
                sum[h * QUADS + j] = fma(row.y[j], weight, sum[h * QUADS + j] * decay);
            }
        }
    }

    unite(task, of_slot);
    //#unroll
    for (var h = 0u; h < HELD; h++) {
        let decay = decays[task.slot * HELD + h];
        //#unroll
        for (var j = 0u; j < QUADS; j++) {
            sum[h * QUADS + j] *= decay;
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
