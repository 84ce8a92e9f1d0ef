//! Blocks of eight rows of 2:4 weights: words, scale and positions.

const ROWS: u32 = 8u;

// Rows n .. n + ROWS, n a multiple of that.
fn load_w_rows(n: u32, block: u32) -> array<WBlock, ROWS> {
    let first = load_w_words_four(n, block);
    let last = load_w_words_four(n + 4u, block);
    let scales = load_w_scale_eight(n, block);
    let near = load_w_positions_four(n, block);
    let far = load_w_positions_four(n + 4u, block);
    return array<WBlock, ROWS>(
        WBlock(first[0], scales[0], near.x),
        WBlock(first[1], scales[1], near.y),
        WBlock(first[2], scales[2], near.z),
        WBlock(first[3], scales[3], near.w),
        WBlock(last[0], scales[4], far.x),
        WBlock(last[1], scales[5], far.y),
        WBlock(last[2], scales[6], far.z),
        WBlock(last[3], scales[7], far.w),
    );
}
