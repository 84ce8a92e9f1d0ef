//! Bits of an element of a dense matrix, as f32: from bf16, two a word, rows padded to whole words.
//!
//! Same names as `lib/source_f32.wgsl`.

fn source_bits(n: u32, c: u32) -> u32 {
    let word = source[n * ((params.cols + 1u) / 2u) + c / 2u];
    return select(word << 16u, word & 0xffff0000u, (c & 1u) == 1u);
}
