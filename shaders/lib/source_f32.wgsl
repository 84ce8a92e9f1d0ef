//! Bits of an element of a dense matrix, as f32: from f32.
//!
//! The includer declares `source` and `params` with cols. `lib/source_f16.wgsl` and
//! `lib/source_bf16.wgsl` define the same function.

fn source_bits(n: u32, c: u32) -> u32 {
    return source[n * params.cols + c];
}
