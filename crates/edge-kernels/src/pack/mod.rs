//! Packing of weight matrices on the host, and back. The layouts are those of
//! [`format`](mod@crate::format) and [`packing`](mod@crate::packing).
//!
//! Quantisation is to nearest. Symmetric: `scale = max|w| / q_max` over a group, rounded to f16,
//! and `q = round(w / scale)`, with `q_max` 127, 7 or 3. In two bits `scale = max|w| / 1.5` and
//! `q = floor(w / scale)`, and the scale of a group of zeros is 0. With a zero point the range of a
//! group always holds 0: `min` is the smallest weight or 0, rounded to f16, `scale = (max - min) /
//! (2^bits - 1)` with `max` the largest weight or 0, and `q = round((w - min) / scale)`. Over a
//! group of sparse weights only those that are kept count.
//!
//! Packing what was unpacked changes nothing. Any other scale and minimum is never subnormal,
//! because some GPUs read a subnormal f16 as 0, and never infinite: magnitudes above
//! `65504 * q_max` saturate. NaN packs as 0 in the symmetric formats (half a step in two bits)
//! and as the group's minimum with a zero point.
//!
//! [`pack_scaled`] takes scales from the caller, and [`nearest`] says what a weight becomes with
//! one. It uses all levels, the lowest one of 3, 4 and 8 symmetric bits too, which stands for
//! `-4`, `-8` or `-128` scales; the scale may be negative.
//!
//! What a sparse format keeps is chosen apart from quantisation, by a mask: [`magnitude_mask`]
//! where [`pack`] chooses, or the caller's with [`pack_masked`].

mod blocks;
mod levels;
mod prune;
mod rows;

#[cfg(test)]
mod tests;

use half::{bf16, f16};
use rayon::prelude::*;

use crate::format::{Format, WeightBuffers};
use crate::op::CaseBuffer;
use crate::packing::Packing;
use levels::Levels;
pub use levels::Scale;
pub use prune::{largest_two, magnitude_mask};

/// Rows that a thread unpacks together: neighbouring rows share cache lines of packed values.
const STRIP: usize = 16;

/// A weight matrix in host memory, in the words that the device buffers hold.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PackedHost {
    /// How it is stored.
    pub format: Format,
    /// Output channels.
    pub rows: u32,
    /// Input channels.
    pub cols: u32,
    /// Values, [`Format::value_words`] of them.
    pub values: Vec<u32>,
    /// Scales, minima and positions, [`Format::scale_words`] of them.
    pub scales: Vec<u32>,
}

impl PackedHost {
    /// The matrix in f32, row-major.
    pub fn unpack(&self) -> Vec<f32> {
        unpack(self.format, self.rows, self.cols, &self.values, &self.scales)
    }

    /// As contents of the weight bindings of a case.
    pub fn case_buffers(self) -> WeightBuffers<CaseBuffer> {
        let packed = self.format.is_packed();
        WeightBuffers {
            format: self.format,
            values: CaseBuffer::U32(self.values),
            scales: packed.then_some(CaseBuffer::U32(self.scales)),
        }
    }
}

/// Packs `data [rows, cols]` (row-major) into a format; what a sparse one keeps is chosen by
/// magnitude.
///
/// # Panics
/// When `data` has not `rows * cols` elements.
pub fn pack(format: Format, rows: u32, cols: u32, data: &[f32]) -> PackedHost {
    let sparse = format.packing().filter(|packing| packing.is_sparse());
    let mask = sparse.map(|packing| magnitude_mask(packing.kept(), rows, cols, data));
    pack_values(format, [rows, cols], data, mask.as_deref().unwrap_or_default(), None)
}

/// Packs the elements of `data [rows, cols]` that `mask [rows, cols]` keeps; the others are 0, in
/// any format. Where the mask keeps fewer weights than a sparse format stores, it stores zeros,
/// which in two symmetric bits are half a step.
///
/// # Panics
/// When `data` or `mask` have not `rows * cols` elements, or the mask keeps more than the format
/// does: of each four columns at most two, the same ones in all rows that share their positions.
pub fn pack_masked(
    format: Format,
    rows: u32,
    cols: u32,
    data: &[f32],
    mask: &[bool],
) -> PackedHost {
    assert_eq!(data.len(), mask.len(), "size of the mask");
    if format.is_packed() {
        return pack_values(format, [rows, cols], data, mask, None);
    }
    let kept = data.iter().zip(mask).map(|(x, kept)| if *kept { *x } else { 0.0 });
    pack_values(format, [rows, cols], &kept.collect::<Vec<f32>>(), &[], None)
}

/// Packs `data [rows, cols]` with given scales, `[ceil(cols / group), rows]`, and none in 16 bits.
/// Levels are those of [`nearest`]. A sparse packing stores what `mask [rows, cols]` keeps, as
/// [`pack_masked`] does; for a dense one the mask is empty.
///
/// # Panics
/// When `data`, `mask` or `scales` have another size, or the mask keeps more than the packing does.
pub fn pack_scaled(
    packing: Packing,
    rows: u32,
    cols: u32,
    data: &[f32],
    mask: &[bool],
    scales: &[Scale],
) -> PackedHost {
    let groups = packing.group().map_or(0, |group| cols.div_ceil(group));
    assert_eq!(scales.len() as u64, u64::from(groups) * u64::from(rows), "number of scales");
    let masked = if packing.is_sparse() { data.len() } else { 0 };
    assert_eq!(mask.len(), masked, "size of the mask");
    pack_values(packing.format(), [rows, cols], data, mask, Some(scales))
}

