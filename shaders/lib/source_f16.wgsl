//! Bits of an element of a dense matrix, as f32: from f16, two a word, rows padded to whole words.
//!
//! Same names as `lib/source_f32.wgsl`. In integers, since a device may read a subnormal f16 as 0.

fn source_bits(n: u32, c: u32) -> u32 {
    let word = source[n * ((params.cols + 1u) / 2u) + c / 2u];
    let half = (word >> (16u * (c & 1u))) & 0xffffu;
    let sign = (half & 0x8000u) << 16u;
    let exponent = (half >> 10u) & 31u;
    let mantissa = half & 0x3ffu;
    if exponent == 0u {
        // At most 10 bits: exact, and far from the subnormals of f32.
        return sign | bitcast<u32>(f32(mantissa) * 5.9604644775390625e-8);
    }
    let wide = select(exponent + 112u, 255u, exponent == 31u);
    return sign | (wide << 23u) | (mantissa << 13u);
}
