//! Piece of `weights/packed.wgsl`: f16 values, two a word. The levels are the weights.

const W_OFFSET: f32 = 0.0;

// What `w_raw_levels` has too much of, by place in four.
const W_PLACES: vec4<f32> = vec4(1.0, 1.0, 1.0, 1.0);

fn w_levels_4(words: WWords, i: u32) -> vec4<f32> {
    let pair = w_pair(words, i);
    return vec4(unpack2x16float(pair.x), unpack2x16float(pair.y));
}

fn w_levels(words: WWords, i: u32) -> mat2x4<f32> {
    return mat2x4<f32>(w_levels_4(words, 2u * i), w_levels_4(words, 2u * i + 1u));
}

fn w_raw_levels(words: WWords, i: u32) -> mat2x4<f32> {
    return w_levels(words, i);
}
