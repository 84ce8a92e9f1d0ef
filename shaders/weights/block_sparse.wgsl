//! A block of 2:4 weights: words, scale and positions, a row at a time.

fn load_w_block(n: u32, block: u32) -> WBlock {
    let scale = load_w_scale(n, block);
    return WBlock(load_w_words(n, block), scale, load_w_positions(n, block));
}
