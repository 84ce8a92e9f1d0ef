//! Piece of `weights/packed.wgsl`: 3-bit levels. The two low bits are laid out as in
//! `weights/levels_2.wgsl`; bit `i` of the bytes of the high bits belongs to values 4i .. 4i + 4.

const W_OFFSET: f32 = 4.0;

// What `w_raw_levels` has too much of, by place in four.
const W_PLACES: vec4<f32> = vec4(1.0, 256.0, 65536.0, 16777216.0);

// The lowest two bits of four bytes and the lowest bit of four others, flipped: minus 4, as a sign.
fn w_joined(bytes: u32, high: u32) -> vec4<f32> {
    let joined = (bytes & 0x03030303u) | ((~high & 0x01010101u) << 2u);
    return vec4<f32>((vec4(bitcast<i32>(joined)) << vec4(29u, 21u, 13u, 5u)) >> vec4(29u));
}

fn w_levels_4(words: WWords, i: u32) -> vec4<f32> {
    return w_joined(w_word(words, i / 4u) >> (2u * (i & 3u)), w_high(words) >> i);
}

fn w_levels(words: WWords, i: u32) -> mat2x4<f32> {
    let word = w_word(words, i / 2u) >> (4u * (i & 1u));
    let high = w_high(words) >> (2u * i);
    return mat2x4<f32>(w_joined(word, high), w_joined(word >> 2u, high >> 1u));
}

fn w_raw_joined(bytes: u32, high: u32) -> vec4<f32> {
    let joined = bitcast<i32>((bytes & 0x03030303u) | ((high & 0x01010101u) << 2u));
    return vec4<f32>(vec4(joined) & vec4(7, 0x700, 0x70000, 0x7000000));
}

fn w_raw_levels(words: WWords, i: u32) -> mat2x4<f32> {
    let word = w_word(words, i / 2u) >> (4u * (i & 1u));
    let high = w_high(words) >> (2u * i);
    return mat2x4<f32>(w_raw_joined(word, high), w_raw_joined(word >> 2u, high >> 1u));
}
