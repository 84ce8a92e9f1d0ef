//! Blocks of neighbouring rows, loaded one by one. `weights/block_*_wide.wgsl` have the same names.

const ROWS: u32 = 4u;

// Rows n .. n + ROWS; behind the last row it again.
fn load_w_rows(n: u32, block: u32) -> array<WBlock, ROWS> {
    let last = w_rows() - 1u;
    return array<WBlock, ROWS>(
        load_w_block(n, block),
        load_w_block(min(n + 1u, last), block),
        load_w_block(min(n + 2u, last), block),
        load_w_block(min(n + 3u, last), block),
    );
}
