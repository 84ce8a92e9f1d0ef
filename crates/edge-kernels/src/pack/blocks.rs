//! Blocks of packed matrices: where the bits of their levels lie.

use std::borrow::Cow;

use half::f16;
use rayon::prelude::*;

use super::levels::{self, Levels, Scale};
use super::{pair, prune};
use crate::packing::{BLOCK, Packing};

/// Columns in a block.
const WIDTH: usize = BLOCK as usize;

/// A block-major matrix in its buffers.
pub(super) struct Blocks<'a> {
    pub packing: Packing,
    pub rows: usize,
    pub cols: usize,
    pub values: &'a [u32],
    pub scales: &'a [u32],
}

/// Weights that are packed: a row-major matrix, what a mask (if there is one) keeps of it, and
/// the positions of that.
struct Source<'a> {
    packing: Packing,
    rows: usize,
    cols: usize,
    data: &'a [f32],
    mask: &'a [bool],
    positions: Vec<u32>,
    levels: Levels,
}

impl Source<'_> {
    /// Values of a block of a row that are stored, then zeros.
    fn stored(&self, block: usize, n: usize) -> [f32; WIDTH] {
        let (first, mut all) = (block * WIDTH, [0.0; WIDTH]);
        let last = (first + WIDTH).min(self.cols);
        all[..last - first].copy_from_slice(&self.data[n * self.cols..][first..last]);
        if let Some(mask) = self.mask.get(n * self.cols + first..n * self.cols + last) {
            let left_out = all.iter_mut().zip(mask).filter(|(_, kept)| !**kept);
            left_out.for_each(|(x, _)| *x = 0.0);
        }
        if !self.packing.is_sparse() {
            return all;
        }
        let shared = self.packing.rows_of_positions() as usize;
        let word = self.positions[block * self.rows.div_ceil(shared) + n / shared];
        let (kept, mut out) = (prune::kept_columns(word), [0.0; WIDTH]);
        for (out, column) in out.iter_mut().zip(kept) {
            *out = all[column];
        }
        out
    }

    /// Scales `[groups][rows]`.
    fn scales(&self) -> Vec<Scale> {
        let Some(group) = self.packing.group() else { return Vec::new() };
        let (blocks, per_group) = (self.cols.div_ceil(WIDTH), group as usize / WIDTH);
        let mut scales = vec![Scale::default(); self.rows * blocks.div_ceil(per_group)];
        scales.par_chunks_mut(self.rows).enumerate().for_each(|(index, out)| {
            let first = index * per_group;
            let group = first..(first + per_group).min(blocks);
            for (n, scale) in out.iter_mut().enumerate() {
                let values = group.clone().flat_map(|block| self.stored(block, n));
                *scale = Scale::of(self.packing, values);
            }
        });
        scales
    }

    /// Bits of the levels of a block of a row: the words of the first plane, and the high bits.
    fn block(&self, block: usize, n: usize, scales: &[Scale]) -> ([u32; 8], u32) {
        let group = self.packing.group().unwrap_or(BLOCK) as usize;
        let scale = scales.get(block / (group / WIDTH) * self.rows + n);
        let scale = scale.copied().unwrap_or_default();
        let (mut words, mut high) = ([0; 8], 0);
        let stored = self.stored(block, n);
        for (v, x) in stored.into_iter().enumerate().take(self.packing.stored() as usize) {
            let level = levels::level(self.packing, x, scale, self.levels);
            let (word, shift) = place(self.packing.bits(), v);
            let low = if self.packing.bits() == 3 { level & 3 } else { level };
            words[word] |= low << shift;
            if self.packing.bits() == 3 {
                high |= (level >> 2) << high_shift(v);
            }
        }
        (words, high)
    }
}

/// Word and bit of stored value `v` of a block: see [`packing`](mod@crate::packing).
fn place(bits: u32, v: usize) -> (usize, usize) {
    match bits {
        16 => (v / 2, 16 * (v % 2)),
        8 => (v / 4, 8 * (v % 4)),
        4 => (v / 8, 8 * (v % 4) + 4 * (v % 8 / 4)),
        _ => (v / 16, 8 * (v % 4) + 2 * (v % 16 / 4)),
    }
}

/// Bit of the high bit of stored value `v` in its word.
fn high_shift(v: usize) -> usize {
    8 * (v % 4) + v / 4
}

