//! Some rows of a packed matrix, in the words that a matrix of these rows alone has.

use edge_kernels::pack::PackedHost;
use edge_kernels::packing::BLOCK;
use edge_scheduler::Shard;

/// Cuts rows out of a packed matrix. The shard begins at a multiple of 64 rows, so that no word is
/// shared with other rows; it has 64 rows or more, or ends with the matrix.
pub(super) fn rows(matrix: &PackedHost, shard: Shard) -> PackedHost {
    if shard.row0 == 0 && shard.rows == matrix.rows {
        return matrix.clone();
    }
    let (format, cols) = (matrix.format, matrix.cols);
    let mut part = PackedHost { format, rows: shard.rows, cols, values: vec![], scales: vec![] };
    let Some(packing) = format.packing() else {
        let width = matrix.values.len() / matrix.rows as usize;
        let start = shard.row0 as usize * width;
        part.values = matrix.values[start..start + shard.rows as usize * width].to_vec();
        return part;
    };
    let blocks = cols.div_ceil(BLOCK) as usize;
    let cutter = Cutter { rows: matrix.rows, shard };
    let width = packing.block_words() as usize;
    cutter.cut(&matrix.values, 0, blocks, (width, 1), &mut part.values);
    if packing.bits() == 3 {
        let first = matrix.rows as usize * blocks * width;
        // A bit of each of 32 values is a word; 16 values take half of one.
        let rows_of_word = if packing.is_sparse() { 2 } else { 1 };
        cutter.cut(&matrix.values, first, blocks, (1, rows_of_word), &mut part.values);
        part.values.resize(format.value_words(shard.rows, cols) as usize, 0);
    }
    if let Some(group) = packing.group() {
        let rows_of_word = if packing.has_zero_point() { 1 } else { 2 };
        let groups = cols.div_ceil(group) as usize;
        cutter.cut(&matrix.scales, 0, groups, (1, rows_of_word), &mut part.scales);
    }
    if packing.is_sparse() {
        let first = packing.position_offset(matrix.rows, cols) as usize;
        let rows_of_word = packing.rows_of_positions();
        cutter.cut(&matrix.scales, first, blocks, (1, rows_of_word), &mut part.scales);
    }
    part
}

struct Cutter {
    rows: u32,
    shard: Shard,
}

impl Cutter {
    /// Cuts `[count][rows / rows_of_word][words]`, which begins at word `first`.
    fn cut(
        &self,
        from: &[u32],
        first: usize,
        count: usize,
        (words, rows_of_word): (usize, u32),
        to: &mut Vec<u32>,
    ) {
        let stride = self.rows.div_ceil(rows_of_word) as usize * words;
        let start = (self.shard.row0 / rows_of_word) as usize * words;
        let len = self.shard.rows.div_ceil(rows_of_word) as usize * words;
        for index in 0..count {
            let at = first + index * stride + start;
            to.extend_from_slice(&from[at..at + len]);
        }
    }
}

#[cfg(test)]
mod tests {
    use edge_kernels::pack::pack;
    use edge_kernels::util::{SeededRng, uniform_vec};
    use edge_kernels::{Format, Packing};
    use rand::SeedableRng;

    use super::*;

    #[test]
    fn cut_rows_equal_rows_packed_alone() {
        let (n, k) = (167u32, 70u32);
        let data = uniform_vec(&mut SeededRng::seed_from_u64(2), (n * k) as usize, -1.0, 1.0);
        let dense = [Format::F32, Format::F16, Format::Bf16];
        for format in dense.into_iter().chain(Packing::all().map(Packing::format)) {
            let whole = pack(format, n, k, &data);
            for (row0, count) in [(0, 64), (64, 64), (64, 103), (128, 39), (0, 167)] {
                let part = &data[(row0 * k) as usize..((row0 + count) * k) as usize];
                let want = pack(format, count, k, part);
                assert_eq!(rows(&whole, Shard { row0, rows: count }), want, "{}", format.name());
            }
        }
    }
}
