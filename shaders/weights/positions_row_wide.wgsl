//! Piece of `weights/packed.wgsl`: positions of 2:4 weights, a word for each block of a row, of
//! four rows at once; the number of rows is a multiple of 8.

// Rows n .. n + 4 of a block, n a multiple of 4.
fn load_w_positions_four(n: u32, block: u32) -> vec4<u32> {
    return halves_2(w_scales[(w_position_base() + block * w_rows() + n) / 4u]);
}
