//! The words of `weights/words_3.wgsl`, of four rows at once; there are a multiple of 8 rows.

@group(0) @binding(3) var<storage, read> w: array<vec4<u64>>;

//#include "weights/halves.wgsl"

// Rows n .. n + 4 of a block, n a multiple of 4.
fn load_w_words_four(n: u32, block: u32) -> array<WWords, 4> {
    let at = block * w_rows() + n;
    let all = w[at / 4u];
    let first = halves_2(all.xy);
    let last = halves_2(all.zw);
    let plane = w[w_blocks() * w_rows() / 4u + at / 8u];
    let high = halves_2(select(plane.xy, plane.zw, (at & 4u) == 4u));
    return array<WWords, 4>(
        WWords(first.xy, high.x),
        WWords(first.zw, high.y),
        WWords(last.xy, high.z),
        WWords(last.zw, high.w),
    );
}
