//! Piece of `weights/packed.wgsl`: blocks of two words, and behind all of them one word a block.

@group(0) @binding(3) var<storage, read> w: array<vec2<u32>>;

struct WWords {
    two: vec2<u32>,
    high: u32,
}

fn load_w_words(n: u32, block: u32) -> WWords {
    let at = block * w_rows() + n;
    let high = w[w_blocks() * w_rows() + at / 2u];
    return WWords(w[at], select(high.x, high.y, (at & 1u) == 1u));
}

fn w_word(words: WWords, i: u32) -> u32 {
    return select(words.two.x, words.two.y, i == 1u);
}

fn w_high(words: WWords) -> u32 {
    return words.high;
}
