//! A block of columns of four rows of W, pasted into a walk of `lib/nn_tile.wgsl`: loaded one by
//! one.
var block: array<WBlock, 4>;
//#unroll
for (var step = 0u; step < 4u; step++) {
    // Where n is no multiple of 4, its last row again, times a gradient that reads as 0.
    block[step] = load_w_block(min(n0 + step, params.n - 1u), b_load);
}
