//! Packing of weight matrices on the host, and back. The layouts are those of
//! [`format`](mod@crate::format).
//!
//! Quantisation is symmetric and to nearest: `scale = max|w| / q_max` over a group, rounded to
//! f16, and `q = round(w / scale)`, with `q_max` 127, 7 or 3. In two bits `scale = max|w| / 1.5`
//! and `q = floor(w / scale)`, and the scale of a group of zeros is 0. Packing what was unpacked
//! changes nothing. Any other scale is never subnormal, because some GPUs read a subnormal f16 as
//! 0, and never infinite: magnitudes above `65504 * q_max` saturate. NaN packs as 0 (half a step
//! in two bits) in the packed formats.

use half::{bf16, f16};
use rayon::prelude::*;

use crate::format::{BLOCK, Format, WeightBuffers};
use crate::op::CaseBuffer;

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
    /// Scales, [`Format::scale_words`] of them.
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

/// Packs `data [rows, cols]` (row-major) into a format.
///
/// # Panics
/// When `data` has not `rows * cols` elements.
pub fn pack(format: Format, rows: u32, cols: u32, data: &[f32]) -> PackedHost {
    assert_eq!(data.len() as u64, u64::from(rows) * u64::from(cols), "size of the matrix");
    let mut values = vec![0; format.value_words(rows, cols) as usize];
    let mut scales = Vec::new();
    let width = cols as usize;
    match format {
        Format::F32 => values.copy_from_slice(bytemuck::cast_slice(data)),
        Format::F16 => pack_halves(&mut values, width, data, |x| {
            f16::from_f32(saturate(x, f16::MAX.to_f32())).to_bits()
        }),
        Format::Bf16 => pack_halves(&mut values, width, data, |x| {
            bf16::from_f32(saturate(x, bf16::MAX.to_f32())).to_bits()
        }),
        Format::Q8 { group }
        | Format::Q4 { group }
        | Format::Q3 { group }
        | Format::Q2 { group } => {
            let steps = scales_of(data, rows as usize, width, group as usize, format);
            pack_groups(format, &mut values, (rows as usize, width), data, &steps);
            scales = steps.chunks_exact(2).map(|p| pair(p[0].to_bits(), p[1].to_bits())).collect();
        }
    }
    PackedHost { format, rows, cols, values, scales }
}

/// Values of a packed format, given the scales (`steps`) of [`scales_of`].
fn pack_groups(
    format: Format,
    values: &mut [u32],
    (rows, cols): (usize, usize),
    data: &[f32],
    steps: &[f16],
) {
    let group = format.group().unwrap_or(BLOCK) as usize;
    let words = block_words(format);
    let quantised = |block: usize, n: usize| {
        let first = block * BLOCK as usize;
        let last = (first + BLOCK as usize).min(cols);
        let step = steps[first / group * rows.next_multiple_of(2) + n].to_f32();
        let mut q = [0; BLOCK as usize];
        for (q, x) in q.iter_mut().zip(&data[n * cols + first..n * cols + last]) {
            *q = quantise(format, *x, step);
        }
        q
    };
    if rows == 0 || cols == 0 {
        return;
    }
    // The second plane is empty for all formats but one.
    let low_words = if matches!(format, Format::Q3 { .. }) { 2 } else { words };
    let blocks = cols.div_ceil(BLOCK as usize);
    let (low, high) = values.split_at_mut(rows * blocks * low_words);
    let plane = |block: usize, low: &mut [u32], high: &mut [u32]| {
        for (n, out) in low.chunks_exact_mut(low_words).enumerate() {
            let mut all = [0; MAX_BLOCK_WORDS];
            pack_block(format, &quantised(block, n), &mut all[..words]);
            out.copy_from_slice(&all[..low_words]);
            if let Some(high) = high.get_mut(n) {
                *high = all[low_words];
            }
        }
    };
    let lows = low.par_chunks_mut(rows * low_words).enumerate();
    if high.is_empty() {
        lows.for_each(|(block, low)| plane(block, low, &mut []));
    } else {
        let highs = high[..rows * blocks].par_chunks_mut(rows);
        lows.zip(highs).for_each(|((block, low), high)| plane(block, low, high));
    }
}

/// The integer of a weight, given its group's scale.
fn quantise(format: Format, x: f32, step: f32) -> i32 {
    let limit = largest_level(format);
    match format {
        // NaN, of a weight or of 0 / 0 in a group of zeros, becomes 0.
        Format::Q2 { .. } => (x / step).floor().clamp(-2.0, 1.0) as i32,
        _ => (x / step).round().clamp(-limit, limit) as i32,
    }
}

