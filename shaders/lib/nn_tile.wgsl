//! A body of products dY·W: every thread owns TM rows of one block of columns and walks over n,
//! without workgroup memory.
//!
//! All bodies `lib/nn_*.wgsl` define the same names: `WX` and `WY`, the shape of a workgroup, and
//! `multiply(lane, tile)`, which computes the outputs of one workgroup and hands each to
//! `store_dx(row, col, product)`. The includer gives that, `load_dy4` and the weights.
//!
//! The walk is a file of its own, `lib/nn_walk.wgsl`, which another one may replace.

const TM: u32 = 4u;  //#spec rows a thread
const WX: u32 = 4u;  //#spec lanes along k
const WY: u32 = 16u;  //#spec lanes along m
const SHARE: u32 = 1u;  //#spec rows that the lanes of a subgroup load for each other, 1 or WX
const PARTS: u32 = W_STEP / 8u;

fn store_quad(row: u32, col: u32, values: vec4<f32>) {
    // Rolled: this is written out for every quad of a thread, and compile time counts.
    for (var c = 0u; c < 4u; c += STORED) {
        if col + c < params.k {
            store_dx(row, col + c, stored_of(values, c));
        }
    }
}

fn multiply(lane: vec2<u32>, tile: u32) {
    let tiles_m = (params.m + WY * TM - 1u) / (WY * TM);
    let row0 = (tile % tiles_m * WY + lane.y) * TM;
    let b = tile / tiles_m * WX + lane.x;
    // Lanes that load for others stay.
    if row0 >= params.m || (SHARE == 1u && b * W_STEP >= params.k) {
        return;
    }
    let b_load = min(b, (params.k - 1u) / W_STEP);
    // Rows beyond the last are computed from the last and not stored.
    var base: array<u32, TM / SHARE>;
    //#unroll
    for (var h = 0u; h < TM / SHARE; h++) {
        let row = min(row0 + h * SHARE + lane.x % SHARE, params.m - 1u);
        base[h] = params.in_offset + row * params.ld_in;
    }
    var acc: array<mat2x4<f32>, TM * PARTS>;
    //#include "lib/nn_walk.wgsl"
    //#unroll
    for (var i = 0u; i < TM; i++) {
        //#unroll
        for (var part = 0u; part < PARTS; part++) {
            if row0 + i < params.m {
                let col = b * W_STEP + part * 8u;
                store_quad(row0 + i, col, acc[i * PARTS + part][0]);
                store_quad(row0 + i, col + 4u, acc[i * PARTS + part][1]);
            }
        }
    }
}
