//! A block of dense weights: words and scale, a row at a time.

fn load_w_block(n: u32, block: u32) -> WBlock {
    return WBlock(load_w_words(n, block), load_w_scale(n, block));
}
