//! The words of `weights/words_3_half.wgsl`, of four rows at once; there are a multiple of 8 rows.

@group(0) @binding(3) var<storage, read> w: array<vec2<u64>>;

//#include "weights/halves.wgsl"

// Rows n .. n + 4 of a block, n a multiple of 4.
fn load_w_words_four(n: u32, block: u32) -> array<WWords, 4> {
    let at = block * w_rows() + n;
    let all = halves_2(w[at / 4u]);
    let plane = w[w_blocks() * w_rows() / 4u + at / 8u];
    let high = halves_1(select(plane.x, plane.y, (at & 4u) == 4u));
    return array<WWords, 4>(
        WWords(all.x, high.x),
        WWords(all.y, high.x >> 4u),
        WWords(all.z, high.y),
        WWords(all.w, high.y >> 4u),
    );
}
