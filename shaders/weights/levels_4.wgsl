//! Piece of `weights/packed.wgsl`: 4-bit levels. Word `i` holds the values 8i .. 8i + 4 in the low
//! nibbles of its bytes and the next four in the high nibbles.

const W_OFFSET: f32 = 8.0;

fn w_nibbles(bytes: u32) -> vec4<f32> {
    return vec4<f32>((vec4(bytes) >> vec4(0u, 8u, 16u, 24u)) & vec4(15u));
}

fn w_levels_4(words: WWords, i: u32) -> vec4<f32> {
    return w_nibbles(w_word(words, i / 2u) >> (4u * (i & 1u)));
}

fn w_levels(words: WWords, i: u32) -> mat2x4<f32> {
    let word = w_word(words, i);
    return mat2x4<f32>(w_nibbles(word), w_nibbles(word >> 4u));
}
