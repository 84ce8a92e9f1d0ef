//! GELU by its tanh approximation, as g · sigmoid(z): 0.5 · (1 + tanh(z / 2)) is sigmoid(z).
//!
//! z = 2·sqrt(2/π)·(g + 0.044715·g³). Behind |g| = 16 the sigmoid is 0 or 1 in f32, and the cube
//! of what lies further out could overflow.

fn gelu_clamp(g: Element) -> Element {
    return clamp(g, Element(-16.0), Element(16.0));
}

fn gelu_argument(g: Element) -> Element {
    return g * (1.5957691216057308 + 0.07135481627260025 * g * g);
}

// dz/dg.
fn gelu_slope(g: Element) -> Element {
    return 1.5957691216057308 + 0.21406444881780076 * g * g;
}
