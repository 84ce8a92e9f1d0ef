//! Piece of `weights/packed.wgsl`: levels that are the weights themselves.

@group(0) @binding(4) var<storage, read> w_scales: array<u32>;

const W_HAS_MIN: bool = false;

struct WScale {
    none: u32,
}

fn load_w_scale(n: u32, block: u32) -> WScale {
    return WScale(0u);
}

fn w_scaled(levels: vec4<f32>, scale: WScale) -> vec4<f32> {
    return levels;
}

fn w_scaled_sum(sum: f32, x_sum: f32, scale: WScale) -> f32 {
    return sum;
}

fn w_position_base() -> u32 {
    return 0u;
}
