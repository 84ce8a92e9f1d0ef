//! Packed weights, in blocks of 32 columns, block-major with the row fastest; put together from
//! pieces, and a variant names other pieces. `crates/edge-kernels/src/packing.rs` has the layout.
//!
//! Same names as `weights/f32.wgsl`. Any number of columns: what a block stores for columns beyond
//! the last meets inputs that read as 0.
//!
//! * words: `w` and the words of a block. `WWords`, `load_w_words(n, block)`, and some of
//!   `w_word(words, i)`, `w_pair(words, i)` (words 2i and 2i + 1) and `w_high(words)`.
//! * levels: values without scale, minus `W_OFFSET`. `w_levels(words, i)` (values 8i .. 8i + 8 of
//!   those that a block stores) and `w_levels_4(words, i)` (values 4i .. 4i + 4).
//! * scale: `w_scales`. `WScale`, `load_w_scale(n, block)`, `w_scaled(levels, scale)`,
//!   `w_scaled_sum(sum, x_sum, scale)`, `W_HAS_MIN`, and `w_position_base()`, where positions
//!   start.
//! * part: `WBlock`, `load_w_block`, `w_part`, `w_unscaled`, `w_sum`, and `w_raw`, `w_raw_sum`,
//!   which leave a value at its place in its word: a factor less to remove (`W_FACTORS`, by place
//!   in four), because the includer divides the other factor by it, once for many weights.
//!
//! Loads are in files of their own (`load_*`, `block_*`): those that end in `_wide` load words of
//! 64 bits, `ROWS` rows at once (`load_w_rows`).

const W_STEP: u32 = 32u;

fn w_blocks() -> u32 {
    return (w_cols() + W_STEP - 1u) / W_STEP;
}

//#include "weights/words_4.wgsl"
//#include "weights/levels_4.wgsl"
//#include "weights/scale.wgsl"
//#include "weights/part_dense.wgsl"
