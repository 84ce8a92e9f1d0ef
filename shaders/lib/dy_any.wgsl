//! Four consecutive elements of the activations `dy`, with any alignment; elements beyond the row
//! read as 0, never as what lies behind it, which may be NaN.
//!
//! Same names as `lib/dy_vec4.wgsl`.

@group(0) @binding(DY_BINDING) var<storage, read> dy: array<f32>;

fn dy_at(base: u32, col: u32, cols: u32) -> f32 {
    var value = 0.0;
    if col < cols {
        value = dy[base + col];
    }
    return value;
}

fn load_dy4(base: u32, col: u32, cols: u32) -> vec4<f32> {
    return vec4(
        dy_at(base, col, cols),
        dy_at(base, col + 1u, cols),
        dy_at(base, col + 2u, cols),
        dy_at(base, col + 3u, cols),
    );
}
