//! What one invocation loads and stores at once: four consecutive elements.
//!
//! Same names and rules as `lib/scalar.wgsl`.

const LANES: u32 = 4u;
alias Element = vec4<f32>;
alias Word = vec4<u32>;

fn lanes_dot(a: Element, b: Element) -> f32 {
    return dot(a, b);
}
