//! Some rows of a packed matrix, as a packed matrix: what a shard of it holds.

use std::ops::Range;

use super::PackedHost;
use crate::format::Format;
use crate::packing::{BLOCK, Packing, ROW_GROUP};

impl PackedHost {
    /// The rows of a range, without packing them again.
    ///
    /// # Panics
    /// When the range is not inside the matrix, starts at no multiple of [`ROW_GROUP`], or ends
    /// neither at one nor at the last row.
    pub fn take_rows(&self, range: Range<u32>) -> Self {
        let aligned = |row: u32| row.is_multiple_of(ROW_GROUP);
        assert!(range.start <= range.end && range.end <= self.rows, "rows of the matrix");
        assert!(aligned(range.start), "the first row starts a group of rows");
        assert!(aligned(range.end) || range.end == self.rows, "the last row ends a group of rows");
        let (rows, cols) = (range.end - range.start, self.cols);
        let (values, scales) = match self.format {
            Format::Packed(packing) => {
                (self.values_of(packing, &range), self.scales_of(packing, &range))
            }
            format => {
                let width = format.value_words(1, cols) as usize;
                let words = range.start as usize * width..range.end as usize * width;
                (self.values[words].to_vec(), Vec::new())
            }
        };
        Self { format: self.format, rows, cols, values, scales }
    }

    fn values_of(&self, packing: Packing, range: &Range<u32>) -> Vec<u32> {
        let blocks = self.cols.div_ceil(BLOCK) as usize;
        let words = packing.block_words() as usize;
        let plane = blocks * self.rows as usize * words;
        let (low, high) = self.values.split_at(plane);
        let mut out = Vec::new();
        cut(&mut out, low, blocks, self.rows, range, (1, words));
        if packing.bits() == 3 {
            let rows_a_word = if packing.is_sparse() { 2 } else { 1 };
            cut(&mut out, high, blocks, self.rows, range, (rows_a_word, 1));
        }
        let rows = range.end - range.start;
        out.resize(packing.value_words(rows, self.cols) as usize, 0);
        out
    }

    fn scales_of(&self, packing: Packing, range: &Range<u32>) -> Vec<u32> {
        let offset = packing.position_offset(self.rows, self.cols) as usize;
        let (scales, positions) = self.scales.split_at(offset);
        let mut out = Vec::new();
        if let Some(group) = packing.group() {
            let rows_a_word = if packing.has_zero_point() { 1 } else { 2 };
            let groups = self.cols.div_ceil(group) as usize;
            cut(&mut out, scales, groups, self.rows, range, (rows_a_word, 1));
        }
        if packing.is_sparse() {
            let blocks = self.cols.div_ceil(BLOCK) as usize;
            let shared = packing.rows_of_positions();
            cut(&mut out, positions, blocks, self.rows, range, (shared, 1));
        }
        out
    }
}

/// Appends the rows of a range of each of `count` columns, where a unit is `words` words that
/// `unit_rows` rows share.
fn cut(
    out: &mut Vec<u32>,
    from: &[u32],
    count: usize,
    rows: u32,
    range: &Range<u32>,
    (unit_rows, words): (u32, usize),
) {
    let column = rows.div_ceil(unit_rows) as usize * words;
    let first = (range.start / unit_rows) as usize * words;
    let last = range.end.div_ceil(unit_rows) as usize * words;
    for column in from.chunks(column.max(1)).take(count) {
        out.extend_from_slice(&column[first..last]);
    }
}

#[cfg(test)]
mod tests {
    use rand::SeedableRng;

    use super::super::pack;
    use super::*;
    use crate::util::{SeededRng, uniform_vec};

    /// The words of a shard are those that packing its rows alone makes.
    #[test]
    fn rows_taken_are_rows_packed() {
        let mut rng = SeededRng::seed_from_u64(3);
        let (rows, cols) = (99_u32, 70_u32);
        let data = uniform_vec(&mut rng, (rows * cols) as usize, -1.0, 1.0);
        let packings = Packing::all().map(Packing::format);
        for format in [Format::F32, Format::F16, Format::Bf16].into_iter().chain(packings) {
            let whole = pack(format, rows, cols, &data);
            for range in [0..32, 32..96, 64..99, 0..99, 96..96] {
                let some = &data[(range.start * cols) as usize..(range.end * cols) as usize];
                let want = pack(format, range.end - range.start, cols, some);
                let got = whole.take_rows(range.clone());
                if range.is_empty() {
                    assert_eq!(got.rows, 0);
                    continue;
                }
                assert_eq!(got, want, "{} {range:?}", format.name());
            }
        }
    }
}
