//! The words of `weights/words_3.wgsl`, a row at a time.

@group(0) @binding(3) var<storage, read> w: array<vec2<u32>>;

fn load_w_words(n: u32, block: u32) -> WWords {
    let at = block * w_rows() + n;
    let high = w[w_blocks() * w_rows() + at / 2u];
    return WWords(w[at], select(high.x, high.y, (at & 1u) == 1u));
}