/// Packs a matrix `[rows, cols]` whose mask keeps what a sparse packing stores, and is empty where
/// all is kept: the values, and the buffer with scales, minima and positions. The scales are
/// `given [groups][rows]`, with all levels, or the largest weights' with balanced ones.
pub(super) fn pack(
    packing: Packing,
    [rows, cols]: [usize; 2],
    data: &[f32],
    mask: &[bool],
    given: Option<&[Scale]>,
) -> (Vec<u32>, Vec<u32>) {
    let mut values = vec![0; packing.value_words(rows as u32, cols as u32) as usize];
    if rows == 0 || cols == 0 {
        return (values, Vec::new());
    }
    let positions = match packing.is_sparse() {
        true => prune::positions(packing, [rows, cols], mask),
        false => Vec::new(),
    };
    let levels = if given.is_some() { Levels::All } else { Levels::Balanced };
    let source = Source { packing, rows, cols, data, mask, positions, levels };
    let scales = given.map_or_else(|| Cow::Owned(source.scales()), Cow::Borrowed);
    let (words, blocks) = (packing.block_words() as usize, cols.div_ceil(WIDTH));
    let (low, high) = values.split_at_mut(blocks * rows * words);
    // Rows of the second plane a word: two, or one, or it is empty.
    let (per_word, high_words) = match (packing.bits(), packing.is_sparse()) {
        (3, true) => (2, rows.div_ceil(2)),
        _ => (1, rows),
    };
    let plane = |block: usize, low: &mut [u32], high: &mut [u32]| {
        for (n, low) in low.chunks_exact_mut(words).enumerate() {
            let (block_words, bits) = source.block(block, n, &scales);
            low.copy_from_slice(&block_words[..words]);
            if let Some(high) = high.get_mut(n / per_word) {
                *high |= bits << (4 * (n % per_word));
            }
        }
    };
    let lows = low.par_chunks_mut(rows * words).enumerate();
    if high.is_empty() {
        lows.for_each(|(block, low)| plane(block, low, &mut []));
    } else {
        let highs = high[..blocks * high_words].par_chunks_mut(high_words);
        lows.zip(highs).for_each(|((block, low), high)| plane(block, low, high));
    }
    let mut second = scale_words(packing, rows, &scales);
    second.extend(source.positions);
    (values, second)
}

/// Scales and minima as they are stored.
fn scale_words(packing: Packing, rows: usize, scales: &[Scale]) -> Vec<u32> {
    if packing.has_zero_point() {
        let word = |scale: &Scale| pair(scale.factor.to_bits(), scale.min.to_bits());
        return scales.iter().map(word).collect();
    }
    let bits = |scale: Option<&Scale>| scale.map_or(0, |scale| scale.factor.to_bits());
    let groups = scales.chunks(rows).flat_map(|group| group.chunks(2));
    groups.map(|two| pair(bits(two.first()), bits(two.get(1)))).collect()
}

impl Blocks<'_> {
    /// Rows `first..` into `out`.
    pub(super) fn strip(&self, first: usize, out: &mut [f32]) {
        // One loop for each number of bits, so that the shifts in it are constants.
        match self.packing.bits() {
            16 => self.strip_of::<16>(first, out),
            8 => self.strip_of::<8>(first, out),
            4 => self.strip_of::<4>(first, out),
            3 => self.strip_of::<3>(first, out),
            _ => self.strip_of::<2>(first, out),
        }
    }

    fn strip_of<const BITS: u32>(&self, first: usize, out: &mut [f32]) {
        for block in 0..self.cols.div_ceil(WIDTH) {
            let start = block * WIDTH;
            let end = (start + WIDTH).min(self.cols);
            for (r, row) in out.chunks_exact_mut(self.cols).enumerate() {
                let all = self.block::<BITS>(block, first + r);
                row[start..end].copy_from_slice(&all[..end - start]);
            }
        }
    }

    /// All columns of a block of a row.
    fn block<const BITS: u32>(&self, block: usize, n: usize) -> [f32; WIDTH] {
        let words = self.packing.block_words() as usize;
        let at = block * self.rows + n;
        let (low, high) = (&self.values[at * words..(at + 1) * words], self.high(block, n));
        let (factor, zero) = self.scale(block, n).affine(self.packing);
        let value = |v: usize| {
            let (word, shift) = place(BITS, v);
            let bits = low[word] >> shift;
            match BITS {
                16 => f16::from_bits(bits as u16).to_f32(),
                3 => (bits & 3 | (high >> high_shift(v) & 1) << 2) as f32 * factor + zero,
                _ => (bits & ((1 << BITS) - 1)) as f32 * factor + zero,
            }
        };
        if !self.packing.is_sparse() {
            return std::array::from_fn(value);
        }
        let mut out = [0.0; WIDTH];
        for (v, column) in prune::kept_columns(self.positions(block, n)).into_iter().enumerate() {
            out[column] = value(v);
        }
        out
    }

    /// The high bits of a block of a row in 3 bits.
    fn high(&self, block: usize, n: usize) -> u32 {
        let blocks = self.cols.div_ceil(WIDTH);
        let first = blocks * self.rows * self.packing.block_words() as usize;
        match (self.packing.bits(), self.packing.is_sparse()) {
            (3, false) => self.values[first + block * self.rows + n],
            (3, true) => {
                let word = self.values[first + block * self.rows.div_ceil(2) + n / 2];
                word >> (4 * (n % 2))
            }
            _ => 0,
        }
    }

    fn scale(&self, block: usize, n: usize) -> Scale {
        let Some(group) = self.packing.group() else { return Scale::default() };
        let index = block / (group as usize / WIDTH);
        let half = |word: u32, which: usize| f16::from_bits((word >> (16 * which)) as u16);
        if self.packing.has_zero_point() {
            let word = self.scales[index * self.rows + n];
            return Scale { factor: half(word, 0), min: half(word, 1) };
        }
        let word = self.scales[index * self.rows.div_ceil(2) + n / 2];
        Scale { factor: half(word, n % 2), min: f16::ZERO }
    }

    fn positions(&self, block: usize, n: usize) -> u32 {
        let shared = self.packing.rows_of_positions() as usize;
        let base = self.packing.position_offset(self.rows as u32, self.cols as u32) as usize;
        self.scales[base + block * self.rows.div_ceil(shared) + n / shared]
    }
}
