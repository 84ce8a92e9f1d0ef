//! Four elements of a row of activations on the way to workgroup memory, pasted into a loop: those
//! behind `k0 + 4q`, one for each column of the weights; 0 behind the last.
let from_col = k0 + 4u * q;
var quad = vec4<f32>();
if from_col < params.k {
    quad = load_x4(base, from_col, params.k);
}
