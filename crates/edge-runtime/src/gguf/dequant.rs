//! From blocks of a GGUF tensor to f32, operation by operation as ggml does (`ggml-quants.c`,
//! `dequantize_row_*`), so that results have the same bits.

use half::{bf16, f16};

use super::types::Type;
use crate::checkpoint::Dtype;

/// Writes the values of whole blocks, one after the other.
///
/// # Panics
/// When `bytes` are not the blocks of `out`.
pub fn dequantize(kind: Type, bytes: &[u8], out: &mut [f32]) {
    let (values, size) = kind.block();
    assert_eq!(bytes.len() / size * values, out.len(), "blocks of {kind}");
    let unpack = match kind {
        Type::Plain(dtype) => return plain(dtype, bytes, out),
        Type::Q4_0 => q4_0,
        Type::Q4_1 => q4_1,
        Type::Q5_0 => q5_0,
        Type::Q5_1 => q5_1,
        Type::Q8_0 => q8_0,
        Type::Q2K => q2_k,
        Type::Q3K => q3_k,
        Type::Q4K => q4_k,
        Type::Q5K => q5_k,
        Type::Q6K => q6_k,
    };
    for (block, out) in bytes.chunks_exact(size).zip(out.chunks_exact_mut(values)) {
        unpack(block, out);
    }
}

fn plain(dtype: Dtype, bytes: &[u8], out: &mut [f32]) {
    let halves = bytes.as_chunks::<2>().0;
    match dtype {
        Dtype::F32 => {
            let words = bytes.as_chunks::<4>().0;
            out.iter_mut().zip(words).for_each(|(out, word)| *out = f32::from_le_bytes(*word));
        }
        Dtype::F16 => {
            let values = out.iter_mut().zip(halves);
            values.for_each(|(out, half)| *out = f16::from_le_bytes(*half).to_f32());
        }
        Dtype::BF16 => {
            let values = out.iter_mut().zip(halves);
            values.for_each(|(out, half)| *out = bf16::from_le_bytes(*half).to_f32());
        }
    }
}

/// The f16 at a byte.
fn half(block: &[u8], at: usize) -> f32 {
    f16::from_le_bytes([block[at], block[at + 1]]).to_f32()
}

fn q4_0(block: &[u8], out: &mut [f32]) {
    let d = half(block, 0);
    for (j, byte) in block[2..].iter().enumerate() {
        out[j] = (i32::from(byte & 15) - 8) as f32 * d;
        out[j + 16] = (i32::from(byte >> 4) - 8) as f32 * d;
    }
}

fn q4_1(block: &[u8], out: &mut [f32]) {
    let (d, m) = (half(block, 0), half(block, 2));
    for (j, byte) in block[4..].iter().enumerate() {
        out[j] = f32::from(byte & 15) * d + m;
        out[j + 16] = f32::from(byte >> 4) * d + m;
    }
}

/// The fifth bits of a block, value by value.
fn fifth_bits(block: &[u8], at: usize) -> u32 {
    u32::from_le_bytes([block[at], block[at + 1], block[at + 2], block[at + 3]])
}

fn q5_0(block: &[u8], out: &mut [f32]) {
    let (d, high) = (half(block, 0), fifth_bits(block, 2));
    for (j, byte) in block[6..].iter().enumerate() {
        let bit = |at: usize| ((high >> at & 1) << 4) as i32;
        out[j] = ((i32::from(byte & 15) | bit(j)) - 16) as f32 * d;
        out[j + 16] = ((i32::from(byte >> 4) | bit(j + 16)) - 16) as f32 * d;
    }
}

fn q5_1(block: &[u8], out: &mut [f32]) {
    let (d, m, high) = (half(block, 0), half(block, 2), fifth_bits(block, 4));
    for (j, byte) in block[8..].iter().enumerate() {
        let bit = |at: usize| (high >> at & 1) << 4;
        out[j] = (u32::from(byte & 15) | bit(j)) as f32 * d + m;
        out[j + 16] = (u32::from(byte >> 4) | bit(j + 16)) as f32 * d + m;
    }
}

fn q8_0(block: &[u8], out: &mut [f32]) {
    let d = half(block, 0);
    for (out, byte) in out.iter_mut().zip(&block[2..]) {
        *out = f32::from(*byte as i8) * d;
    }
}

