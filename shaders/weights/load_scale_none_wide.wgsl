//! The scales of `weights/scale_none.wgsl`, of several rows at once; there are 8, 16, … rows.

@group(0) @binding(4) var<storage, read> w_scales: array<vec2<u64>>;

// Rows n .. n + 4 of a block, n a multiple of 4.
fn load_w_scale_four(n: u32, block: u32) -> array<WScale, 4> {
    let none = WScale(0u);
    return array<WScale, 4>(none, none, none, none);
}

//#include "weights/scale_eight.wgsl"
