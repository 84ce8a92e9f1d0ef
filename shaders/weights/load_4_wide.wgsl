//! The words of `weights/words_4.wgsl`, of four rows at once; there are a multiple of 8 rows.

@group(0) @binding(3) var<storage, read> w: array<vec4<u64>>;

//#include "weights/halves.wgsl"

// Rows n .. n + 4 of a block, n a multiple of 4.
fn load_w_words_four(n: u32, block: u32) -> array<WWords, 4> {
    let at = (block * w_rows() + n) / 2u;
    let first = w[at];
    let last = w[at + 1u];
    return array<WWords, 4>(
        WWords(halves_2(first.xy)),
        WWords(halves_2(first.zw)),
        WWords(halves_2(last.xy)),
        WWords(halves_2(last.zw)),
    );
}