fn q2_k(block: &[u8], out: &mut [f32]) {
    let (scales, rest) = block.split_at(16);
    let (d, min) = (half(block, 80), half(block, 82));
    for (group, out) in out.chunks_exact_mut(16).enumerate() {
        let (dl, ml) = (d * f32::from(scales[group] & 15), min * f32::from(scales[group] >> 4));
        // 128 values take 32 bytes, two bits of each for 32 values.
        let (from, shift) = (32 * (group / 8) + 16 * (group % 2), 2 * (group % 8 / 2));
        for (out, byte) in out.iter_mut().zip(&rest[from..]) {
            *out = dl * f32::from(byte >> shift & 3) - ml;
        }
    }
}

fn q3_k(block: &[u8], out: &mut [f32]) {
    let (mask, low, packed) = (&block[..32], &block[32..96], &block[96..108]);
    let d = half(block, 108);
    for (group, out) in out.chunks_exact_mut(16).enumerate() {
        let four = packed[group % 8] >> (4 * (group / 8)) & 15;
        let two = packed[8 + group % 4] >> (2 * (group / 4)) & 3;
        let dl = d * (i32::from(four | two << 4) - 32) as f32;
        let (half, pair) = (group / 8, group % 8 / 2);
        let column = 16 * (group % 2);
        for (l, out) in out.iter_mut().enumerate() {
            let value = i32::from(low[32 * half + column + l] >> (2 * pair) & 3);
            let high = mask[column + l] >> (4 * half + pair) & 1;
            *out = dl * (value - if high == 1 { 0 } else { 4 }) as f32;
        }
    }
}

/// Scale and minimum of a group of 32, 6 bits each of 12 bytes (`get_scale_min_k4`).
fn scale_and_min(group: usize, packed: &[u8]) -> (f32, f32) {
    let (scale, min) = match group {
        0..4 => (packed[group] & 63, packed[group + 4] & 63),
        _ => (
            packed[group + 4] & 15 | packed[group - 4] >> 6 << 4,
            packed[group + 4] >> 4 | packed[group] >> 6 << 4,
        ),
    };
    (f32::from(scale), f32::from(min))
}

fn q4_k(block: &[u8], out: &mut [f32]) {
    let (d, min) = (half(block, 0), half(block, 2));
    for (group, out) in out.chunks_exact_mut(32).enumerate() {
        let (scale, least) = scale_and_min(group, &block[4..16]);
        let (d, m) = (d * scale, min * least);
        let (bytes, shift) = (&block[16 + 32 * (group / 2)..], 4 * (group % 2));
        for (out, byte) in out.iter_mut().zip(bytes) {
            *out = d * f32::from(byte >> shift & 15) - m;
        }
    }
}

fn q5_k(block: &[u8], out: &mut [f32]) {
    let (d, min) = (half(block, 0), half(block, 2));
    let high = &block[16..48];
    for (group, out) in out.chunks_exact_mut(32).enumerate() {
        let (scale, least) = scale_and_min(group, &block[4..16]);
        let (d, m) = (d * scale, min * least);
        let (bytes, shift) = (&block[48 + 32 * (group / 2)..], 4 * (group % 2));
        for ((out, byte), high) in out.iter_mut().zip(bytes).zip(high) {
            let value = byte >> shift & 15 | (high >> group & 1) << 4;
            *out = d * f32::from(value) - m;
        }
    }
}

fn q6_k(block: &[u8], out: &mut [f32]) {
    let (low, high, scales) = (&block[..128], &block[128..192], &block[192..208]);
    let d = half(block, 208);
    for (group, out) in out.chunks_exact_mut(16).enumerate() {
        let dl = d * f32::from(scales[group] as i8);
        let (half, quarter, column) = (group / 8, group % 8 / 2, 16 * (group % 2));
        for (l, out) in out.iter_mut().enumerate() {
            let at = column + l;
            let four = low[64 * half + 32 * (quarter % 2) + at] >> (4 * (quarter / 2)) & 15;
            let two = high[32 * half + at] >> (2 * quarter) & 3;
            *out = dl * (i32::from(four | two << 4) - 32) as f32;
        }
    }
}
