//! What one invocation loads and stores at once: four consecutive elements.
//!
//! Same names and rules as `lib/scalar.wgsl`.

const LANES: u32 = 4u;
alias Element = vec4<f32>;
alias Word = vec4<u32>;

// The largest, the sum, and one of the elements.
fn lanes_max(a: Element) -> f32 {
    return max(max(a.x, a.y), max(a.z, a.w));
}

fn lanes_sum(a: Element) -> f32 {
    return (a.x + a.y) + (a.z + a.w);
}

fn lanes_at(a: Element, i: u32) -> f32 {
    return a[i];
}

// 1 at element i, 0 elsewhere, and everywhere if there is no such element.
fn lanes_unit(i: u32) -> Element {
    return Element(vec4(i) == vec4(0u, 1u, 2u, 3u));
}

fn lanes_dot(a: Element, b: Element) -> f32 {
    return dot(a, b);
}
