//! Piece of `weights/packed.wgsl`: blocks of four words.

@group(0) @binding(3) var<storage, read> w: array<vec4<u32>>;

struct WWords {
    four: vec4<u32>,
}

fn load_w_words(n: u32, block: u32) -> WWords {
    return WWords(w[block * w_rows() + n]);
}

fn w_word(words: WWords, i: u32) -> u32 {
    return words.four[i];
}

fn w_pair(words: WWords, i: u32) -> vec2<u32> {
    return select(words.four.xy, words.four.zw, i == 1u);
}
