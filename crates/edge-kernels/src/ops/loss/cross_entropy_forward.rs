//! Softmax cross entropy, forward: row statistics, merged over chunks of the vocabulary.
//!
//! stats\[r\] = (max_c z\[r,c\], sum_c exp(z\[r,c\] - max), z\[r,targets\[r\]\]),
//! z = scale · logits
//!
//! | tensor  | shape         | dtype | role |
//! |---------|---------------|-------|------|
//! | logits  | [rows, ld]    | f32   | in, columns 0..cols are vocabulary ids col0..col0+cols |
//! | targets | \[tokens\]    | u32   | in, [`IGNORE`](super::IGNORE) where a row does not count |
//! | stats   | [tokens, 3]   | f32   | out; also in, unless `first` |
//!
//! `scale` is 1, or one over a temperature. Row `r` is token `row0 + r`. The third value is 0 until
//! a chunk holds the target, and stays 0 in ignored rows. Merging two chunks is the online softmax
//! of Milakov and Gimelshein (2018).
//!
//! How: one workgroup a row; maximum and sum in one pass, by lane and then over the workgroup.
//! Accuracy: sums of terms in (0, 1], all of one sign, in f32; the reference sums in f64.
//! Cost: bound by bandwidth, one read of the logits.

use crate::util::SeededRng;
use rayon::prelude::*;

use super::{by_lanes, case_logits, case_stats, case_targets, reduce_variants};
use crate::op::{
    Binding, Call, Case, CaseBuffer, Dispatch, Field, HostBuffer, Op, Tolerance, Variant, Work,
    read, read_write,
};
use crate::util::fold_grid;

/// See the module.
pub struct CrossEntropyForward;

crate::params! {
    /// Parameters of `cross_entropy_forward`.
    pub struct Params {
        /// Rows (tokens) in this chunk.
        rows: u32,
        /// Columns (vocabulary ids) in this chunk.
        cols: u32,
        /// Elements from one row of the chunk to the next, at least `cols`.
        ld: u32,
        /// Token of the first row, in `targets` and `stats`.
        row0: u32,
        /// Vocabulary id of the first column.
        col0: u32,
        /// 1: start the statistics; 0: merge into them.
        first: u32,
        /// Factor of the logits, above 0: one over the softmax's temperature.
        scale: f32,
    }
}

#[cfg(test)]
impl Params {
    /// Whole rows of a chunk, from token 0 on, as they are.
    pub(crate) fn plain(rows: u32, cols: u32, col0: u32, first: u32) -> Self {
        Self { rows, cols, ld: cols, row0: 0, col0, first, scale: 1.0 }
    }
}

/// Takes a chunk of logits into the row statistics.
pub fn dispatch<B>(params: Params, logits: B, targets: B, stats: B) -> Dispatch<B> {
    Dispatch::new(&CrossEntropyForward, Call::new(&params), vec![logits, targets, stats])
}

