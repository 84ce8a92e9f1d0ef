//! Four elements of a row of activations on their way to workgroup memory, pasted into a loop: of
//! the eight behind `k0 + 8q`, the two of each four that 2:4 weights keep; 0 behind the last. All
//! weights of the workgroup keep the same.
let from_col = k0 + 8u * q;
let kept = load_w_positions(col0, min(k0 / W_STEP, last)) >> (8u * q);
var first_four = vec4<f32>();
var second_four = vec4<f32>();
if from_col < params.k {
    first_four = load_x4(base, from_col, params.k);
}
if from_col + 4u < params.k {
    second_four = load_x4(base, from_col + 4u, params.k);
}
let quad = vec4(
    vec2(first_four[kept & 3u], first_four[(kept >> 2u) & 3u]),
    vec2(second_four[(kept >> 4u) & 3u], second_four[(kept >> 6u) & 3u]),
);
