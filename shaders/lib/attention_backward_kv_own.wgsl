//! The body of `attention_backward_kv` without workgroup memory: an invocation treats TK keys of a
//! key-value head, and with them every load of q and d_out. Grid: one invocation per TK keys.

const WG: u32 = 64u;  //#spec
const TK: u32 = 1u;  //#spec keys an invocation

fn attend(lane: u32, workgroup: u32) {
    let i = workgroup * WG + lane;
    let tiles = (params.kv_len + TK - 1u) / TK;
    if i >= params.batch * params.kv_heads * tiles {
        return;
    }
    let tile = i % tiles;
    let kv_head = (i / tiles) % params.kv_heads;
    let sequence = i / tiles / params.kv_heads;
    let group = params.heads / params.kv_heads;

    var key_row: array<u32, TK>;
    var first: array<u32, TK>;
    var end: array<u32, TK>;
    var keys: array<Element, TK * CHUNKS>;
    var values: array<Element, TK * CHUNKS>;
    var sum_k: array<Element, TK * CHUNKS>;
    var sum_v: array<Element, TK * CHUNKS>;
    var from_query = params.q_len;
    var to_query = 0u;
    //#unroll
    for (var t = 0u; t < TK; t++) {
        // A key behind the last one repeats it and is not stored.
        let key = min(tile * TK + t, params.kv_len - 1u);
        key_row[t] = (sequence * params.kv_stride + key) * params.kv_heads + kv_head;
        first[t] = first_query(key);
        end[t] = end_query(sequence, key);
        from_query = min(from_query, first[t]);
        to_query = max(to_query, end[t]);
        let at = key_row[t] * CHUNKS;
        //#unroll
        for (var c = 0u; c < CHUNKS; c++) {
            keys[t * CHUNKS + c] = k[at + c] * params.scale;
            values[t * CHUNKS + c] = v[at + c];
            sum_k[t * CHUNKS + c] = Element(0.0);
            sum_v[t * CHUNKS + c] = Element(0.0);
        }
    }

    var query: array<Element, CHUNKS>;
    var upstream: array<Element, CHUNKS>;
    for (var token = from_query; token < to_query; token++) {
        for (var h = 0u; h < group; h++) {
            let head_row =
                (sequence * params.q_len + token) * params.heads + kv_head * group + h;
            let at = head_row * CHUNKS;
            var score: array<f32, TK>;
            var dp: array<f32, TK>;
            //#unroll
            for (var t = 0u; t < TK; t++) {
                score[t] = 0.0;
                dp[t] = 0.0;
            }
            //#unroll
            for (var c = 0u; c < CHUNKS; c++) {
                query[c] = q[at + c];
                upstream[c] = d_out[at + c];
                //#unroll
                for (var t = 0u; t < TK; t++) {
                    score[t] += lanes_dot(query[c], keys[t * CHUNKS + c]);
                    dp[t] += lanes_dot(upstream[c], values[t * CHUNKS + c]);
                }
            }
            let of_row = stats[head_row];
            //#unroll
            for (var t = 0u; t < TK; t++) {
                let seen = token >= first[t] && token < end[t];
                // Only a masked score can exceed the log-sum-exp; min keeps its exp finite.
                score[t] = select(0.0, exp(min(score[t] - of_row.x, 0.0)), seen);
                dp[t] = score[t] * (dp[t] - of_row.y);
            }
            //#unroll
            for (var c = 0u; c < CHUNKS; c++) {
                //#unroll
                for (var t = 0u; t < TK; t++) {
                    sum_v[t * CHUNKS + c] += upstream[c] * score[t];
                    sum_k[t * CHUNKS + c] += query[c] * dp[t];
                }
            }
        }
    }

    //#unroll
    for (var t = 0u; t < TK; t++) {
        if tile * TK + t < params.kv_len {
            let at = key_row[t] * CHUNKS;
            //#unroll
            for (var c = 0u; c < CHUNKS; c++) {
                dk[at + c] = sum_k[t * CHUNKS + c] * params.scale;
                dv[at + c] = sum_v[t * CHUNKS + c];
            }
        }
    }
}
