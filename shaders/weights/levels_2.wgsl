//! Piece of `weights/packed.wgsl`: 2-bit levels. Bits 2j .. 2j + 2 of the bytes of word `i` are the
//! values 16i + 4j .. 16i + 4j + 4.

const W_OFFSET: f32 = 1.5;

// What `w_raw_levels` has too much of, by place in four.
const W_PLACES: vec4<f32> = vec4(1.0, 256.0, 65536.0, 16777216.0);

// The lowest two bits of four bytes, around 0.
fn w_crumbs(bytes: u32) -> vec4<f32> {
    return vec4<f32>((vec4(bytes) >> vec4(0u, 8u, 16u, 24u)) & vec4(3u)) - W_OFFSET;
}

fn w_levels_4(words: WWords, i: u32) -> vec4<f32> {
    return w_crumbs(w_word(words, i / 4u) >> (2u * (i & 3u)));
}

fn w_levels(words: WWords, i: u32) -> mat2x4<f32> {
    let word = w_word(words, i / 2u) >> (4u * (i & 1u));
    return mat2x4<f32>(w_crumbs(word), w_crumbs(word >> 2u));
}

fn w_raw_crumbs(bytes: u32) -> vec4<f32> {
    return vec4<f32>(vec4(bitcast<i32>(bytes)) & vec4(3, 0x300, 0x30000, 0x3000000));
}

fn w_raw_levels(words: WWords, i: u32) -> mat2x4<f32> {
    let word = w_word(words, i / 2u) >> (4u * (i & 1u));
    return mat2x4<f32>(w_raw_crumbs(word), w_raw_crumbs(word >> 2u));
}
