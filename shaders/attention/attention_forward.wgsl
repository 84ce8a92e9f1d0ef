//! out[i,h,:] = Σ_j softmax_j(scale · q[i,h,:] · k[j,g,:]) · v[j,g,:]
//! lse[i,h] = ln Σ_j exp(scale · q[i,h,:] · k[j,g,:])
//!
//! q, out: [batch · q_len, heads, head_dim] f32 · k, v: [batch · kv_stride, kv_heads, head_dim] f32
//! · lse: [batch · q_len, heads] f32 · g = h / (heads / kv_heads); query i stands at position
//! position0 + i and attends keys up to it (with a window, the last ones only).
//!
//! Softmax online: a running maximum, a running sum and an accumulator per query, rescaled when
//! the maximum grows, so no score reaches memory. An invocation treats TQ query rows that share
//! a key-value head, and with it every load of k and v.
//! Grid: one invocation per TQ query rows of a key-value head. Shared: none. Needs: nothing beyond
//! core WebGPU.

//#include "lib/scalar.wgsl"
//#include "lib/attention.wgsl"

const WG: u32 = 64u;  //#spec
const HEAD_DIM: u32 = 64u;  //#spec params.head_dim
const TQ: u32 = 2u;  //#spec query rows an invocation
const CHUNKS: u32 = HEAD_DIM / LANES;
// Finite, because WGSL may assume that no infinity occurs.
const LOWEST: f32 = -1e30;

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
@group(0) @binding(4) var<storage, read_write> out: array<Element>;
@group(0) @binding(5) var<storage, read_write> lse: array<f32>;

@compute @workgroup_size(WG)
fn attention_forward(
    @builtin(local_invocation_index) lane: u32,
    @builtin(workgroup_id) workgroup: vec3<u32>,
    @builtin(num_workgroups) workgroups: vec3<u32>,
) {
    let i = (workgroup.y * workgroups.x + workgroup.x) * WG + lane;
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
        let position = params.position0 + token;
        head_row[t] = (sequence * params.q_len + token) * params.heads
            + kv_head * group + row % group;
        first[t] = first_key(position);
        end[t] = end_key(position);
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
