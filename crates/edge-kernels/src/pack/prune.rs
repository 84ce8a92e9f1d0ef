//! Which weights 2:4 sparsity keeps. The largest ones where nothing else says which.

use rayon::prelude::*;

use crate::packing::{BLOCK, Packing, Sparsity};

/// Columns of which two are kept.
const FOUR: usize = 4;

/// The mask `[rows, cols]` of the weights that a sparsity keeps by magnitude: of each four columns
/// the two with the largest magnitude, or the largest sum of magnitudes over the rows that share
/// their positions; of equal ones the first. All of them if it is dense. NaN counts as 0.
///
/// # Panics
/// When `data` has not `rows * cols` elements.
pub fn magnitude_mask(sparsity: Sparsity, rows: u32, cols: u32, data: &[f32]) -> Vec<bool> {
    assert_eq!(data.len() as u64, u64::from(rows) * u64::from(cols), "size of the matrix");
    if sparsity == Sparsity::Dense || data.is_empty() {
        return vec![true; data.len()];
    }
    let packing = Packing::new(16).sparsity(sparsity);
    let (shared, cols) = (packing.rows_of_positions() as usize, cols as usize);
    let mut mask = vec![false; data.len()];
    let strips = mask.par_chunks_mut(shared * cols).zip(data.par_chunks(shared * cols));
    strips.for_each(|(mask, data)| {
        for first in (0..cols).step_by(FOUR) {
            let last = (first + FOUR).min(cols);
            let score = |column: usize| -> f64 {
                let column = data.iter().skip(column).step_by(cols);
                // Not `sum`: of nothing it is -0, which the order below puts under 0.
                column.filter(|x| !x.is_nan()).fold(0.0, |sum, x| sum + f64::from(x.abs()))
            };
            let mut scores = [f64::NEG_INFINITY; FOUR];
            for (score_of, column) in scores.iter_mut().zip(first..last) {
                *score_of = score(column);
            }
            for column in largest_two(&scores).into_iter().filter(|c| first + c < last) {
                mask.iter_mut().skip(first + column).step_by(cols).for_each(|kept| *kept = true);
            }
        }
    });
    mask
}

/// Places of the two largest scores, in ascending order; of equal ones the first. They are what
/// 2:4 sparsity keeps of four columns; one that is not there scores negative infinity.
pub fn largest_two(scores: &[f64; FOUR]) -> [usize; 2] {
    let mut order = [0, 1, 2, 3];
    order.sort_by(|&a, &b| scores[b].total_cmp(&scores[a]));
    let [a, b, ..] = order;
    [a.min(b), a.max(b)]
}

/// Positions of what a mask keeps, `[K/32][rows that share them]`, as they are stored. Where it
/// keeps fewer than two of four columns, the first other ones fill up.
///
/// # Panics
/// When it keeps more than two of four columns in rows that share their positions.
pub(super) fn positions(packing: Packing, [rows, cols]: [usize; 2], mask: &[bool]) -> Vec<u32> {
    let shared = packing.rows_of_positions() as usize;
    let groups = rows.div_ceil(shared);
    let mut out = vec![0; groups * cols.div_ceil(BLOCK as usize)];
    if out.is_empty() {
        return out;
    }
    out.par_chunks_mut(groups).enumerate().for_each(|(block, out)| {
        for (group, word) in out.iter_mut().enumerate() {
            let rows = group * shared..rows.min((group + 1) * shared);
            for four in 0..BLOCK as usize / FOUR {
                let first = block * BLOCK as usize + four * FOUR;
                let kept = |i: &usize| {
                    let column = first + i;
                    column < cols && rows.clone().any(|row| mask[row * cols + column])
                };
                let wanted: Vec<usize> = (0..FOUR).filter(kept).collect();
                assert!(
                    wanted.len() <= 2,
                    "rows {rows:?}, columns from {first}: the mask keeps {} of four columns",
                    wanted.len()
                );
                let others = (0..FOUR).filter(|i| !wanted.contains(i));
                let mut two: Vec<usize> = wanted.iter().copied().chain(others).take(2).collect();
                two.sort_unstable();
                *word |= ((two[0] | two[1] << 2) as u32) << (4 * four);
            }
        }
    });
    out
}

/// Columns of a block that are stored, in order: `kept[v]` is that of stored value `v`.
pub(super) fn kept_columns(positions: u32) -> [usize; BLOCK as usize / 2] {
    std::array::from_fn(|v| {
        let two = positions >> (4 * (v / 2));
        v / 2 * FOUR + (two >> (2 * (v % 2)) & 3) as usize
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const PAIRS: Packing = Packing::new(16).sparsity(Sparsity::TwoFour);
    const GROUPED: Packing = Packing::new(16).sparsity(Sparsity::RowGrouped);

    #[test]
    fn nan_ties_with_zero_and_the_first_is_kept() {
        let mask = magnitude_mask(Sparsity::TwoFour, 1, 4, &[f32::NAN, 0.0, 0.0, f32::NAN]);
        assert_eq!(mask, [true, true, false, false]);
    }

    #[test]
    fn the_largest_of_four_are_kept() {
        let row = [1.0, -3.0, 2.0, 0.5, 0.0, 0.0, 0.0, 0.0, 5.0, f32::NAN, -6.0];
        let mask = magnitude_mask(Sparsity::TwoFour, 1, 11, &row);
        let kept: Vec<usize> = (0..11).filter(|&i| mask[i]).collect();
        assert_eq!(kept, [1, 2, 4, 5, 8, 10]);
        assert_eq!(positions(PAIRS, [1, 11], &mask), [0x4444_4849]);
        let columns = kept_columns(0x4444_4849);
        assert_eq!(columns[..8], [1, 2, 4, 5, 8, 10, 12, 13]);
    }

    #[test]
    fn rows_of_a_group_keep_what_is_largest_in_sum() {
        // Each row would keep its own two; in sum columns 0 and 3 win. Row 32 is another group.
        let mut data = vec![[3.0, 2.9, 0.0, 0.0]; 16];
        data.extend(vec![[3.0, 0.0, 0.0, 3.1]; 16]);
        data.push([0.0, 1.0, 1.0, 0.0]);
        let mask = magnitude_mask(Sparsity::RowGrouped, 33, 4, &data.concat());
        assert!(mask[..128].chunks(4).all(|four| four == [true, false, false, true]));
        assert_eq!(mask[128..], [false, true, true, false]);
        assert_eq!(positions(GROUPED, [33, 4], &mask), [0x4444_444C, 0x4444_4449]);
    }

    #[test]
    #[should_panic(expected = "rows 0..32, columns from 4: the mask keeps 3 of four columns")]
    fn a_mask_that_keeps_more_is_refused() {
        let mut mask = vec![false; 64 * 8];
        for (row, column) in [(0, 4), (1, 5), (31, 7)] {
            mask[row * 8 + column] = true;
        }
        positions(GROUPED, [64, 8], &mask);
    }
}
