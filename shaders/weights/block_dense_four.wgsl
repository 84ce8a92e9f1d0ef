//! Blocks of four rows of dense weights: words and scale.

const ROWS: u32 = 4u;

// Rows n .. n + ROWS, n a multiple of that.
fn load_w_rows(n: u32, block: u32) -> array<WBlock, ROWS> {
    let words = load_w_words_four(n, block);
    let scales = load_w_scale_four(n, block);
    return array<WBlock, ROWS>(
        WBlock(words[0], scales[0]),
        WBlock(words[1], scales[1]),
        WBlock(words[2], scales[2]),
        WBlock(words[3], scales[3]),
    );
}
