//! The scales of `weights/scale.wgsl`, a row at a time.

@group(0) @binding(4) var<storage, read> w_scales: array<u32>;

fn load_w_scale(n: u32, block: u32) -> WScale {
    let pair = w_scales[block / (GROUP / W_STEP) * ((w_rows() + 1u) / 2u) + n / 2u];
    let scales = unpack2x16float(pair);
    return WScale(select(scales.x, scales.y, (n & 1u) == 1u));
}
