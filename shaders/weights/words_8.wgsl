//! Piece of `weights/packed.wgsl`: blocks of eight words.

struct WWords {
    low: vec4<u32>,
    high: vec4<u32>,
}

fn w_pair(words: WWords, i: u32) -> vec2<u32> {
    let four = select(words.low, words.high, i >= 2u);
    return select(four.xy, four.zw, (i & 1u) == 1u);
}

fn w_word(words: WWords, i: u32) -> u32 {
    let pair = w_pair(words, i / 2u);
    return select(pair.x, pair.y, (i & 1u) == 1u);
}

//#include "weights/load_8.wgsl"
