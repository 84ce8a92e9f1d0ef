//! The words of `weights/words_1.wgsl`, of four rows at once; there are a multiple of 8 rows.

@group(0) @binding(3) var<storage, read> w: array<vec2<u64>>;

//#include "weights/halves.wgsl"

// Rows n .. n + 4 of a block, n a multiple of 4.
fn load_w_words_four(n: u32, block: u32) -> array<WWords, 4> {
    let all = halves_2(w[(block * w_rows() + n) / 4u]);
    return array<WWords, 4>(WWords(all.x), WWords(all.y), WWords(all.z), WWords(all.w));
}
