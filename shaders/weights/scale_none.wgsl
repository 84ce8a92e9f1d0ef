//! Piece of `weights/packed.wgsl`: levels that are the weights themselves.

const W_HAS_MIN: bool = false;

struct WScale {
    none: u32,
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

//#include "weights/load_scale_none.wgsl"
