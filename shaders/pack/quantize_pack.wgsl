//! scales[g,n] = f16(max |source[n,c]| / q_max) over the group g of columns,
//! values[b,n] = levels round(source[n,c] / scale) of the block b of 32 columns, half away from 0
//!
//! source: [rows, cols] in `lib/source_*.wgsl`'s format · scales: [groups, ceil(rows / 2)] u32
//! values: blocks as in `weights/levels_*.wgsl`, written by `lib/pack_q*.wgsl`
//! Grid: one invocation a group of columns of two rows. Shared: none. Needs: nothing beyond core
//! WebGPU.

//#include "lib/source_f32.wgsl"
//#include "lib/pack_q4.wgsl"

const WG: u32 = 64u;
const GROUP: u32 = 32u;  //#spec 32 or 64 columns that share a scale
const INFINITE: u32 = 0x7f800000u;

struct Params {
    rows: u32,
    cols: u32,
    source: u32,
}

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> source: array<u32>;
@group(0) @binding(2) var<storage, read_write> values: array<u32>;
@group(0) @binding(3) var<storage, read_write> scales: array<u32>;

// The bits of a weight as f32; 0 behind the last column. All of this is integer arithmetic where a
// rounding decides: devices differ in how they divide, and in whether they flush subnormals.
fn weight(n: u32, c: u32) -> u32 {
    var bits = 0u;
    if c < params.cols {
        bits = source_bits(n, c);
    }
    return bits;
}

// The f16 bits of `largest` / q_max: first to the nearest f32 and then to the nearest f16, even at
// a tie, as the host does it; at least the smallest normal f16, at most the largest.
fn scale_of(largest: u32) -> u32 {
    if largest == 0u {
        return SCALE_OF_ZEROS;
    }
    // A mantissa of 24 bits at the top of a word, over a divisor of at most 7 bits, has at least
    // 25 bits.
    let numerator = ((largest & 0x7fffffu) | 0x800000u) << 8u;
    let quotient = numerator / DIVISOR;
    let rest = numerator % DIVISOR;
    let cut = 8u - countLeadingZeros(quotient);
    let half = 1u << (cut - 1u);
    let tail = quotient & (2u * half - 1u);
    var mantissa = quotient >> cut;
    if tail > half || (tail == half && (rest > 0u || (mantissa & 1u) == 1u)) {
        mantissa += 1u;
    }
    let exponent = i32((largest >> 23u) + cut + DOUBLED) - 8;
    if exponent < 112 {
        return 0x0400u;
    }
    // The leading bit of the mantissa adds one to the exponent.
    let bits = clamp((u32(exponent - 1) << 23u) + mantissa, 0x38800000u, 0x477fe000u);
    let cut_off = bits & 0x1fffu;
    let kept = (bits - 0x38000000u) >> 13u;
    let up = cut_off > 0x1000u || (cut_off == 0x1000u && (kept & 1u) == 1u);
    return min(kept + u32(up), 0x7bffu);
}

// round(|x| / step), half away from 0, at most `limit`. Products of a level and a half with a
// step of 11 bits are exact, so the comparisons decide what an approximate quotient left open.
fn nearest(size: u32, step: f32, limit: u32) -> u32 {
    let bounded = min(size, bitcast<u32>(f32(limit) * step));
    var level = min(u32(bitcast<f32>(bounded) / step + 0.5), limit);
    if level < limit && size >= bitcast<u32>((f32(level) + 0.5) * step) {
        level += 1u;
    } else if level > 0u && size < bitcast<u32>((f32(level) - 0.5) * step) {
        level -= 1u;
    }
    return level;
}

// The signed level of a weight; NaN has 0.
fn rounded(bits: u32, step: f32, limit: u32) -> i32 {
    let size = bits & 0x7fffffffu;
    if size > INFINITE {
        return 0;
    }
    let level = i32(nearest(size, step, limit));
    return select(level, -level, bits >= 0x80000000u);
}

@compute @workgroup_size(WG)
fn quantize_pack(
    @builtin(local_invocation_index) lane: u32,
    @builtin(workgroup_id) workgroup: vec3<u32>,
    @builtin(num_workgroups) workgroups: vec3<u32>,
) {
    let i = (workgroup.y * workgroups.x + workgroup.x) * WG + lane;
    let pairs = (params.rows + 1u) / 2u;
    let blocks = (params.cols + 31u) / 32u;
    if i >= (params.cols + GROUP - 1u) / GROUP * pairs {
        return;
    }
    let group = i / pairs;
    let pair = i - group * pairs;
    let end = min((group + 1u) * (GROUP / 32u), blocks);
    var both = 0u;
    for (var r = 0u; r < 2u; r++) {
        let n = 2u * pair + r;
        if n < params.rows {
            var largest = 0u;
            for (var c = group * GROUP; c < (group + 1u) * GROUP; c++) {
                let size = weight(n, c) & 0x7fffffffu;
                largest = max(largest, select(size, 0u, size > INFINITE));
            }
            let scale = scale_of(largest);
            both |= scale << (16u * r);
            let step = unpack2x16float(scale).x;
            for (var block = group * (GROUP / 32u); block < end; block++) {
                store_block(n, block, blocks, step);
            }
        }
    }
    scales[i] = both;
}
