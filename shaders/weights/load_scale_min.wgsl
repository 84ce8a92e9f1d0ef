//! The scales of `weights/scale_min.wgsl`, a row at a time.

@group(0) @binding(4) var<storage, read> w_scales: array<u32>;

fn load_w_scale(n: u32, block: u32) -> WScale {
    return w_scale(w_scales[block / (GROUP / W_STEP) * w_rows() + n]);
}
