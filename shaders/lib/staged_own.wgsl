//! Four activations in workgroup memory, pasted into a loop: one for each column of the weights.
let held = x_tile[i * QUADS + quad + half];
