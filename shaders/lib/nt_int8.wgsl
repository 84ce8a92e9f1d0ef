//! A body of products X·Wᵀ (`lib/nt_tile.wgsl` says what that is) in integers: activations are
//! rounded to int8 as they are staged, with a scale for each 32 columns of a row, and multiplied
//! four at a time with the stored integers. A lane owns one channel and TM rows.
//!
//! This changes the result (`Variant::approximate`). The weights' integers are as stored, plus
//! W_BIAS, whose share is taken off through the sum of the activations' integers.

const TM: u32 = 8u;  //#spec rows a workgroup
const TN: u32 = 1u;
const WX: u32 = 64u;  //#spec lanes, each a channel
const WY: u32 = 1u;
const GROUPS: u32 = 4u;  //#spec groups of 32 columns staged at a time
const ROW_STEP: u32 = 1u;
const SHARE: u32 = 1u;
const TAIL_STEP: u32 = 4u;

//#include "lib/ints_q8.wgsl"

// Four signed bytes a word, eight words a group.
var<workgroup> x_ints: array<u32, TM * GROUPS * 8u>;
// Of a group: its scale, and W_BIAS times the sum of its integers.
var<workgroup> x_scales: array<vec2<f32>, TM * GROUPS>;

fn stage(task: u32, base: u32, first: u32) {
    var quads: array<vec4<f32>, 8>;
    var largest = 0.0;
    //#unroll
    for (var q = 0u; q < 8u; q++) {
        if first + 4u * q < params.k {
            quads[q] = load_x4(base, first + 4u * q, params.k);
        }
        let sizes = abs(quads[q]);
        largest = max(largest, max(max(sizes.x, sizes.y), max(sizes.z, sizes.w)));
    }
    // Too small to divide by: all zeros.
    let inverse = select(0.0, 127.0 / max(largest, 1e-30), largest > 1e-30);
    var sum = 0;
    //#unroll
    for (var q = 0u; q < 8u; q++) {
        let ints = vec4<i32>(round(quads[q] * inverse));
        sum += ints.x + ints.y + ints.z + ints.w;
        x_ints[task * 8u + q] = pack4xI8(ints);
    }
    x_scales[task] = vec2(largest / 127.0, W_BIAS * f32(sum));
}

fn multiply(lane: vec2<u32>, tile: u32) {
    let tiles_m = (params.m + TM - 1u) / TM;
    let row0 = tile % tiles_m * TM;
    let channel = tile / tiles_m * WX + lane.x;
    // Lanes beyond the last channel compute that one again: they take part in the barriers.
    let col = array<u32, TN>(min(channel, params.n - 1u));
    let blocks = (params.k + W_STEP - 1u) / W_STEP;
    var acc: array<f32, TM>;
    for (var b0 = 0u; b0 < blocks; b0 += GROUPS) {
        for (var t = lane.x; t < TM * GROUPS; t += WX) {
            let row = min(row0 + t / GROUPS, params.m - 1u);
            let base = params.in_offset + row * params.ld_in;
            stage(t, base, (b0 + t % GROUPS) * W_STEP);
        }
        workgroupBarrier();
        for (var g = 0u; g < min(GROUPS, blocks - b0); g++) {
            let block = load_w_block(col[0], b0 + g);
            var sums: array<i32, TM>;
            for (var part = 0u; part < 4u; part++) {
                let ints = w_ints(block, part);
                //#unroll
                for (var i = 0u; i < TM; i++) {
                    let at = (i * GROUPS + g) * 8u + 2u * part;
                    sums[i] += dot4I8Packed(x_ints[at], ints.x);
                    sums[i] += dot4I8Packed(x_ints[at + 1u], ints.y);
                }
            }
            //#unroll
            for (var i = 0u; i < TM; i++) {
                let scale = x_scales[i * GROUPS + g];
                acc[i] += block.scale.factor * scale.x * (f32(sums[i]) - scale.y);
            }
        }
        workgroupBarrier();
    }
    let tail_first = 0u;
    //#include "lib/tail_none.wgsl"
    //#unroll
    for (var i = 0u; i < TM; i++) {
        if row0 + i < params.m && channel < params.n {
            store_y(row0 + i, channel, acc[i]);
        }
    }
}
