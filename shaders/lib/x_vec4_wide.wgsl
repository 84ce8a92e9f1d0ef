//! `lib/x_vec4.wgsl` with loads of 64 bits.

@group(0) @binding(X_BINDING) var<storage, read> x: array<vec2<u64>>;

//#include "weights/halves.wgsl"

fn load_x4(base: u32, col: u32, cols: u32) -> vec4<f32> {
    return bitcast<vec4<f32>>(halves_2(x[(base + col) / 4u]));
}
