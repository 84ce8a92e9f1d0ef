//! Four consecutive elements of the activations `x`, with any alignment; elements beyond the row
//! read as 0, never as what lies behind it, which may be NaN.
//!
//! Same names as `lib/x_vec4.wgsl`.

@group(0) @binding(X_BINDING) var<storage, read> x: array<f32>;

fn x_at(base: u32, col: u32, cols: u32) -> f32 {
    var value = 0.0;
    if col < cols {
        value = x[base + col];
    }
    return value;
}

fn load_x4(base: u32, col: u32, cols: u32) -> vec4<f32> {
    return vec4(
        x_at(base, col, cols),
        x_at(base, col + 1u, cols),
        x_at(base, col + 2u, cols),
        x_at(base, col + 3u, cols),
    );
}

// Eight elements, `col..col + 8`.
fn load_x8(base: u32, col: u32, cols: u32) -> mat2x4<f32> {
    return mat2x4<f32>(load_x4(base, col, cols), load_x4(base, col + 4u, cols));
}

// One element, `col`.
fn load_x(base: u32, col: u32, cols: u32) -> f32 {
    return x_at(base, col, cols);
}
