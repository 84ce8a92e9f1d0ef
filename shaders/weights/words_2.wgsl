//! Piece of `weights/packed.wgsl`: blocks of two words.

@group(0) @binding(3) var<storage, read> w: array<vec2<u32>>;

struct WWords {
    two: vec2<u32>,
}

fn load_w_words(n: u32, block: u32) -> WWords {
    return WWords(w[block * w_rows() + n]);
}

fn w_word(words: WWords, i: u32) -> u32 {
    return select(words.two.x, words.two.y, i == 1u);
}
