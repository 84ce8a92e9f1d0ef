//! The words of `weights/words_8.wgsl`, of four rows at once; there are a multiple of 8 rows.

@group(0) @binding(3) var<storage, read> w: array<vec4<u64>>;

//#include "weights/halves.wgsl"

// Rows n .. n + 4 of a block, n a multiple of 4.
fn load_w_words_four(n: u32, block: u32) -> array<WWords, 4> {
    let at = block * w_rows() + n;
    let rows = array<vec4<u64>, 4>(w[at], w[at + 1u], w[at + 2u], w[at + 3u]);
    return array<WWords, 4>(
        WWords(halves_2(rows[0].xy), halves_2(rows[0].zw)),
        WWords(halves_2(rows[1].xy), halves_2(rows[1].zw)),
        WWords(halves_2(rows[2].xy), halves_2(rows[2].zw)),
        WWords(halves_2(rows[3].xy), halves_2(rows[3].zw)),
    );
}
