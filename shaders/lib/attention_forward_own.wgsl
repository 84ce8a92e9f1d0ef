//! The body of `attention_forward` without workgroup memory: an invocation treats TQ query rows
//! that share a key-value head, and with it every load of k and v. Grid: one per TQ rows.

const WG: u32 = 64u;  //#spec
const TQ: u32 = 2u;  //#spec query rows an invocation

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
    var sum: array<Element, TQ * CHUNKS>;
    var highest: array<f32, TQ>;
    var total: array<f32, TQ>;
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
        highest[t] = LOWEST;
        total[t] = 0.0;
        let at = head_row[t] * CHUNKS;
        //#unroll
        for (var c = 0u; c < CHUNKS; c++) {
            query[t * CHUNKS + c] = q[at + c] * params.scale;
            sum[t * CHUNKS + c] = Element(0.0);
        }
    }

    for (var key = from_key; key < to_key; key++) {
        let at = ((sequence * params.kv_stride + key) * params.kv_heads + kv_head) * CHUNKS;
        var score: array<f32, TQ>;
        //#unroll
        for (var t = 0u; t < TQ; t++) {
            score[t] = 0.0;
        }
        //#unroll
        for (var c = 0u; c < CHUNKS; c++) {
            let chunk = k[at + c];
            //#unroll
            for (var t = 0u; t < TQ; t++) {
                score[t] += lanes_dot(query[t * CHUNKS + c], chunk);
            }
        }
        var decay: array<f32, TQ>;
        //#unroll
        for (var t = 0u; t < TQ; t++) {
            let seen = key >= first[t] && key < end[t];
            let peak = select(highest[t], max(highest[t], score[t]), seen);
            decay[t] = exp(highest[t] - peak);
            score[t] = select(0.0, exp(min(score[t] - peak, 0.0)), seen);
            total[t] = total[t] * decay[t] + score[t];
            highest[t] = peak;
        }
        //#unroll
        for (var c = 0u; c < CHUNKS; c++) {
            let chunk = v[at + c];
            //#unroll
            for (var t = 0u; t < TQ; t++) {
                sum[t * CHUNKS + c] = sum[t * CHUNKS + c] * decay[t] + chunk * score[t];
            }
        }
    }

    //#unroll
    for (var t = 0u; t < TQ; t++) {
        if tile * TQ + t < rows {
            let at = head_row[t] * CHUNKS;
            //#unroll
            for (var c = 0u; c < CHUNKS; c++) {
                out[at + c] = sum[t * CHUNKS + c] / total[t];
            }
            lse[head_row[t]] = highest[t] + log(total[t]);
        }
    }
}
