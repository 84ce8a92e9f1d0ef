//! Scales of eight rows, as those of two times four.

// Rows n .. n + 8 of a block, n a multiple of 8.
fn load_w_scale_eight(n: u32, block: u32) -> array<WScale, 8> {
    let first = load_w_scale_four(n, block);
    let last = load_w_scale_four(n + 4u, block);
    return array<WScale, 8>(
        first[0],
        first[1],
        first[2],
        first[3],
        last[0],
        last[1],
        last[2],
        last[3],
    );
}
