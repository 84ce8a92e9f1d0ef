//! Piece of `weights/packed.wgsl`: 16 values of a block are stored, two of each four columns. They
//! are put where they belong, between zeros.

//#include "weights/positions_row.wgsl"
//#include "weights/expand.wgsl"

struct WBlock {
    words: WWords,
    scale: WScale,
    positions: u32,
}

//#include "weights/block_sparse.wgsl"

fn w_part(block: WBlock, part: u32) -> mat2x4<f32> {
    let four = w_scaled(w_levels_4(block.words, part), block.scale);
    let positions = block.positions >> (8u * part);
    return mat2x4<f32>(w_expand(four.xy, positions), w_expand(four.zw, positions >> 4u));
}

// A minimum belongs to kept columns alone, so that with minima it is the weights themselves.
fn w_unscaled(block: WBlock, part: u32) -> mat2x4<f32> {
    if W_HAS_MIN {
        return w_part(block, part);
    }
    let four = w_levels_4(block.words, part);
    let positions = block.positions >> (8u * part);
    return mat2x4<f32>(w_expand(four.xy, positions), w_expand(four.zw, positions >> 4u));
}

fn w_sum(sum: f32, x_sum: f32, block: WBlock) -> f32 {
    if W_HAS_MIN {
        return sum;
    }
    return w_scaled_sum(sum, x_sum, block.scale);
}

// The place of a value says nothing of its column.
const W_FACTORS: vec4<f32> = vec4(1.0);

fn w_raw(block: WBlock, part: u32) -> mat2x4<f32> {
    return w_unscaled(block, part);
}

fn w_raw_sum(sum: f32, x_sum: f32, block: WBlock) -> f32 {
    return w_sum(sum, x_sum, block);
}
