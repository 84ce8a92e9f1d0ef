//! Piece of `weights/packed.wgsl`: blocks of one word.

struct WWords {
    one: u32,
}

fn w_word(words: WWords, i: u32) -> u32 {
    return words.one;
}

//#include "weights/load_1.wgsl"
