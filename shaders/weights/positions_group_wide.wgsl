//! Piece of `weights/packed.wgsl`: positions of 2:4 weights, a word for each block of 32 rows, from
//! words of 64 bits; the number of rows is a multiple of 8.

const ROW_GROUP: u32 = 32u;

fn load_w_positions(n: u32, block: u32) -> u32 {
    let groups = (w_rows() + ROW_GROUP - 1u) / ROW_GROUP;
    let at = w_position_base() + block * groups + n / ROW_GROUP;
    let four = w_scales[at / 4u];
    let two = halves_1(select(four.x, four.y, (at & 2u) == 2u));
    return select(two.x, two.y, (at & 1u) == 1u);
}
