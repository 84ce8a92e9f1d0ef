//! Piece of `weights/packed.wgsl`: 16 values of a block are stored, two of each four columns, and
//! given as they are: two parts of eight. They belong to those columns of the other factor that
//! `positions` says, the same ones in neighbouring rows: `lib/held_gather.wgsl`.

//#include "weights/positions_row.wgsl"
//#include "weights/expand.wgsl"

struct WBlock {
    words: WWords,
    scale: WScale,
    positions: u32,
}

//#include "weights/block_sparse.wgsl"

fn w_part(block: WBlock, part: u32) -> mat2x4<f32> {
    let levels = w_levels(block.words, part);
    return mat2x4<f32>(w_scaled(levels[0], block.scale), w_scaled(levels[1], block.scale));
}

fn w_unscaled(block: WBlock, part: u32) -> mat2x4<f32> {
    return w_levels(block.words, part);
}

fn w_sum(sum: f32, x_sum: f32, block: WBlock) -> f32 {
    return w_scaled_sum(sum, x_sum, block.scale);
}

const W_FACTORS: vec4<f32> = W_PLACES;

fn w_raw(block: WBlock, part: u32) -> mat2x4<f32> {
    return w_raw_levels(block.words, part);
}

fn w_raw_sum(sum: f32, x_sum: f32, block: WBlock) -> f32 {
    return w_scaled_sum(sum - W_OFFSET * x_sum, x_sum, block.scale);
}
