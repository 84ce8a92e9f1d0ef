//! From two values of four columns to the four, with zeros between.

// Two values of four columns. The first is not in the last column, nor the second in the first.
fn w_expand(two: vec2<f32>, positions: u32) -> vec4<f32> {
    let first = positions & 3u;
    let second = (positions >> 2u) & 3u;
    let high = select(vec2(0.0), vec2(two.y), vec2(second) == vec2(1u, 2u));
    let middle = select(high, vec2(two.x), vec2(first) == vec2(1u, 2u));
    return vec4(select(0.0, two.x, first == 0u), middle, select(0.0, two.y, second == 3u));
}
