//! Four activations in workgroup memory, pasted into a loop: of eight, the two of each four that
//! the 2:4 weights of the lane keep. Lanes of neighbouring channels read the same.
let four = i * QUADS + quad + 2u * half;
let kept = block.positions >> (16u * part + 8u * half);
let held = vec4(
    vec2(x_tile[four][kept & 3u], x_tile[four][(kept >> 2u) & 3u]),
    vec2(x_tile[four + 1u][(kept >> 4u) & 3u], x_tile[four + 1u][(kept >> 6u) & 3u]),
);
