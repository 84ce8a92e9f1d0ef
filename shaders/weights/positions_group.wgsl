//! Piece of `weights/packed.wgsl`: positions of 2:4 weights, a word for each block of 32 rows.

const ROW_GROUP: u32 = 32u;

fn load_w_positions(n: u32, block: u32) -> u32 {
    let groups = (w_rows() + ROW_GROUP - 1u) / ROW_GROUP;
    return w_scales[w_position_base() + block * groups + n / ROW_GROUP];
}
