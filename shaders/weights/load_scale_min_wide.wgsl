//! The scales of `weights/scale_min.wgsl`, of several rows at once; there are a multiple of 8 rows.

@group(0) @binding(4) var<storage, read> w_scales: array<vec2<u64>>;

// Rows n .. n + 4 of a block, n a multiple of 4.
fn load_w_scale_four(n: u32, block: u32) -> array<WScale, 4> {
    let at = block / (GROUP / W_STEP) * w_rows() + n;
    let pairs = halves_2(w_scales[at / 4u]);
    return array<WScale, 4>(
        w_scale(pairs.x),
        w_scale(pairs.y),
        w_scale(pairs.z),
        w_scale(pairs.w),
    );
}

//#include "weights/scale_eight.wgsl"
