//! Four consecutive elements of an adapter's inner activations and of its matrix B, whose rank is
//! a multiple of 4. `lib/lora_any.wgsl` has no such condition.
//!
//! The includer gives `const INNER_BINDING: u32`.

@group(0) @binding(INNER_BINDING) var<storage, read> inner: array<vec4<f32>>;
@group(0) @binding(INNER_BINDING + 1u) var<storage, read> lora_b: array<vec4<f32>>;

fn load_inner4(base: u32, r: u32) -> vec4<f32> {
    return inner[(base + r) / 4u];
}

fn load_b4(base: u32, r: u32) -> vec4<f32> {
    return lora_b[(base + r) / 4u];
}
