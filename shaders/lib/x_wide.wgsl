//! Elements of the activations `x`, whose rows all start at multiples of 8 and have lengths that
//! are multiples of 8, loaded 64 bits at a time.
//!
//! `load_x8` is that of `lib/x_vec4.wgsl`.

@group(0) @binding(X_BINDING) var<storage, read> x: array<vec4<u64>>;

//#include "weights/halves.wgsl"

fn load_x8(base: u32, col: u32, cols: u32) -> mat2x4<f32> {
    let all = x[(base + col) / 8u];
    let low = bitcast<vec4<f32>>(halves_2(all.xy));
    return mat2x4<f32>(low, bitcast<vec4<f32>>(halves_2(all.zw)));
}
