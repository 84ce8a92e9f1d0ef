//! What a gated product does with the product itself: writes it, for a backward pass.
//!
//! The includer gives `const GATE_BINDING: u32`, the binding in front.

@group(0) @binding(GATE_BINDING + 1u) var<storage, read_write> up: array<Stored>;

fn keep_up(at: u32, product: Stored) {
    up[at] = product;
}
