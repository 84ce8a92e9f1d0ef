//! From f32 to blocks of a GGUF tensor, as ggml's reference does (`ggml-quants.c`,
//! `quantize_row_*_ref`).

use half::{bf16, f16};

use super::types::Type;
use crate::checkpoint::Dtype;

/// Appends the blocks of some whole rows.
///
/// # Panics
/// When `values` are no whole blocks, or the type is none that is written here: f32, f16, bf16,
/// Q8_0 and Q4_0.
pub fn quantize(kind: Type, values: &[f32], out: &mut Vec<u8>) {
    let (block, _) = kind.block();
    assert!(values.len().is_multiple_of(block), "{} values in blocks of {block}", values.len());
    match kind {
        Type::Plain(Dtype::F32) => out.extend(values.iter().flat_map(|v| v.to_le_bytes())),
        Type::Plain(Dtype::F16) => {
            out.extend(values.iter().flat_map(|v| f16::from_f32(*v).to_le_bytes()));
        }
        Type::Plain(Dtype::BF16) => {
            out.extend(values.iter().flat_map(|v| bf16::from_f32(*v).to_le_bytes()));
        }
        Type::Q8_0 => values.chunks_exact(block).for_each(|values| q8_0(values, out)),
        Type::Q4_0 => values.chunks_exact(block).for_each(|values| q4_0(values, out)),
        other => panic!("{other} is not written"),
    }
}

fn inverse(d: f32) -> f32 {
    if d == 0.0 { 0.0 } else { 1.0 / d }
}

fn q8_0(values: &[f32], out: &mut Vec<u8>) {
    let d = values.iter().fold(0.0f32, |most, v| most.max(v.abs())) / 127.0;
    let id = inverse(d);
    out.extend(f16::from_f32(d).to_le_bytes());
    out.extend(values.iter().map(|v| (v * id).round() as i8 as u8));
}

fn q4_0(values: &[f32], out: &mut Vec<u8>) {
    // The first of the largest, with its sign: it becomes -8.
    let most = values.iter().fold(0.0f32, |most, v| if v.abs() > most.abs() { *v } else { most });
    let d = most / -8.0;
    let id = inverse(d);
    out.extend(f16::from_f32(d).to_le_bytes());
    let level = |v: f32| ((v * id + 8.5) as u8).min(15);
    let (low, high) = values.split_at(16);
    out.extend(low.iter().zip(high).map(|(low, high)| level(*low) | level(*high) << 4));
}
