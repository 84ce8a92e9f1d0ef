//! The body of `attention_backward_q` through workgroup memory: `lib/attention_shared.wgsl` says how.
//!
//! A workgroup holds query rows and streams keys with their values. Grid: one workgroup per HELD
//! query rows, the last rows of all heads first, since they see most keys.

const PRODUCTS: u32 = 2u;
//#include "lib/attention_shared.wgsl"

var<workgroup> query: array<vec4<f32>, HELD * PADDED>;
var<workgroup> upstream: array<vec4<f32>, HELD * PADDED>;
// By slot and held row: the gradient of the score with the slot's key.
var<workgroup> slopes: array<f32, SLOTS * HELD>;

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
        let at = row * CHUNKS + min(c, CHUNKS - 1u);
        query[t] = select(vec4<f32>(), q[at] * params.scale, c < CHUNKS);
        upstream[t] = select(vec4<f32>(), d_out[at], c < CHUNKS);
    }
    let from_key = first_key(params.position0 + row0 / group);
    let to_key = end_key(params.position0 + last / group);
    var first: array<u32, MINE>;
    var end: array<u32, MINE>;
    var row_lse: array<f32, MINE>;
    var row_delta: array<f32, MINE>;
    //#unroll
    for (var m = 0u; m < MINE; m++) {
        let row = min(row0 + part + m * PARTS, last);
        let position = params.position0 + row / group;
        first[m] = first_key(position);
        end[m] = end_key(position);
        row_lse[m] = lse[head_row(sequence, kv_head, row)];
        row_delta[m] = delta[head_row(sequence, kv_head, row)];
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
            var dp = vec4<f32>();
            //#unroll
            for (var t = 0u; t < 4u; t++) {
                let at = (g * 4u + t) * PADDED + part;
                //#unroll
                for (var j = 0u; j < QUADS; j++) {
                    scores[t] = add_dot(query[at + j * PARTS], keys[j], scores[t]);
                    dp[t] = add_dot(upstream[at + j * PARTS], values[j], dp[t]);
                }
            }
            let at = slot * SLOT_STRIDE + part;
            shares[g * PLANE_STRIDE + at] = scores;
            shares[(GROUPS + g) * PLANE_STRIDE + at] = dp;
        }
        workgroupBarrier();
        //#unroll
        for (var m = 0u; m < MINE; m++) {
            let held = part + m * PARTS;
            if held < HELD {
                let seen = key >= first[m] && key < end[m];
                // Only a masked score can exceed the log-sum-exp; min keeps its exp finite.
                let score = product(slot, held);
                let p = select(0.0, exp(min(score - row_lse[m], 0.0)), seen);
                slopes[slot * HELD + held] = p * (product(slot, HELD + held) - row_delta[m]);
            }
        }
        workgroupBarrier();
        //#unroll
        for (var h = 0u; h < HELD; h++) {
            let slope = vec4(slopes[slot * HELD + h]);
            //#unroll
            for (var j = 0u; j < QUADS; j++) {
                sum[h * QUADS + j] = fma(keys[j], slope, sum[h * QUADS + j]);
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
            dq[at] = over_slots(slot, part) * params.scale;
        }
    }
}
