//! 2:4 pruning by magnitude, in place.
//!
//! w\[n,c\] = 0 for two of each four consecutive columns: those with the smaller
//! Σ_n |w\[n,c\]| over `together` consecutive rows (Zhou et al. 2021, arXiv 2102.04010, with
//! `together` 1). Of equal ones the first are kept. NaN counts as 0 and is kept or not like a 0.
//! Three or fewer columns at the end of a row keep two.
//!
//! | tensor | shape        | dtype | role |
//! |--------|--------------|-------|------|
//! | w      | [rows, cols] | f32   | in and out |
//!
//! What is promised: with `together` 1 the choice of every device is that of the host. Sums over
//! rows are in f32, in the order of the rows, so that columns whose sums differ by less than about
//! `together` · 6e-8 of them may change places.
//!
//! How: one invocation four columns of `together` rows.
//! Accuracy: exact where the sums are.
//! Cost: bound by bandwidth; with `together` 1 neighbouring invocations read neighbouring words.

use crate::util::SeededRng;
use rand::RngExt;
use rayon::prelude::*;

use crate::op::{
    Binding, Call, Case, CaseBuffer, Dispatch, Field, HostBuffer, Op, Tolerance, Variant, Work,
    read_write,
};
use crate::util::fold_grid;

/// Invocations of a workgroup.
const WG: u32 = 64;

/// Columns of which two are kept.
const FOUR: usize = 4;

/// See the module.
pub struct Prune24;

crate::params! {
    /// Parameters of `prune_2_4`.
    pub struct Params {
        /// Output channels.
        rows: u32,
        /// Input channels.
        cols: u32,
        /// Consecutive rows that keep the same columns, at least 1.
        together: u32,
    }
}

/// Prunes `w`.
pub fn dispatch<B>(params: Params, w: B) -> Dispatch<B> {
    Dispatch::new(&Prune24, Call::new(&params), vec![w])
}

impl Op for Prune24 {
    fn name(&self) -> &'static str {
        "prune_2_4"
    }

    fn shader(&self) -> &'static str {
        "pack/prune_2_4.wgsl"
    }

    fn bindings(&self, _: &Call) -> Vec<Binding> {
        vec![read_write("w")]
    }

    fn fields(&self) -> &'static [Field] {
        Params::FIELDS
    }

    fn variants(&self, _: &Call) -> Vec<Variant> {
        vec![Variant::plain()]
    }

    fn grid(&self, call: &Call, _: &Variant) -> [u32; 3] {
        let p: Params = call.params();
        let invocations = p.rows.div_ceil(p.together) * p.cols.div_ceil(FOUR as u32);
        fold_grid(invocations.div_ceil(WG))
    }

    fn reference(&self, call: &Call, buffers: &mut [HostBuffer<'_>]) {
        let p: Params = call.params();
        let [w] = buffers else { unreachable!("one binding") };
        let (cols, together) = (p.cols as usize, p.together as usize);
        let count = p.rows as usize * cols;
        w.f32_mut()[..count].par_chunks_mut(together * cols).for_each(|rows| {
            for first in (0..cols).step_by(FOUR) {
                let score = |column: usize| -> f64 {
                    let column = rows.iter().skip(column).step_by(cols);
                    let sizes = column.filter(|x| !x.is_nan()).map(|x| f64::from(x.abs()));
                    // Not `sum`, which is -0.0 where all are NaN.
                    sizes.fold(0.0, |sum, x| sum + x)
                };
                let mut order: Vec<(usize, f64)> =
                    (first..cols.min(first + FOUR)).map(|c| (c, score(c))).collect();
                // Stable: of equal scores the first stay in front.
                order.sort_by(|a, b| b.1.total_cmp(&a.1));
                for &(column, _) in order.iter().skip(2) {
                    rows.iter_mut().skip(column).step_by(cols).for_each(|x| *x = 0.0);
                }
            }
        });
    }

    fn cases(&self) -> Vec<Case> {
        let call = |rows, cols, together| Call::new(&Params { rows, cols, together });
        let mut cases = Vec::new();
        for (rows, cols, together) in
            [(1, 1, 1), (3, 31, 1), (5, 66, 1), (17, 128, 1), (37, 31, 32), (9, 64, 4), (2, 7, 32)]
        {
            let name = format!("{rows}x{cols}_by_{together}");
            cases.push(Case::new(name, call(rows, cols, together)));
        }
        cases.push(Case::bench("2048x2048_by_32", call(2048, 2048, 32)));
        cases
    }

    /// Few levels, so that there are ties and sums are exact; one row at a time also NaN,
    /// infinities, and subnormals.
    fn buffers(&self, call: &Call, rng: &mut SeededRng) -> Vec<CaseBuffer> {
        let p: Params = call.params();
        let count = (p.rows * p.cols) as usize;
        let special = [f32::NAN, f32::INFINITY, f32::NEG_INFINITY, 1e-40, -2e-40, -0.0];
        let mut element = || match rng.random_range(0..12_usize) {
            i if i < special.len() && p.together == 1 => special[i],
            _ => rng.random_range(-40..=40_i32) as f32 / 8.0,
        };
        let data: Vec<u32> = (0..count).map(|_| element().to_bits()).collect();
        vec![CaseBuffer::U32(data)]
    }

    fn work(&self, call: &Call) -> Work {
        let p: Params = call.params();
        let count = u64::from(p.rows) * u64::from(p.cols);
        Work { bytes: 6 * count, flops: count }
    }

    fn tolerance(&self, _: &Call) -> Tolerance {
        Tolerance { abs: 0.0, rel: 0.0, why: "words, compared exactly" }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::loss::testing::{check_op, floats, run, words};

    #[test]
    fn shader_and_cases() {
        check_op(&Prune24);
    }

    #[test]
    fn the_two_largest_of_four_are_kept() {
        let prune = |rows, cols, together, w: &[f32]| {
            floats(&run(dispatch(Params { rows, cols, together }, words(w)))[0])
        };
        assert_eq!(prune(1, 5, 1, &[1.0, -3.0, 2.0, 0.5, 9.0]), [0.0, -3.0, 2.0, 0.0, 9.0]);
        // Ties go to the first; a short end keeps two; NaN is as small as 0.
        assert_eq!(prune(1, 4, 1, &[1.0, -1.0, 1.0, 1.0]), [1.0, -1.0, 0.0, 0.0]);
        assert_eq!(prune(1, 3, 1, &[0.0, 2.0, 1.0]), [0.0, 2.0, 1.0]);
        assert_eq!(prune(1, 4, 1, &[f32::NAN, 2.0, 1.0, 0.0]), [0.0, 2.0, 1.0, 0.0]);
        let together = [4.0, 0.0, 3.0, 0.0, 0.0, 2.0, 0.0, 1.5];
        assert_eq!(prune(2, 4, 2, &together), [4.0, 0.0, 3.0, 0.0, 0.0, 0.0, 0.0, 0.0]);
        assert_eq!(prune(2, 4, 1, &together), together);
    }
}
