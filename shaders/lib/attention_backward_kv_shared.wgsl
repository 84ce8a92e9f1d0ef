//! The body of `attention_backward_kv` through workgroup memory: `lib/attention_shared.wgsl` says
//! how.
//!
//! A workgroup holds keys with their values and streams query rows with d_out, those of all heads of
//! the group. Grid: one workgroup per HELD keys, the first keys of all heads first, since most
//! queries see them.

const PRODUCTS: u32 = 2u;
//#include "lib/attention_shared.wgsl"

var<workgroup> keys: array<vec4<f32>, HELD * PADDED>;
var<workgroup> values: array<vec4<f32>, HELD * PADDED>;
// By slot and held key: the weight that the slot's query gives it, and the gradient of the score.
var<workgroup> weights: array<f32, SLOTS * HELD>;
var<workgroup> slopes: array<f32, SLOTS * HELD>;

fn attend(lane: u32, workgroup: u32) {
    let group = params.heads / params.kv_heads;
    let tiles = (params.kv_len + HELD - 1u) / HELD;
    let lists = params.batch * params.kv_heads;
    if workgroup >= lists * tiles {
        return;
    }
    let key0 = workgroup / lists * HELD;
    let kv_head = workgroup % lists % params.kv_heads;
    let sequence = workgroup % lists / params.kv_heads;
    let slot = lane / PARTS;
    let part = lane % PARTS;

    // A key behind the last one repeats it and is not stored.
    let last = min(key0 + HELD, params.kv_len) - 1u;
    for (var t = lane; t < HELD * PADDED; t += WG) {
        let c = t % PADDED;
        let row = key_row(sequence, kv_head, min(key0 + t / PADDED, last));
        let at = row * CHUNKS + min(c, CHUNKS - 1u);
        keys[t] = select(vec4<f32>(), k[at] * params.scale, c < CHUNKS);
        values[t] = select(vec4<f32>(), v[at], c < CHUNKS);
    }
    // In query rows: heads of the group, then queries.
    let from_row = first_query(key0) * group;
    let to_row = end_query(last) * group;
    let last_row = params.q_len * group - 1u;
    var first: array<u32, MINE>;
    var end: array<u32, MINE>;
    //#unroll
    for (var m = 0u; m < MINE; m++) {
        let key = min(key0 + part + m * PARTS, last);
        first[m] = first_query(key) * group;
        end[m] = end_query(key) * group;
    }
    var sum: array<vec4<f32>, 2u * HELD * QUADS>;
    var next_query: array<vec4<f32>, QUADS>;
    var next_upstream: array<vec4<f32>, QUADS>;
    let begin = head_row(sequence, kv_head, min(from_row + slot, last_row));
    var next_lse = lse[begin];
    var next_delta = delta[begin];
    //#unroll
    for (var j = 0u; j < QUADS; j++) {
        next_query[j] = q[begin * CHUNKS + column(part, j)];
        next_upstream[j] = d_out[begin * CHUNKS + column(part, j)];
    }
    workgroupBarrier();

    for (var row0 = from_row; row0 < to_row; row0 += SLOTS) {
        var query: array<vec4<f32>, QUADS>;
        var upstream: array<vec4<f32>, QUADS>;
        let row_lse = next_lse;
        let row_delta = next_delta;
        // Rows behind the last are loaded as the last, and see nothing.
        let row = row0 + slot;
        let next = head_row(sequence, kv_head, min(row + SLOTS, last_row));
        next_lse = lse[next];
        next_delta = delta[next];
        //#unroll
        for (var j = 0u; j < QUADS; j++) {
            query[j] = next_query[j];
            upstream[j] = next_upstream[j];
            next_query[j] = q[next * CHUNKS + column(part, j)];
            next_upstream[j] = d_out[next * CHUNKS + column(part, j)];
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
                    scores[t] = add_dot(keys[at + j * PARTS], query[j], scores[t]);
                    dp[t] = add_dot(values[at + j * PARTS], upstream[j], dp[t]);
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
                let seen = row >= first[m] && row < end[m];
                // Only a masked score can exceed the log-sum-exp; min keeps its exp finite.
                let score = product(slot, held);
                let p = select(0.0, exp(min(score - row_lse, 0.0)), seen);
                weights[slot * HELD + held] = p;
                slopes[slot * HELD + held] = p * (product(slot, HELD + held) - row_delta);
            }
        }
        workgroupBarrier();
        //#unroll
        for (var h = 0u; h < HELD; h++) {
            let weight = vec4(weights[slot * HELD + h]);
            let slope = vec4(slopes[slot * HELD + h]);
            //#unroll
            for (var j = 0u; j < QUADS; j++) {
                sum[h * QUADS + j] = fma(query[j], slope, sum[h * QUADS + j]);
                sum[HELD * QUADS + h * QUADS + j] =
                    fma(upstream[j], weight, sum[HELD * QUADS + h * QUADS + j]);
            }
        }
    }

    // Accumulators of dk, then those of dv.
    //#unroll
    for (var turn = 0u; turn < 2u * HELD * QUADS / PLANES; turn++) {
        workgroupBarrier();
        //#unroll
        for (var n = 0u; n < PLANES; n++) {
            shares[n * WG + lane] = sum[turn * PLANES + n];
        }
        workgroupBarrier();
        let i = (turn * PLANES + slot) % (HELD * QUADS);
        let c = part + i % QUADS * PARTS;
        if slot < PLANES && key0 + i / QUADS <= last && c < CHUNKS {
            let at = key_row(sequence, kv_head, key0 + i / QUADS) * CHUNKS + c;
            let total = over_slots(slot, part);
            if turn * PLANES + slot < HELD * QUADS {
                dk[at] = total * params.scale;
            } else {
                dv[at] = total;
            }
        }
    }
}
