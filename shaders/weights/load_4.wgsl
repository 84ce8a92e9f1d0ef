//! The words of `weights/words_4.wgsl`, a row at a time.

@group(0) @binding(3) var<storage, read> w: array<vec4<u32>>;

fn load_w_words(n: u32, block: u32) -> WWords {
    return WWords(w[block * w_rows() + n]);
}