/// The largest magnitude in units of the scale.
fn largest_level(format: Format) -> f32 {
    match format {
        Format::Q8 { .. } => 127.0,
        Format::Q4 { .. } => 7.0,
        Format::Q3 { .. } => 3.0,
        Format::Q2 { .. } => 1.5,
        Format::F32 | Format::F16 | Format::Bf16 => f32::INFINITY,
    }
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
        if let Some(group) = format.group() {
            let blocks = cols.div_ceil(BLOCK as usize);
            let matrix = Packed { format, rows, blocks, values, scales, group: group as usize };
            matrix.strip(first, cols, out);
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

/// A block-major matrix with scales.
struct Packed<'a> {
    format: Format,
    rows: usize,
    blocks: usize,
    values: &'a [u32],
    scales: &'a [u32],
    group: usize,
}

impl Packed<'_> {
    /// Rows `first..` into `out`.
    fn strip(&self, first: usize, cols: usize, out: &mut [f32]) {
        for block in 0..self.blocks {
            let start = block * BLOCK as usize;
            let end = (start + BLOCK as usize).min(cols);
            for (r, row) in out.chunks_exact_mut(cols).enumerate() {
                let n = first + r;
                let scale = self.scale(start / self.group, n);
                unpack_block(self.format, &self.block(block, n), scale, &mut row[start..end]);
            }
        }
    }

    /// The words of a block of a row; what the format does not fill stays 0.
    fn block(&self, block: usize, n: usize) -> [u32; MAX_BLOCK_WORDS] {
        let words = block_words(self.format);
        let (at, mut out) = (block * self.rows + n, [0; MAX_BLOCK_WORDS]);
        if let Format::Q3 { .. } = self.format {
            out[..2].copy_from_slice(&self.values[2 * at..2 * at + 2]);
            out[2] = self.values[2 * self.rows * self.blocks + at];
        } else {
            out[..words].copy_from_slice(&self.values[at * words..(at + 1) * words]);
        }
        out
    }

    fn scale(&self, group: usize, n: usize) -> f32 {
        let word = self.scales[group * self.rows.div_ceil(2) + n / 2];
        f16::from_bits((word >> (16 * (n % 2))) as u16).to_f32()
    }
}

/// Most words of the values of a block of one row.
const MAX_BLOCK_WORDS: usize = 8;

/// Words of the values of a block of one row.
fn block_words(format: Format) -> usize {
    match format {
        Format::Q2 { .. } => 2,
        Format::Q3 { .. } => 3,
        Format::Q4 { .. } => 4,
        _ => MAX_BLOCK_WORDS,
    }
}

fn pair(low: u16, high: u16) -> u32 {
    u32::from(low) | u32::from(high) << 16
}

/// Finite values stay finite.
fn saturate(x: f32, limit: f32) -> f32 {
    if x.is_finite() { x.clamp(-limit, limit) } else { x }
}

fn pack_halves(values: &mut [u32], cols: usize, data: &[f32], narrow: impl Fn(f32) -> u16 + Sync) {
    if cols == 0 {
        return;
    }
    let rows = values.par_chunks_mut(cols.div_ceil(2)).zip(data.par_chunks(cols));
    rows.for_each(|(out, row)| {
        for (out, two) in out.iter_mut().zip(row.chunks(2)) {
            *out = pair(narrow(two[0]), two.get(1).map_or(0, |x| narrow(*x)));
        }
    });
}

/// Scales `[cols / group][rows rounded up to even]`.
fn scales_of(data: &[f32], rows: usize, cols: usize, group: usize, format: Format) -> Vec<f16> {
    let limit = largest_level(format);
    let half_levels = matches!(format, Format::Q2 { .. });
    let padded = rows.next_multiple_of(2);
    let mut scales = vec![f16::ZERO; padded * cols.div_ceil(group)];
    if rows == 0 {
        return scales;
    }
    scales.par_chunks_mut(padded).enumerate().for_each(|(index, out)| {
        let first = index * group;
        let last = (first + group).min(cols);
        for (n, scale) in out[..rows].iter_mut().enumerate() {
            let row = &data[n * cols + first..n * cols + last];
            let largest = row.iter().fold(0.0_f32, |largest, x| largest.max(x.abs()));
            let (low, high) = (f16::MIN_POSITIVE.to_f32(), f16::MAX.to_f32());
            // Without a level of 0, a group of zeros needs a scale of 0.
            if largest > 0.0 || !half_levels {
                *scale = f16::from_f32((largest / limit).clamp(low, high));
            }
        }
    });
    scales
}

