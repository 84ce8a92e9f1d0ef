//! Piece of `weights/packed.wgsl`: W = stored value · scale + min, an f16 scale and an f16 minimum
//! per `GROUP` columns of a row, together a word.

const GROUP: u32 = 32u;  //#spec 32 or 64 columns that share a scale

const W_HAS_MIN: bool = true;

struct WScale {
    factor: f32,
    zero: f32,
}

// A scale and a minimum, as they are stored.
fn w_scale(bits: u32) -> WScale {
    let pair = unpack2x16float(bits);
    // The weight of level 0, which is stored as W_OFFSET.
    return WScale(pair.x, pair.y + W_OFFSET * pair.x);
}

fn w_scaled(levels: vec4<f32>, scale: WScale) -> vec4<f32> {
    return levels * scale.factor + scale.zero;
}

fn w_scaled_sum(sum: f32, x_sum: f32, scale: WScale) -> f32 {
    return sum * scale.factor + x_sum * scale.zero;
}

fn w_position_base() -> u32 {
    return (w_cols() + GROUP - 1u) / GROUP * w_rows();
}

//#include "weights/load_scale_min.wgsl"
