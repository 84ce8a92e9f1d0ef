//! Piece of `weights/packed.wgsl`: 8-bit levels, four consecutive ones a word.

const W_OFFSET: f32 = 128.0;

// What `w_raw_levels` has too much of, by place in four.
const W_PLACES: vec4<f32> = vec4(1.0, 256.0, 65536.0, 1.0);

// Bytes minus 128: with their highest bits flipped they are signed.
fn w_bytes(word: u32) -> vec4<f32> {
    let flipped = vec4(bitcast<i32>(word ^ 0x80808080u));
    return vec4<f32>((flipped << vec4(24u, 16u, 8u, 0u)) >> vec4(24u));
}

fn w_levels_4(words: WWords, i: u32) -> vec4<f32> {
    return w_bytes(w_word(words, i));
}

fn w_levels(words: WWords, i: u32) -> mat2x4<f32> {
    let pair = w_pair(words, i);
    return mat2x4<f32>(w_bytes(pair.x), w_bytes(pair.y));
}

// The highest byte would be a sign in its place.
fn w_raw_bytes(word: u32) -> vec4<f32> {
    let low = vec3(bitcast<i32>(word)) & vec3(0xFF, 0xFF00, 0xFF0000);
    return vec4<f32>(vec4(low, bitcast<i32>(word >> 24u)));
}

fn w_raw_levels(words: WWords, i: u32) -> mat2x4<f32> {
    let pair = w_pair(words, i);
    return mat2x4<f32>(w_raw_bytes(pair.x), w_raw_bytes(pair.y));
}
