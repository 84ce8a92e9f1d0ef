//! Vote of several exits: takes one exit's distribution into a chunk of scores.
//!
//! p = weight · exp(z\[r,c\] - max) / sum;  acc\[r,c\] = p for the first exit, then
//! max(acc\[r,c\], p) or acc\[r,c\] + p
//!
//! | tensor | shape       | dtype | role |
//! |--------|-------------|-------|------|
//! | logits | [rows, ld]  | f32   | in, columns 0..cols |
//! | stats  | [tokens, 3] | f32   | in: this exit's max and sum over the whole vocabulary |
//! | acc    | [rows, ld]  | f32   | out; also in, unless `first` |
//!
//! Row `r` is token `row0 + r`. With weights 1 and [`MAX`] this is the element-wise maximum of
//! Edge-LLM's voting (Yu et al., 2024); with [`SUM`] a mixture. `vote_reduce` renormalises.
//!
//! How: one workgroup a row.
//! Accuracy: that of `exp`; probabilities below the smallest normal number may become 0.
//! Cost: bound by bandwidth.

use crate::util::SeededRng;
use rayon::prelude::*;

use super::{case_logits, case_stats, map_variants};
use crate::op::{
    Binding, Call, Case, CaseBuffer, Dispatch, Field, HostBuffer, Op, Tolerance, Variant, Work,
    read, read_write,
};
use crate::util::{fold_grid, uniform_f32};

/// `mode`: element-wise maximum.
pub const MAX: u32 = 0;

/// `mode`: weighted sum.
pub const SUM: u32 = 1;

/// See the module.
pub struct VoteCombine;

crate::params! {
    /// Parameters of `vote_combine`.
    pub struct Params {
        /// Rows (tokens) in this chunk.
        rows: u32,
        /// Columns (vocabulary ids) in this chunk.
        cols: u32,
        /// Elements from one row of the chunk to the next, at least `cols`.
        ld: u32,
        /// Token of the first row, in `stats`.
        row0: u32,
        /// [`MAX`] or [`SUM`].
        mode: u32,
        /// 1: overwrite `acc`; 0: combine with it.
        first: u32,
        /// Factor of this exit's probabilities, not negative.
        weight: f32,
    }
}

/// Combines an exit's probabilities with `acc`.
pub fn dispatch<B>(params: Params, logits: B, stats: B, acc: B) -> Dispatch<B> {
    Dispatch::new(&VoteCombine, Call::new(&params), vec![logits, stats, acc])
}

impl Op for VoteCombine {
    fn name(&self) -> &'static str {
        "vote_combine"
    }

    fn shader(&self) -> &'static str {
        "loss/vote_combine.wgsl"
    }

    fn bindings(&self, _: &Call) -> Vec<Binding> {
        vec![read("logits"), read("stats"), read_write("acc")]
    }

    fn fields(&self) -> &'static [Field] {
        Params::FIELDS
    }

    fn variants(&self, call: &Call) -> Vec<Variant> {
        map_variants(call.params::<Params>().cols)
    }

    fn grid(&self, call: &Call, _: &Variant) -> [u32; 3] {
        fold_grid(call.params::<Params>().rows)
    }

    fn reference(&self, call: &Call, buffers: &mut [HostBuffer<'_>]) {
        let p: Params = call.params();
        let [logits, stats, acc] = buffers else { unreachable!("three bindings") };
        let (ld, cols) = (p.ld as usize, p.cols as usize);
        let stats = stats.f32()[3 * p.row0 as usize..].par_chunks(3);
        let rows = acc.f32_mut().par_chunks_mut(ld).zip(logits.f32().par_chunks(ld)).zip(stats);
        rows.take(p.rows as usize).for_each(|((acc, row), stats)| {
            let factor = p.weight / stats[1];
            for (acc, z) in acc[..cols].iter_mut().zip(row) {
                let share = factor * (z - stats[0]).exp();
                *acc = match (p.first, p.mode) {
                    (1, _) => share,
                    (_, SUM) => *acc + share,
                    _ => acc.max(share),
                };
            }
        });
    }

    fn cases(&self) -> Vec<Case> {
        let chunk = |name: &str, rows, cols, ld, row0, mode, first, weight| {
            Case::new(name, Call::new(&Params { rows, cols, ld, row0, mode, first, weight }))
        };
        let bench =
            Params { rows: 256, cols: 8192, ld: 8192, row0: 0, mode: MAX, first: 0, weight: 1.0 };
        vec![
            chunk("first_1x1", 1, 1, 1, 0, MAX, 1, 1.0),
            chunk("first_11x257", 11, 257, 257, 0, SUM, 1, 0.3),
            chunk("max_7x67_of_80", 7, 67, 80, 5, MAX, 0, 1.0),
            chunk("sum_13x63", 13, 63, 63, 2, SUM, 0, 0.25),
            chunk("max_33x1000", 33, 1000, 1000, 0, MAX, 0, 0.5),
            Case::bench("tinyllama_256x8192", Call::new(&bench)),
        ]
    }

    fn buffers(&self, call: &Call, rng: &mut SeededRng) -> Vec<CaseBuffer> {
        let p: Params = call.params();
        let logits = case_logits(rng, p.rows, p.cols, p.ld);
        let stats = case_stats(&logits, p.cols, p.ld, p.row0, p.row0 + p.rows);
        let count = (p.rows * p.ld) as usize;
        let acc = if p.first == 1 && p.ld == p.cols {
            CaseBuffer::Output(count)
        } else {
            uniform_f32(rng, count, 0.0, 0.02)
        };
        vec![CaseBuffer::F32(logits), CaseBuffer::F32(stats), acc]
    }

    fn work(&self, call: &Call) -> Work {
        let p: Params = call.params();
        let count = u64::from(p.rows) * u64::from(p.cols);
        let passes = if p.first == 1 { 2 } else { 3 };
        Work { bytes: 4 * (passes * count + 2 * u64::from(p.rows)), flops: 4 * count }
    }

    fn tolerance(&self, _: &Call) -> Tolerance {
        Tolerance { abs: 1e-7, rel: 1e-5, why: "exp within 3 + 2|x| units in the last place" }
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::check_op;
    use super::*;

    #[test]
    fn shader_and_cases() {
        check_op(&VoteCombine);
    }
}
