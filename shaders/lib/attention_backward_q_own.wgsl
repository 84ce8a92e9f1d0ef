//! The body of `attention_backward_q` without workgroup memory: an invocation treats TQ query rows
//! that share a key-value head, and with it every load of k and v. Grid: one per TQ rows.

const WG: u32 = 64u;  //#spec
const TQ: u32 = 1u;  //#spec query rows an invocation

fn attend(lane: u32, workgroup: u32) {
    let i = workgroup * WG + lane;
    let group = params.heads / params.kv_heads;
    let rows = params.q_len * group;
    let tiles = (rows + TQ - 1u) / TQ;
    if i >= params.batch * params.kv_heads * tiles {
        return;
    }
    let tile = i % tiles;
    let kv_head = (i / tiles) % params.kv_heads;
    let sequence = i / tiles / params.kv_heads;

    var head_row: array<u32, TQ>;
    var first: array<u32, TQ>;
    var end: array<u32, TQ>;
    var query: array<Element, TQ * CHUNKS>;
    var upstream: array<Element, TQ * CHUNKS>;
    var sum: array<Element, TQ * CHUNKS>;
    var of_row: array<vec2<f32>, TQ>;
    var from_key = params.kv_len;
    var to_key = 0u;
    //#unroll
    for (var t = 0u; t < TQ; t++) {
        // A row behind the last one repeats it and is not stored.
        let row = min(tile * TQ + t, rows - 1u);
        let token = row / group;
        head_row[t] = (sequence * params.q_len + token) * params.heads
            + kv_head * group + row % group;
        first[t] = first_key(sequence, token);
        end[t] = end_key(token);
        from_key = min(from_key, first[t]);
        to_key = max(to_key, end[t]);
        of_row[t] = stats[head_row[t]];
        let at = head_row[t] * CHUNKS;
        //#unroll
        for (var c = 0u; c < CHUNKS; c++) {
            query[t * CHUNKS + c] = q[at + c] * params.scale;
            upstream[t * CHUNKS + c] = d_out[at + c];
            sum[t * CHUNKS + c] = Element(0.0);
        }
    }

    var keys: array<Element, CHUNKS>;
    for (var key = from_key; key < to_key; key++) {
        let at = ((sequence * params.kv_stride + key) * params.kv_heads + kv_head) * CHUNKS;
        var score: array<f32, TQ>;
        var dp: array<f32, TQ>;
        //#unroll
        for (var t = 0u; t < TQ; t++) {
            score[t] = 0.0;
            dp[t] = 0.0;
        }
        //#unroll
        for (var c = 0u; c < CHUNKS; c++) {
            keys[c] = k[at + c];
            let value = v[at + c];
            //#unroll
            for (var t = 0u; t < TQ; t++) {
                score[t] += lanes_dot(query[t * CHUNKS + c], keys[c]);
                dp[t] += lanes_dot(upstream[t * CHUNKS + c], value);
            }
        }
        //#unroll
        for (var t = 0u; t < TQ; t++) {
            let seen = key >= first[t] && key < end[t];
            // Only a masked score can exceed the log-sum-exp; min keeps its exp finite.
            let p = select(0.0, exp(min(score[t] - of_row[t].x, 0.0)), seen);
            score[t] = p * (dp[t] - of_row[t].y);
        }
        //#unroll
        for (var c = 0u; c < CHUNKS; c++) {
            //#unroll
            for (var t = 0u; t < TQ; t++) {
                sum[t * CHUNKS + c] += keys[c] * score[t];
            }
        }
    }

    //#unroll
    for (var t = 0u; t < TQ; t++) {
        if tile * TQ + t < rows {
            let at = head_row[t] * CHUNKS;
            //#unroll
            for (var c = 0u; c < CHUNKS; c++) {
                dq[at + c] = sum[t * CHUNKS + c] * params.scale;
            }
        }
    }
}
