//! Piece of `weights/packed.wgsl`: 4-bit levels. Word `i` holds the values 8i .. 8i + 4 in the low
//! nibbles of its bytes and the next four in the high nibbles.

const W_OFFSET: f32 = 8.0;

// What `w_raw_levels` has too much of, by place in four.
const W_PLACES: vec4<f32> = vec4(1.0, 256.0, 65536.0, 16777216.0);

// A nibble minus 8 is the nibble with its highest bit flipped, read as a signed number.
fn w_flipped(word: u32) -> vec4<i32> {
    return vec4(bitcast<i32>(word ^ 0x88888888u));
}

fn w_levels_4(words: WWords, i: u32) -> vec4<f32> {
    let word = w_flipped(w_word(words, i / 2u) >> (4u * (i & 1u)));
    return vec4<f32>((word << vec4(28u, 20u, 12u, 4u)) >> vec4(28u));
}

fn w_levels(words: WWords, i: u32) -> mat2x4<f32> {
    let word = w_flipped(w_word(words, i));
    let low = (word << vec4(28u, 20u, 12u, 4u)) >> vec4(28u);
    let high = (word << vec4(24u, 16u, 8u, 0u)) >> vec4(28u);
    return mat2x4<f32>(vec4<f32>(low), vec4<f32>(high));
}

fn w_raw_levels(words: WWords, i: u32) -> mat2x4<f32> {
    let word = bitcast<i32>(w_word(words, i));
    let low = vec4(word) & vec4(0xF, 0xF00, 0xF0000, 0xF000000);
    let high = vec4(word >> 4u) & vec4(0xF, 0xF00, 0xF0000, 0xF000000);
    return mat2x4<f32>(vec4<f32>(low), vec4<f32>(high));
}
