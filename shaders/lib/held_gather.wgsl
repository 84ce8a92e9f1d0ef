//! Four elements of a row of activations, pasted into a loop: of eight behind `k0`, the two of
//! each four that 2:4 weights keep. All weights of the thread keep the same.
let first_four = load_x4(base[h], k0 + 8u * half, params.k);
let second_four = load_x4(base[h], k0 + 8u * half + 4u, params.k);
let kept = block[0].positions >> (16u * part + 8u * half);
let held = vec4(
    vec2(first_four[kept & 3u], first_four[(kept >> 2u) & 3u]),
    vec2(second_four[(kept >> 4u) & 3u], second_four[(kept >> 6u) & 3u]),
);
