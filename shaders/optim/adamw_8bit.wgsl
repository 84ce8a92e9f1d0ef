//! One AdamW step as `optim/adamw.wgsl`, with moments in 8 bits. A moment is an f32 of three
//! mantissa bits, rounded up or down at random; its code counts such numbers down from the
//! largest of its block, which has code 255 (v) or 127 (m, below a sign bit); code 0 is 0.
//!
//! param: [count] f32, updated in place · grad: [count] f32 · clip: [2] f32 (norm, scale)
//! m, v: [blocks, 64] u32: byte j of word w is element w + 64 j of the block
//! largest: [blocks, 2] f32: of |m| and of v, rounded up · blocks = ceil(count / 256)
//! Grid: one workgroup a block. Shared: 4·WG bytes. Needs: nothing beyond core WebGPU.

//#include "lib/reduce.wgsl"

const WG: u32 = 64u;  // words of a block
const PER_LANE: u32 = 4u;
const BLOCK: u32 = WG * PER_LANE;
// The smallest normal f32: what is below is 0, on devices that flush subnormals as elsewhere.
const NORMAL: u32 = 0x00800000u;
// Bits of an f32's mantissa that are cut off.
const CUT: u32 = 20u;
const CUT_MASK: u32 = 0xfffffu;

struct Params {
    count: u32,
    lr: f32,
    beta1: f32,
    beta2: f32,
    eps: f32,
    weight_decay: f32,
    correction1: f32,
    correction2: f32,
    seed: u32,
}

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read_write> param: array<f32>;
@group(0) @binding(2) var<storage, read> grad: array<f32>;
@group(0) @binding(3) var<storage, read_write> m: array<u32>;
@group(0) @binding(4) var<storage, read_write> v: array<u32>;
@group(0) @binding(5) var<storage, read_write> largest: array<f32>;
@group(0) @binding(6) var<storage, read> clip: array<f32>;

// PCG-RXS-M-XS (Jarzynski and Olano 2020).
fn hash(x: u32) -> u32 {
    let state = x * 747796405u + 2891336453u;
    let word = ((state >> ((state >> 28u) + 4u)) ^ state) * 277803737u;
    return (word >> 22u) ^ word;
}

// The number of `code`, where `top` has code `levels`.
fn decode(code: u32, top: u32, levels: u32) -> f32 {
    let key = i32(top + code) - i32(levels);
    return select(0.0, bitcast<f32>(u32(max(key, 0)) << CUT), code > 0u && key >= 8);
}

// The code of `x` >= 0, at least `least` unless x is 0.
fn encode(x: f32, random: u32, top: u32, levels: u32, least: i32) -> u32 {
    let bits = bitcast<u32>(x);
    let key = (bits + (random >> (32u - CUT))) >> CUT;
    let code = max(i32(key + levels) - i32(top), least);
    return select(0u, u32(code), bits >= NORMAL);
}

// The cut of the largest moment of a block: no moment of it rounds to more.
fn top_of(x: f32) -> u32 {
    let bits = bitcast<u32>(x);
    return select(0u, (bits + CUT_MASK) >> CUT, bits >= NORMAL);
}

@compute @workgroup_size(WG)
fn adamw_8bit(
    lane: Lane,
    @builtin(workgroup_id) workgroup: vec3<u32>,
    @builtin(num_workgroups) workgroups: vec3<u32>,
) {
    let block = workgroup.y * workgroups.x + workgroup.x;
    if block >= (params.count + BLOCK - 1u) / BLOCK {
        return;
    }
    let word = block * WG + lane.index;
    let first = block * BLOCK + lane.index;
    let m_codes = m[word];
    let v_codes = v[word];
    let m_top = bitcast<u32>(largest[2u * block]) >> CUT;
    let v_top = bitcast<u32>(largest[2u * block + 1u]) >> CUT;
    var m_new: array<f32, PER_LANE>;
    var v_new: array<f32, PER_LANE>;
    var m_most = 0.0;
    var v_most = 0.0;
    //#unroll
    for (var j = 0u; j < PER_LANE; j++) {
        let i = first + j * WG;
        if i < params.count {
            let g = clip[1] * grad[i];
            let m_code = m_codes >> (8u * j);
            let size = decode(m_code & 127u, m_top, 127u);
            let m_old = select(size, -size, (m_code & 128u) > 0u);
            let v_old = decode((v_codes >> (8u * j)) & 255u, v_top, 255u);
            m_new[j] = m_old + (1.0 - params.beta1) * (g - m_old);
            v_new[j] = params.beta2 * v_old + (1.0 - params.beta2) * g * g;
            let denominator = sqrt(v_new[j]) / sqrt(params.correction2) + params.eps;
            let decayed = param[i] - params.lr * params.weight_decay * param[i];
            param[i] = decayed - params.lr / params.correction1 * m_new[j] / denominator;
            m_most = max(m_most, abs(m_new[j]));
            v_most = max(v_most, v_new[j]);
        }
    }
    let m_largest = top_of(workgroup_max(m_most, lane));
    let v_largest = top_of(workgroup_max(v_most, lane));
    let salt = hash(params.seed);
    var m_word = 0u;
    var v_word = 0u;
    //#unroll
    for (var j = 0u; j < PER_LANE; j++) {
        // Elements behind the last are 0, since variables start so.
        let random = hash((first + j * WG) ^ salt);
        let sign = select(0u, 128u, m_new[j] < 0.0);
        let m_code = encode(abs(m_new[j]), random, m_largest, 127u, 0);
        m_word |= select(0u, m_code | sign, m_code > 0u) << (8u * j);
        v_word |= encode(v_new[j], hash(random), v_largest, 255u, 1) << (8u * j);
    }
    m[word] = m_word;
    v[word] = v_word;
    if lane.index == 0u {
        largest[2u * block] = bitcast<f32>(m_largest << CUT);
        largest[2u * block + 1u] = bitcast<f32>(v_largest << CUT);
    }
}
