//! What is stored at once: four neighbouring values, where rows start at multiples of 4 and have
//! lengths that are. A store is a loop over lanes on drivers that run shaders on the CPU, whatever
//! its width.
//!
//! Same names as `lib/stored_one.wgsl`.

alias Stored = vec4<f32>;

const STORED: u32 = 4u;

fn stored_of(values: vec4<f32>, c: u32) -> Stored {
    return values;
}
