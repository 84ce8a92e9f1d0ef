//! Four consecutive elements of an adapter's inner activations and of its matrix B, of any rank;
//! elements beyond it read as 0.
//!
//! Same names as `lib/lora_vec4.wgsl`.

@group(0) @binding(INNER_BINDING) var<storage, read> inner: array<f32>;
@group(0) @binding(INNER_BINDING + 1u) var<storage, read> lora_b: array<f32>;

fn load_inner4(base: u32, r: u32) -> vec4<f32> {
    var quad = vec4<f32>();
    for (var c = 0u; c < min(4u, params.rank - r); c++) {
        quad[c] = inner[base + r + c];
    }
    return quad;
}

fn load_b4(base: u32, r: u32) -> vec4<f32> {
    var quad = vec4<f32>();
    for (var c = 0u; c < min(4u, params.rank - r); c++) {
        quad[c] = lora_b[base + r + c];
    }
    return quad;
}
