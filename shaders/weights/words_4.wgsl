//! Piece of `weights/packed.wgsl`: blocks of four words.

struct WWords {
    four: vec4<u32>,
}

fn w_word(words: WWords, i: u32) -> u32 {
    return words.four[i];
}

fn w_pair(words: WWords, i: u32) -> vec2<u32> {
    return select(words.four.xy, words.four.zw, i == 1u);
}

//#include "weights/load_4.wgsl"
