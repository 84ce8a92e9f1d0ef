//! Blocks of eight rows of dense weights: words and scale.

const ROWS: u32 = 8u;

// Rows n .. n + ROWS, n a multiple of that.
fn load_w_rows(n: u32, block: u32) -> array<WBlock, ROWS> {
    let first = load_w_words_four(n, block);
    let last = load_w_words_four(n + 4u, block);
    let scales = load_w_scale_eight(n, block);
    return array<WBlock, ROWS>(
        WBlock(first[0], scales[0]),
        WBlock(first[1], scales[1]),
        WBlock(first[2], scales[2]),
        WBlock(first[3], scales[3]),
        WBlock(last[0], scales[4]),
        WBlock(last[1], scales[5]),
        WBlock(last[2], scales[6]),
        WBlock(last[3], scales[7]),
    );
}
