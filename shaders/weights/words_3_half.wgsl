//! Piece of `weights/packed.wgsl`: blocks of one word, and behind all of them one word a block of
//! two rows, the even row in the low half of each byte.

@group(0) @binding(3) var<storage, read> w: array<u32>;

struct WWords {
    one: u32,
    high: u32,
}

fn load_w_words(n: u32, block: u32) -> WWords {
    let high = w[w_blocks() * w_rows() + block * ((w_rows() + 1u) / 2u) + n / 2u];
    return WWords(w[block * w_rows() + n], high >> (4u * (n & 1u)));
}

fn w_word(words: WWords, i: u32) -> u32 {
    return words.one;
}

fn w_high(words: WWords) -> u32 {
    return words.high;
}