/// The number that kernels read where `x` is packed with this scale ([`pack_scaled`]), or in a
/// format without scales, where the scale is ignored: the nearest one. Ties go away from zero in
/// units of the scale (from the minimum, with a zero point), in two bits upwards, and in 16 bits
/// to even.
pub fn nearest(format: Format, x: f32, scale: Scale) -> f32 {
    match format {
        Format::F32 => x,
        Format::Bf16 => bf16::from_bits(narrow_bf16(x)).to_f32(),
        Format::F16 => f16::from_bits(narrow_f16(x)).to_f32(),
        Format::Packed(packing) => {
            let level = levels::level(packing, x, scale, Levels::All);
            if packing.bits() == 16 {
                return f16::from_bits(level as u16).to_f32();
            }
            let (factor, zero) = scale.affine(packing);
            level as f32 * factor + zero
        }
    }
}

/// Packs `data`, of which a sparse format stores what the mask keeps; the mask is empty where all
/// is kept. The scales are chosen where none are given.
fn pack_values(
    format: Format,
    shape: [u32; 2],
    data: &[f32],
    mask: &[bool],
    scales: Option<&[Scale]>,
) -> PackedHost {
    let [rows, cols] = shape;
    assert_eq!(data.len() as u64, u64::from(rows) * u64::from(cols), "size of the matrix");
    let width = cols as usize;
    let words = format.value_words(rows, cols) as usize;
    let (values, scales) = match format {
        Format::F32 => (bytemuck::cast_slice(data).to_vec(), Vec::new()),
        Format::F16 => (pack_halves(words, width, data, narrow_f16), Vec::new()),
        Format::Bf16 => (pack_halves(words, width, data, narrow_bf16), Vec::new()),
        Format::Packed(packing) => {
            blocks::pack(packing, shape.map(|x| x as usize), data, mask, scales)
        }
    };
    PackedHost { format, rows, cols, values, scales }
}

/// The bits of a number as bf16; finite numbers stay finite.
fn narrow_bf16(x: f32) -> u16 {
    bf16::from_f32(saturate(x, bf16::MAX.to_f32())).to_bits()
}

/// The bits of a number as f16; finite numbers stay finite.
fn narrow_f16(x: f32) -> u16 {
    f16::from_f32(saturate(x, f16::MAX.to_f32())).to_bits()
}

/// The matrix `[rows, cols]` in f32, row-major.
///
/// # Panics
/// When `values` or `scales` are shorter than the format says.
pub fn unpack(format: Format, rows: u32, cols: u32, values: &[u32], scales: &[u32]) -> Vec<f32> {
    let mut out = vec![0.0; rows as usize * cols as usize];
    unpack_rows(format, [rows, cols], values, scales, 0, &mut out);
    out
}

/// Rows `first..` of a matrix of this `shape` (rows, columns), as many as `out` has room for.
///
/// # Panics
/// When `values` or `scales` are shorter than the format says.
pub fn unpack_rows(
    format: Format,
    shape: [u32; 2],
    values: &[u32],
    scales: &[u32],
    first: usize,
    out: &mut [f32],
) {
    let [rows, cols] = shape.map(|size| size as usize);
    if cols == 0 {
        return;
    }
    out.par_chunks_mut(STRIP * cols).enumerate().for_each(|(strip, out)| {
        let first = first + strip * STRIP;
        if let Format::Packed(packing) = format {
            blocks::Blocks { packing, rows, cols, values, scales }.strip(first, out);
            return;
        }
        for (r, out) in out.chunks_exact_mut(cols).enumerate() {
            unpack_dense(format, values, first + r, out);
        }
    });
}

fn unpack_dense(format: Format, values: &[u32], row: usize, out: &mut [f32]) {
    if format == Format::F32 {
        out.copy_from_slice(bytemuck::cast_slice(&values[row * out.len()..][..out.len()]));
        return;
    }
    let words = out.len().div_ceil(2);
    let widen = |bits: u32| match format {
        Format::F16 => f16::from_bits(bits as u16).to_f32(),
        _ => bf16::from_bits(bits as u16).to_f32(),
    };
    for (out, word) in out.chunks_mut(2).zip(&values[row * words..][..words]) {
        out[0] = widen(word & 0xFFFF);
        if let Some(odd) = out.get_mut(1) {
            *odd = widen(word >> 16);
        }
    }
}

fn pair(low: u16, high: u16) -> u32 {
    u32::from(low) | u32::from(high) << 16
}

/// Finite values stay finite.
fn saturate(x: f32, limit: f32) -> f32 {
    if x.is_finite() { x.clamp(-limit, limit) } else { x }
}

fn pack_halves(
    words: usize,
    cols: usize,
    data: &[f32],
    narrow: impl Fn(f32) -> u16 + Sync,
) -> Vec<u32> {
    let mut values = vec![0; words];
    if cols == 0 {
        return values;
    }
    let rows = values.par_chunks_mut(cols.div_ceil(2)).zip(data.par_chunks(cols));
    rows.for_each(|(out, row)| {
        for (out, two) in out.iter_mut().zip(row.chunks(2)) {
            *out = pair(narrow(two[0]), two.get(1).map_or(0, |x| narrow(*x)));
        }
    });
    values
}
