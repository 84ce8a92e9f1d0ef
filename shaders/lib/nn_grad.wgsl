//! Gradients of TM rows at four channels from `n0` on, and the blocks of those rows of W, pasted
//! into a walk of `lib/nn_tile.wgsl`.
var grad: array<vec4<f32>, TM>;
//#unroll
for (var h = 0u; h < TM / SHARE; h++) {
    let held = load_dy4(base[h], n0, params.n);
    //#unroll
    for (var s = 0u; s < SHARE; s++) {
        //#paste "lib/row_own.wgsl"
        grad[h * SHARE + s] = row;
    }
}
var block: array<WBlock, 4>;
//#unroll
for (var step = 0u; step < 4u; step++) {
    // Where n is no multiple of 4, its last row again, times a gradient that reads as 0.
    block[step] = load_w_block(min(n0 + step, params.n - 1u), b_load);
}
