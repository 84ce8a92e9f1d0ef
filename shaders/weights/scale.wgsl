//! Piece of `weights/packed.wgsl`: W = level · scale, an f16 scale per `GROUP` columns
//! of a row, two rows a word.

const GROUP: u32 = 32u;  //#spec 32 or 64 columns that share a scale

const W_HAS_MIN: bool = false;

struct WScale {
    factor: f32,
}

fn w_scaled(levels: vec4<f32>, scale: WScale) -> vec4<f32> {
    return levels * scale.factor;
}

fn w_scaled_sum(sum: f32, x_sum: f32, scale: WScale) -> f32 {
    return sum * scale.factor;
}

fn w_position_base() -> u32 {
    return (w_cols() + GROUP - 1u) / GROUP * ((w_rows() + 1u) / 2u);
}

//#include "weights/load_scale.wgsl"
