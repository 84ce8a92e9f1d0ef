//! What one invocation loads and stores at once: one element.
//!
//! `lib/vec4.wgsl` defines the same names for four elements, for sizes and offsets that are
//! multiples of four. Divide sizes and offsets by `LANES` to index arrays of `Element` or `Word`.

const LANES: u32 = 1u;
alias Element = f32;
alias Word = u32;

// The largest, the sum, and one of the elements.
fn lanes_max(a: Element) -> f32 {
    return a;
}

fn lanes_sum(a: Element) -> f32 {
    return a;
}

fn lanes_at(a: Element, i: u32) -> f32 {
    return a;
}

// 1 at element i, 0 elsewhere, and everywhere if there is no such element.
fn lanes_unit(i: u32) -> Element {
    return Element(i == 0u);
}

fn lanes_dot(a: Element, b: Element) -> f32 {
    return a * b;
}