impl Op for CrossEntropyForward {
    fn name(&self) -> &'static str {
        "cross_entropy_forward"
    }

    fn shader(&self) -> &'static str {
        "loss/cross_entropy_forward.wgsl"
    }

    fn bindings(&self, _: &Call) -> Vec<Binding> {
        vec![read("logits"), read("targets"), read_write("stats")]
    }

    fn fields(&self) -> &'static [Field] {
        Params::FIELDS
    }

    fn variants(&self, call: &Call) -> Vec<Variant> {
        let p: Params = call.params();
        by_lanes(reduce_variants(p.cols), &[p.cols, p.ld])
    }

    fn grid(&self, call: &Call, _: &Variant) -> [u32; 3] {
        fold_grid(call.params::<Params>().rows)
    }

    fn reference(&self, call: &Call, buffers: &mut [HostBuffer<'_>]) {
        let p: Params = call.params();
        let [logits, targets, stats] = buffers else { unreachable!("three bindings") };
        let (row0, cols) = (p.row0 as usize, p.cols as usize);
        let stats = stats.f32_mut()[3 * row0..].par_chunks_mut(3);
        let rows = stats.zip(&targets.u32()[row0..]).zip(logits.f32().par_chunks(p.ld as usize));
        rows.take(p.rows as usize).for_each(|((stats, target), row)| {
            let row = &row[..cols];
            let mut max = p.scale * row.iter().copied().fold(f32::MIN, f32::max);
            let mut sum: f64 = row.iter().map(|&z| f64::from((p.scale * z - max).exp())).sum();
            let mut target_logit = 0.0;
            if p.first == 0 {
                let merged = max.max(stats[0]);
                sum = f64::from(stats[1]) * f64::from(stats[0] - merged).exp()
                    + sum * f64::from(max - merged).exp();
                max = merged;
                target_logit = stats[2];
            }
            if let Some(&z) = row.get(target.wrapping_sub(p.col0) as usize) {
                target_logit = p.scale * z;
            }
            stats.copy_from_slice(&[max, sum as f32, target_logit]);
        });
    }

    fn cases(&self) -> Vec<Case> {
        let scaled = |name: &str, scale, rows, cols, ld, row0, col0, first| {
            let params = Params { rows, cols, ld, row0, col0, first, scale };
            Case::new(name, Call::new(&params))
        };
        let chunk = |name: &str, rows, cols, ld, row0, col0, first| {
            scaled(name, 1.0, rows, cols, ld, row0, col0, first)
        };
        let (rows, cols) = (256, 8192);
        let bench = Params { rows, cols, ld: cols, row0: 0, col0: 0, first: 1, scale: 1.0 };
        vec![
            chunk("1x1", 1, 1, 1, 0, 0, 1),
            chunk("7x3", 7, 3, 3, 0, 0, 1),
            chunk("11x257", 11, 257, 257, 0, 0, 1),
            chunk("33x1000", 33, 1000, 1000, 0, 0, 1),
            chunk("merge_13x67_of_80", 13, 67, 80, 5, 100, 0),
            chunk("merge_9x132_of_140", 9, 132, 140, 2, 37, 0),
            chunk("first_6x31_of_32", 6, 31, 32, 3, 0, 1),
            chunk("merge_1x2053", 1, 2053, 2053, 0, 4096, 0),
            scaled("hot_11x257", 0.62, 11, 257, 257, 0, 0, 1),
            scaled("cold_merge_9x132_of_140", 1.6, 9, 132, 140, 2, 37, 0),
            Case::bench("tinyllama_256x8192", Call::new(&bench)),
        ]
    }

    fn buffers(&self, call: &Call, rng: &mut SeededRng) -> Vec<CaseBuffer> {
        let p: Params = call.params();
        let tokens = p.row0 + p.rows;
        let logits = case_logits(rng, p.rows, p.cols, p.ld);
        let targets = case_targets(rng, tokens, p.col0 + p.cols);
        let whole = p.first == 1 && p.row0 == 0;
        let stats = if whole {
            CaseBuffer::Output(3 * tokens as usize)
        } else {
            // Those of an earlier chunk: of the same rows, other logits.
            let earlier = case_logits(rng, p.rows, p.cols, p.ld);
            CaseBuffer::F32(case_stats(&earlier, p.cols, p.ld, p.row0, tokens))
        };
        vec![CaseBuffer::F32(logits), CaseBuffer::U32(targets), stats]
    }

    fn work(&self, call: &Call) -> Work {
        let p: Params = call.params();
        let count = u64::from(p.rows) * u64::from(p.cols);
        let stats = u64::from(p.rows) * if p.first == 1 { 3 } else { 6 };
        Work { bytes: 4 * (count + stats + u64::from(p.rows)), flops: 5 * count }
    }

    fn tolerance(&self, _: &Call) -> Tolerance {
        Tolerance {
            abs: 1e-6,
            rel: 1e-5,
            why: "f32 sums of exponentials, each within 3 + 2|x| units in the last place",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::{assert_close, check_op, floats, run, words};
    use super::super::{IGNORE, case_targets, cross_entropy_loss};
    use super::*;
    use crate::util::uniform_vec;
    use rand::SeedableRng;

    #[test]
    fn shader_and_cases() {
        check_op(&CrossEntropyForward);
    }

    /// -log softmax(row)[target] in f64.
    fn naive(row: &[f32], target: u32) -> f64 {
        let max = row.iter().copied().fold(f32::MIN, f32::max);
        let sum: f64 = row.iter().map(|&z| (f64::from(z) - f64::from(max)).exp()).sum();
        sum.ln() + f64::from(max) - f64::from(row[target as usize])
    }

    /// Columns `range` of every row, as a chunk whose rows are 3 elements longer than needed.
    fn chunk(logits: &[f32], vocabulary: usize, range: std::ops::Range<usize>) -> Vec<u32> {
        let mut out = Vec::new();
        for row in logits.chunks(vocabulary) {
            out.extend(words(&row[range.clone()]));
            out.extend(words(&[f32::NAN; 3]));
        }
        out
    }

    #[test]
    fn chunks_agree_with_log_softmax() {
        let (tokens, vocabulary) = (23_u32, 101_u32);
        let mut rng = SeededRng::seed_from_u64(11);
        let logits = case_logits(&mut rng, tokens, vocabulary, vocabulary);
        let targets = case_targets(&mut rng, tokens, vocabulary);
        let rows = logits.chunks(vocabulary as usize).zip(&targets);
        let counted: Vec<f64> =
            rows.filter(|(_, t)| **t != IGNORE).map(|(row, &t)| naive(row, t)).collect();
        assert!(counted.len() > 10 && counted.len() < tokens as usize);
        for cuts in [&[0, 101][..], &[0, 40, 101], &[0, 1, 64, 101]] {
            let mut stats = words(&vec![f32::NAN; 3 * tokens as usize]);
            for (i, pair) in cuts.windows(2).enumerate() {
                // Tokens also come in two pieces.
                for (row0, rows) in [(0_u32, 9_u32), (9, 14)] {
                    let part =
                        &logits[(row0 * vocabulary) as usize..][..(rows * vocabulary) as usize];
                    let cols = (pair[1] - pair[0]) as u32;
                    let p = Params {
                        rows,
                        cols,
                        ld: cols + 3,
                        row0,
                        col0: pair[0] as u32,
                        first: u32::from(i == 0),
                        scale: 1.0,
                    };
                    let z = chunk(part, vocabulary as usize, pair[0]..pair[1]);
                    stats = run(dispatch(p, z, targets.clone(), stats)).pop().expect("stats");
                }
            }
            for (stats, (row, &t)) in floats(&stats).chunks(3).zip(logits.chunks(101).zip(&targets))
            {
                if t != IGNORE {
                    let loss = f64::from(stats[1]).ln() + f64::from(stats[0] - stats[2]);
                    assert_close(&[loss as f32], &[naive(row, t)], 1e-6, 1e-6);
                }
            }
            let p = cross_entropy_loss::Params { rows: tokens, accumulate: 0 };
            let out = cross_entropy_loss::dispatch(p, targets.clone(), stats, vec![0; 2]);
            let out = floats(&run(out)[2]);
            assert_close(&out, &[counted.iter().sum(), counted.len() as f64], 1e-6, 1e-6);
        }
    }

    #[test]
    fn ignored_rows_still_get_statistics() {
        let logits = uniform_vec(&mut SeededRng::seed_from_u64(3), 8, -1.0, 1.0);
        let p = Params::plain(1, 8, 0, 1);
        let stats = words(&[f32::NAN; 3]);
        let stats = floats(&run(dispatch(p, words(&logits), vec![IGNORE], stats))[2]);
        assert_eq!(stats[0], logits.iter().copied().fold(f32::MIN, f32::max));
        assert!(stats[1] > 1.0 && stats[2] == 0.0);
    }
}
