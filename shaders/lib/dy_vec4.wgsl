//! Four consecutive elements of the activations `dy`, whose rows all start at multiples of 4 and
//! have lengths that are multiples of 4. `lib/dy_any.wgsl` has no such condition.
//!
//! The includer gives `const DY_BINDING: u32`.

@group(0) @binding(DY_BINDING) var<storage, read> dy: array<vec4<f32>>;

// Elements `col..col + 4` of the row that starts at `base` and has `cols` elements.
fn load_dy4(base: u32, col: u32, cols: u32) -> vec4<f32> {
    return dy[(base + col) / 4u];
}
