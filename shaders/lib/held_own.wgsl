//! Four elements of a row of activations, pasted into a loop: those behind `k0`, one for each
//! column of the weights.
let held = load_x4(base[h], k0 + 4u * half, params.k);
