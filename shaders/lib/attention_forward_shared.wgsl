//! The body of `attention_forward` through workgroup memory: `lib/attention_shared.wgsl` says how.
//!
//! A workgroup holds query rows and streams keys with their values. Each slot has a softmax of its
//! own over the keys that it saw, and they are brought to one maximum in the end. Grid: one
//! workgroup per HELD query rows, the last rows of all heads first, since they see most keys.

const PRODUCTS: u32 = 1u;
//#include "lib/attention_shared.wgsl"

var<workgroup> query: array<vec4<f32>, HELD * PADDED>;
// By slot and held row: the weight of the slot's key, and what the sums before it are worth.
var<workgroup> weights: array<f32, SLOTS * HELD>;
var<workgroup> decays: array<f32, SLOTS * HELD>;

fn attend(lane: u32, workgroup: u32) {
    let group = params.heads / params.kv_heads;
    let rows = params.q_len * group;
    let tiles = (rows + HELD - 1u) / HELD;
    let lists = params.batch * params.kv_heads;
    if workgroup >= lists * tiles {
        return;
    }
    let row0 = (tiles - 1u - workgroup / lists) * HELD;
    let kv_head = workgroup % lists % params.kv_heads;
    let sequence = workgroup % lists / params.kv_heads;
    let slot = lane / PARTS;
    let part = lane % PARTS;

    // A row behind the last one repeats it and is not stored.
    let last = min(row0 + HELD, rows) - 1u;
    for (var t = lane; t < HELD * PADDED; t += WG) {
        let row = head_row(sequence, kv_head, min(row0 + t / PADDED, last));
        let c = t % PADDED;
        let quad = q[row * CHUNKS + min(c, CHUNKS - 1u)] * params.scale;
        query[t] = select(vec4<f32>(), quad, c < CHUNKS);
    }
    let from_key = first_key(params.position0 + row0 / group);
    let to_key = end_key(params.position0 + last / group);
    var first: array<u32, MINE>;
    var end: array<u32, MINE>;
    var highest: array<f32, MINE>;
    var total: array<f32, MINE>;
    //#unroll
    for (var m = 0u; m < MINE; m++) {
        let position = params.position0 + min(row0 + part + m * PARTS, last) / group;
        first[m] = first_key(position);
        end[m] = end_key(position);
        highest[m] = LOWEST;
        total[m] = 0.0;
    }
    var sum: array<vec4<f32>, HELD * QUADS>;
    var next_keys: array<vec4<f32>, QUADS>;
    var next_values: array<vec4<f32>, QUADS>;
    let begin = key_row(sequence, kv_head, min(from_key + slot, to_key - 1u)) * CHUNKS;
    //#unroll
    for (var j = 0u; j < QUADS; j++) {
        next_keys[j] = k[begin + column(part, j)];
        next_values[j] = v[begin + column(part, j)];
    }
    workgroupBarrier();

    for (var key0 = from_key; key0 < to_key; key0 += SLOTS) {
        var keys: array<vec4<f32>, QUADS>;
        var values: array<vec4<f32>, QUADS>;
        // Keys behind the last are loaded as the last, and not seen.
        let key = key0 + slot;
        let next = key_row(sequence, kv_head, min(key + SLOTS, to_key - 1u)) * CHUNKS;
        //#unroll
        for (var j = 0u; j < QUADS; j++) {
            keys[j] = next_keys[j];
            values[j] = next_values[j];
            next_keys[j] = k[next + column(part, j)];
            next_values[j] = v[next + column(part, j)];
        }
        //#unroll
        for (var g = 0u; g < GROUPS; g++) {
            var scores = vec4<f32>();
            //#unroll
            for (var t = 0u; t < 4u; t++) {
                let at = (g * 4u + t) * PADDED + part;
                //#unroll
                for (var j = 0u; j < QUADS; j++) {
                    scores[t] = add_dot(query[at + j * PARTS], keys[j], scores[t]);
                }
            }
            shares[g * PLANE_STRIDE + slot * SLOT_STRIDE + part] = scores;
        }
        workgroupBarrier();
        //#unroll
        for (var m = 0u; m < MINE; m++) {
            let held = part + m * PARTS;
            if held < HELD {
                let score = product(slot, held);
                let seen = key >= first[m] && key < end[m];
                // Of weight and decay one is 1.
                let ratio = exp(-abs(score - highest[m]));
                let grew = seen && score > highest[m];
                let weight = select(0.0, select(ratio, 1.0, grew), seen);
                let decay = select(1.0, ratio, grew);
                highest[m] = select(highest[m], score, grew);
                total[m] = fma(total[m], decay, weight);
                weights[slot * HELD + held] = weight;
                decays[slot * HELD + held] = decay;
            }
        }
        workgroupBarrier();
        //#unroll
        for (var h = 0u; h < HELD; h++) {
            let weight = vec4(weights[slot * HELD + h]);
            let decay = decays[slot * HELD + h];
            //#unroll
            for (var j = 0u; j < QUADS; j++) {
                sum[h * QUADS + j] = fma(values[j], weight, sum[h * QUADS + j] * decay);
            }
        }
    }

    workgroupBarrier();
    //#unroll
    for (var m = 0u; m < MINE; m++) {
        let held = part + m * PARTS;
        if held < HELD {
            weights[slot * HELD + held] = highest[m];
        }
    }
    workgroupBarrier();
    //#unroll
    for (var m = 0u; m < MINE; m++) {
        let held = part + m * PARTS;
        if held < HELD {
            var peak = LOWEST;
            for (var s = 0u; s < SLOTS; s++) {
                peak = max(peak, weights[s * HELD + held]);
            }
            let decay = exp(highest[m] - peak);
            decays[slot * HELD + held] = decay;
            total[m] *= decay;
            highest[m] = peak;
        }
    }
    workgroupBarrier();
    //#unroll
    for (var h = 0u; h < HELD; h++) {
        let decay = decays[slot * HELD + h];
        //#unroll
        for (var j = 0u; j < QUADS; j++) {
            sum[h * QUADS + j] *= decay;
        }
    }
    //#unroll
    for (var m = 0u; m < MINE; m++) {
        let held = part + m * PARTS;
        if held < HELD {
            weights[slot * HELD + held] = total[m];
        }
    }
    workgroupBarrier();
    // The first slot's lanes sum up the totals of their rows, each in a column of its own.
    //#unroll
    for (var m = 0u; m < MINE; m++) {
        let held = part + m * PARTS;
        if slot == 0u && held < HELD {
            var whole = 0.0;
            for (var s = 0u; s < SLOTS; s++) {
                whole += weights[s * HELD + held];
            }
            weights[held] = whole;
            if row0 + held <= last {
                lse[head_row(sequence, kv_head, row0 + held)] = highest[m] + log(whole);
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
        let held = (turn * PLANES + slot) / QUADS;
        let c = part + (turn * PLANES + slot) % QUADS * PARTS;
        if slot < PLANES && row0 + held <= last && c < CHUNKS {
            let at = head_row(sequence, kv_head, row0 + held) * CHUNKS + c;
            out[at] = over_slots(slot, part) / weights[held];
        }
    }
}
