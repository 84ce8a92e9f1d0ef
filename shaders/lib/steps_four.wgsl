//! A block of columns of four rows of W, pasted into a walk of `lib/nn_tile.wgsl`: loaded at once.
let block = load_w_rows(n0, b_load);
