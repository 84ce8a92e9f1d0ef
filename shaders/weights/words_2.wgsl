//! Piece of `weights/packed.wgsl`: blocks of two words.

struct WWords {
    two: vec2<u32>,
}

fn w_word(words: WWords, i: u32) -> u32 {
    return select(words.two.x, words.two.y, i == 1u);
}

//#include "weights/load_2.wgsl"
