//! Piece of `weights/packed.wgsl`: blocks of two words, and behind all of them one word a block.

struct WWords {
    two: vec2<u32>,
    high: u32,
}

fn w_word(words: WWords, i: u32) -> u32 {
    return select(words.two.x, words.two.y, i == 1u);
}

fn w_high(words: WWords) -> u32 {
    return words.high;
}

//#include "weights/load_3.wgsl"
