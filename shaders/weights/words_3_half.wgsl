//! Piece of `weights/packed.wgsl`: blocks of one word, and behind all of them one word a block of
//! two rows, the even row in the low half of each byte.

struct WWords {
    one: u32,
    high: u32,
}

fn w_word(words: WWords, i: u32) -> u32 {
    return words.one;
}

fn w_high(words: WWords) -> u32 {
    return words.high;
}

//#include "weights/load_3_half.wgsl"
