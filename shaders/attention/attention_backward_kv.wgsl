//! dv[j,g,:] = Σ_{i,h} p[i,j] · d_out[i,h,:],  dk[j,g,:] = scale · Σ_{i,h} ds[i,j] · q[i,h,:],
//! over the queries i that attend key j and the heads h of the group of g
//!
//! p = exp(scale · q·k − lse[i,h]),  ds = p · (d_out[i,h,:] · v[j,g,:] − delta[i,h])
//!
//! q, d_out: [batch · q_len, heads, head_dim] f32 · k, v, dk, dv: [batch · kv_stride, kv_heads,
//! head_dim] f32 · lse, delta: [batch · q_len, heads] f32 · the rest as in attention_forward
//! Grid: one invocation per TK keys of a key-value head. Shared: none. Needs: nothing beyond core
//! WebGPU.

//#include "lib/scalar.wgsl"
//#include "lib/attention.wgsl"

const WG: u32 = 64u;  //#spec
const HEAD_DIM: u32 = 64u;  //#spec params.head_dim
const TK: u32 = 1u;  //#spec keys an invocation
const CHUNKS: u32 = HEAD_DIM / LANES;

struct Params {
    batch: u32,
    q_len: u32,
    kv_len: u32,
    kv_stride: u32,
    position0: u32,
    heads: u32,
    kv_heads: u32,
    head_dim: u32,
    window: u32,
    scale: f32,
}

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> q: array<Element>;
@group(0) @binding(2) var<storage, read> k: array<Element>;
@group(0) @binding(3) var<storage, read> v: array<Element>;
@group(0) @binding(4) var<storage, read> lse: array<f32>;
@group(0) @binding(5) var<storage, read> delta: array<f32>;
@group(0) @binding(6) var<storage, read> d_out: array<Element>;
@group(0) @binding(7) var<storage, read_write> dk: array<Element>;
@group(0) @binding(8) var<storage, read_write> dv: array<Element>;

@compute @workgroup_size(WG)
fn attention_backward_kv(
    @builtin(local_invocation_index) lane: u32,
    @builtin(workgroup_id) workgroup: vec3<u32>,
    @builtin(num_workgroups) workgroups: vec3<u32>,
) {
    let i = (workgroup.y * workgroups.x + workgroup.x) * WG + lane;
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
        end[t] = end_query(key);
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
            let row_lse = lse[head_row];
            let row_delta = delta[head_row];
            //#unroll
            for (var t = 0u; t < TK; t++) {
                let seen = token >= first[t] && token < end[t];
                // Only a masked score can exceed the log-sum-exp; min keeps its exp finite.
                score[t] = select(0.0, exp(min(score[t] - row_lse, 0.0)), seen);
                dp[t] = score[t] * (dp[t] - row_delta);
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
