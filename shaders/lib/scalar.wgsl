//! What one invocation loads and stores at once: one element.
//!
//! `lib/vec4.wgsl` defines the same names for four elements, for sizes and offsets that are
//! multiples of four. Divide sizes and offsets by `LANES` to index arrays of `Element` or `Word`.

const LANES: u32 = 1u;
alias Element = f32;
alias Word = u32;

fn lanes_dot(a: Element, b: Element) -> f32 {
    return a * b;
}
