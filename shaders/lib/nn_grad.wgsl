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
//#include "lib/steps_each.wgsl"
