//! Piece of `weights/packed.wgsl`: 16 values of a block are stored, two of each four columns, and
//! given as they are: two parts of eight. They belong to those columns of the other factor that
//! `positions` says, other ones in each row: `lib/dots_pick.wgsl`.

//#include "weights/positions_row.wgsl"

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

// A minimum belongs to kept columns alone, whose sum the includer does not have, so that with
// minima it is the weights themselves.
fn w_unscaled(block: WBlock, part: u32) -> mat2x4<f32> {
    if W_HAS_MIN {
        return w_part(block, part);
    }
    return w_levels(block.words, part);
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

// One of four values a lane, the same in lanes four apart.
fn spread_four(four: vec4<f32>, lane: u32) -> f32 {
    let pair = select(four.xy, four.zw, (lane & 2u) == 2u);
    return select(pair.x, pair.y, (lane & 1u) == 1u);
}