/// Packs the integers of a block.
fn pack_block(format: Format, q: &[i32; BLOCK as usize], out: &mut [u32]) {
    if matches!(format, Format::Q8 { .. }) {
        for (word, four) in out.iter_mut().zip(q.chunks_exact(4)) {
            *word = u32::from_le_bytes(std::array::from_fn(|i| four[i] as i8 as u8));
        }
        return;
    }
    if matches!(format, Format::Q4 { .. }) {
        for (word, eight) in out.iter_mut().zip(q.chunks_exact(8)) {
            let nibble = |i: usize| (eight[i] + 8) as u8;
            *word = u32::from_le_bytes(std::array::from_fn(|i| nibble(i) | nibble(i + 4) << 4));
        }
        return;
    }
    let three = matches!(format, Format::Q3 { .. });
    for (column, q) in q.iter().enumerate() {
        let level = (q + if three { 4 } else { 2 }) as u32;
        let (byte, quad) = (column % 4, column / 4);
        out[column / 16] |= (level & 3) << (8 * byte + 2 * (quad % 4));
        if three {
            out[2] |= (level >> 2) << (8 * byte + quad);
        }
    }
}

/// Unpacks as many columns of a block as `out` has.
fn unpack_block(format: Format, words: &[u32], scale: f32, out: &mut [f32]) {
    if matches!(format, Format::Q8 { .. }) {
        for (out, word) in out.chunks_mut(4).zip(words) {
            for (x, byte) in out.iter_mut().zip(word.to_le_bytes()) {
                *x = f32::from(byte as i8) * scale;
            }
        }
        return;
    }
    if matches!(format, Format::Q4 { .. }) {
        for (out, word) in out.chunks_mut(8).zip(words) {
            let bytes = word.to_le_bytes();
            for (i, x) in out.iter_mut().enumerate() {
                let nibble = bytes[i % 4] >> (4 * (i / 4)) & 15;
                *x = (f32::from(nibble) - 8.0) * scale;
            }
        }
        return;
    }
    let three = matches!(format, Format::Q3 { .. });
    for (column, x) in out.iter_mut().enumerate() {
        let (byte, quad) = (column % 4, column / 4);
        let low = words[column / 16] >> (8 * byte + 2 * (quad % 4)) & 3;
        let high = words[2] >> (8 * byte + quad) & 1;
        *x = if three { (low | high << 2) as f32 - 4.0 } else { low as f32 - 1.5 } * scale;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::util::{SeededRng, uniform_vec};
    use rand::SeedableRng;

    const SHAPES: [(u32, u32); 6] = [(1, 1), (3, 31), (5, 33), (2, 64), (17, 96), (7, 130)];

    fn matrix(rows: u32, cols: u32, size: f32) -> Vec<f32> {
        let mut rng = SeededRng::seed_from_u64(u64::from(rows * 1000 + cols));
        uniform_vec(&mut rng, (rows * cols) as usize, -size, size)
    }

    #[test]
    fn packing_the_unpacked_changes_nothing() {
        for format in Format::ALL {
            for (rows, cols) in SHAPES {
                for size in [1e-9, 1e-5, 1e-3, 0.7, 300.0, 1e9] {
                    let once = pack(format, rows, cols, &matrix(rows, cols, size));
                    assert_eq!(once.values.len() as u64, format.value_words(rows, cols));
                    assert_eq!(once.scales.len() as u64, format.scale_words(rows, cols));
                    let twice = pack(format, rows, cols, &once.unpack());
                    assert!(once == twice, "{format:?} {rows}x{cols} size {size}");
                }
            }
        }
    }

    #[test]
    fn the_error_is_at_most_half_a_step() {
        for format in Format::ALL {
            for (rows, cols) in SHAPES {
                let data = matrix(rows, cols, 0.3);
                let packed = pack(format, rows, cols, &data);
                for (i, (&w, &got)) in data.iter().zip(&packed.unpack()).enumerate() {
                    let (n, c) = (i / cols as usize, i % cols as usize);
                    let bound = match format {
                        Format::F32 => 0.0,
                        Format::F16 => w.abs() * 2.0_f32.powi(-11),
                        Format::Bf16 => w.abs() * 2.0_f32.powi(-8),
                        Format::Q8 { group }
                        | Format::Q4 { group }
                        | Format::Q3 { group }
                        | Format::Q2 { group } => {
                            let index = c / group as usize * rows.div_ceil(2) as usize + n / 2;
                            let bits = packed.scales[index] >> (16 * (n % 2));
                            // The rounding of the scale moves the largest value by 2^-11 of it.
                            f16::from_bits(bits as u16).to_f32() * 0.5 + w.abs() * 2.0_f32.powi(-11)
                        }
                    };
                    assert!((w - got).abs() <= bound * 1.0001, "{format:?} {w} became {got}");
                }
            }
        }
    }

    #[test]
    fn the_documented_layout_is_what_is_written() {
        let (rows, cols) = (3, 64);
        let data: Vec<f32> = (0..rows * cols)
            .map(|i| if i % 32 == 0 { 7.0 } else { (i % 15) as f32 - 7.0 })
            .collect();
        let packed = pack(Format::Q4 { group: 32 }, rows, cols, &data);
        // Every scale is 1, but for the channel that pads the odd count.
        assert_eq!(packed.scales, [0x3C00_3C00, 0x3C00, 0x3C00_3C00, 0x3C00]);
        let (n, block, word) = (2, 1, 3);
        let bits = packed.values[(block * 3 + n) * 4 + word];
        for i in 0..8 {
            let nibble = bits >> (8 * (i % 4) + 4 * (i / 4)) & 15;
            let want = data[n * 64 + block * 32 + word * 8 + i];
            assert_eq!(nibble as f32 - 8.0, want, "column {i} of the word");
        }
    }

    #[test]
    fn two_and_three_bits_lie_where_the_shaders_mask_them() {
        let levels = [-3.0, 3.0, 0.0, 2.0, -1.0, 1.0, -2.0];
        let data: Vec<f32> = (0..3 * 64).map(|i| levels[i % 7]).collect();
        let packed = pack(Format::Q3 { group: 64 }, 3, 64, &data);
        assert_eq!(packed.values.len(), 2 * 6 + 6);
        for (n, column) in [(0, 0), (1, 21), (2, 35), (2, 63)] {
            let (block, c) = (column / 32, column % 32);
            let (i, j, at) = (c % 16 / 4, c % 4, block * 3 + n);
            let low = packed.values[2 * at + c / 16] >> (2 * i) & 0x0303_0303;
            let high = packed.values[12 + at] >> (c / 4) & 0x0101_0101;
            let level = (low | high << 2) >> (8 * j) & 7;
            assert_eq!(level as f32 - 4.0, data[n * 64 + column], "row {n} column {column}");
        }
        let data: Vec<f32> = (0..64).map(|i| [-1.5, 0.5, 1.5, -0.5, 0.5][i % 5]).collect();
        let packed = pack(Format::Q2 { group: 32 }, 1, 64, &data);
        for column in [0, 1, 18, 31, 47, 63] {
            let word = packed.values[column / 16];
            let level = word >> (8 * (column % 4) + 2 * (column % 16 / 4)) & 3;
            assert_eq!(level as f32 - 1.5, data[column], "column {column}");
        }
    }

    #[test]
    fn zero_constant_and_huge_rows() {
        for format in Format::ALL {
            for (value, exact) in [(0.0, true), (0.5, true), (-2.0, true), (f32::MAX, false)] {
                let got = pack(format, 2, 40, &[value; 80]).unpack();
                assert!(got.iter().all(|x| x.is_finite()), "{format:?} {value}");
                let near = |x: &f32| (x - value).abs() <= value.abs() * 1e-3;
                assert!(!exact || got.iter().all(near), "{format:?} {value}: {}", got[0]);
                assert!(exact || got.iter().all(|x| *x > 60000.0), "{format:?}: {}", got[0]);
            }
        }
    }

    #[test]
    fn some_rows_are_the_same_as_in_the_whole() {
        for format in Format::ALL {
            let packed = pack(format, 37, 50, &matrix(37, 50, 1.0));
            let mut some = vec![0.0; 20 * 50];
            unpack_rows(format, [37, 50], &packed.values, &packed.scales, 9, &mut some);
            assert_eq!(some, packed.unpack()[9 * 50..29 * 50], "{format:?}");
        }
    }
}
