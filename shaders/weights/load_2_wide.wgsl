//! The words of `weights/words_2.wgsl`, of four rows at once; there are a multiple of 8 rows.

@group(0) @binding(3) var<storage, read> w: array<vec4<u64>>;

//#include "weights/halves.wgsl"

// Rows n .. n + 4 of a block, n a multiple of 4.
fn load_w_words_four(n: u32, block: u32) -> array<WWords, 4> {
    let all = w[(block * w_rows() + n) / 4u];
    let first = halves_2(all.xy);
    let last = halves_2(all.zw);
    return array<WWords, 4>(
        WWords(first.xy),
        WWords(first.zw),
        WWords(last.xy),
        WWords(last.zw),
    );
}
