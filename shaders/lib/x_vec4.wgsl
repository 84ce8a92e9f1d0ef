//! Four consecutive elements of the activations `x`, whose rows all start at multiples of 4 and
//! have lengths that are multiples of 4. `lib/x_any.wgsl` has no such condition.
//!
//! The includer gives `const X_BINDING: u32`.

@group(0) @binding(X_BINDING) var<storage, read> x: array<vec4<f32>>;

// Elements `col..col + 4` of the row that starts at `base` and has `cols` elements.
fn load_x4(base: u32, col: u32, cols: u32) -> vec4<f32> {
    return x[(base + col) / 4u];
}

// Eight elements, `col..col + 8`.
fn load_x8(base: u32, col: u32, cols: u32) -> mat2x4<f32> {
    return mat2x4<f32>(load_x4(base, col, cols), load_x4(base, col + 4u, cols));
}

// One element, `col`.
fn load_x(base: u32, col: u32, cols: u32) -> f32 {
    let at = base + col;
    return x[at / 4u][at % 4u];
}
