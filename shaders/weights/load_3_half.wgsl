//! The words of `weights/words_3_half.wgsl`, a row at a time.

@group(0) @binding(3) var<storage, read> w: array<u32>;

fn load_w_words(n: u32, block: u32) -> WWords {
    let high = w[w_blocks() * w_rows() + block * ((w_rows() + 1u) / 2u) + n / 2u];
    return WWords(w[block * w_rows() + n], high >> (4u * (n & 1u)));
}
