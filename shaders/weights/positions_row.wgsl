//! Piece of `weights/packed.wgsl`: positions of 2:4 weights, a word for each block of a row.

fn load_w_positions(n: u32, block: u32) -> u32 {
    return w_scales[w_position_base() + block * w_rows() + n];
}
