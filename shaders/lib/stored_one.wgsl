//! What is stored at once: one value. `lib/stored_four.wgsl` has the same names.

alias Stored = f32;

const STORED: u32 = 1u;

// The values from the `c`-th on, as many as are stored at once.
fn stored_of(values: vec4<f32>, c: u32) -> Stored {
    return values[c];
}
