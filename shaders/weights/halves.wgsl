//! Words of 64 bits as twice as many of 32, the low one first.

fn halves_2(words: vec2<u64>) -> vec4<u32> {
    let low = vec2<u32>(words);
    let high = vec2<u32>(words >> vec2(32u));
    return vec4(low.x, high.x, low.y, high.y);
}

fn halves_1(word: u64) -> vec2<u32> {
    return vec2(u32(word), u32(word >> 32u));
}
