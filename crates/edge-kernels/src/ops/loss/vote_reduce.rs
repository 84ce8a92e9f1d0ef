//! Vote of several exits: row statistics of the combined scores, over chunks of the vocabulary.
//!
//! stats\[r\] = (0, sum_c acc\[r,c\], log max(acc\[r,targets\[r\]\], floor)), so that
//! `cross_entropy_loss` gives -log P(target) with P(v) = acc\[v\] / sum_u acc\[u\].
//!
//! | tensor  | shape         | dtype | role |
//! |---------|---------------|-------|------|
//! | acc     | [rows, ld]    | f32   | in, columns 0..cols are vocabulary ids col0..col0+cols |
//! | targets | \[tokens\]    | u32   | in, [`IGNORE`](super::IGNORE) where a row does not count |
//! | stats   | [tokens, 3]   | f32   | out; also in, unless `first` |
//!
//! Row `r` is token `row0 + r`. The floor is [`PROBABILITY_FLOOR`]: a target to which no exit
//! gives any probability costs a large finite loss. The third value is 0 until a chunk holds the
//! target, and stays 0 in ignored rows.
//!
//! How: one workgroup a row.
//! Accuracy: a sum of non-negative terms, by lane and then over the workgroup, in f32.
//! Cost: bound by bandwidth.

use crate::util::SeededRng;
use rayon::prelude::*;

use super::{PROBABILITY_FLOOR, case_targets, reduce_variants};
use crate::op::{
    Binding, Call, Case, CaseBuffer, Dispatch, Field, HostBuffer, Op, Tolerance, Variant, Work,
    read, read_write,
};
use crate::util::{fold_grid, uniform_f32, uniform_vec};

/// See the module.
pub struct VoteReduce;

crate::params! {
    /// Parameters of `vote_reduce`.
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
        /// 1: start the statistics; 0: add to them.
        first: u32,
    }
}

/// Takes a chunk of combined scores into the row statistics.
pub fn dispatch<B>(params: Params, acc: B, targets: B, stats: B) -> Dispatch<B> {
    Dispatch::new(&VoteReduce, Call::new(&params), vec![acc, targets, stats])
}

impl Op for VoteReduce {
    fn name(&self) -> &'static str {
        "vote_reduce"
    }

    fn shader(&self) -> &'static str {
        "loss/vote_reduce.wgsl"
    }

    fn bindings(&self, _: &Call) -> Vec<Binding> {
        vec![read("acc"), read("targets"), read_write("stats")]
    }

    fn fields(&self) -> &'static [Field] {
        Params::FIELDS
    }

    fn variants(&self, call: &Call) -> Vec<Variant> {
        reduce_variants(call.params::<Params>().cols)
    }

    fn grid(&self, call: &Call, _: &Variant) -> [u32; 3] {
        fold_grid(call.params::<Params>().rows)
    }

    fn reference(&self, call: &Call, buffers: &mut [HostBuffer<'_>]) {
        let p: Params = call.params();
        let [acc, targets, stats] = buffers else { unreachable!("three bindings") };
        let (row0, cols) = (p.row0 as usize, p.cols as usize);
        let stats = stats.f32_mut()[3 * row0..].par_chunks_mut(3);
        let rows = stats.zip(&targets.u32()[row0..]).zip(acc.f32().par_chunks(p.ld as usize));
        rows.take(p.rows as usize).for_each(|((stats, target), row)| {
            let row = &row[..cols];
            let mut sum: f64 = row.iter().map(|&score| f64::from(score)).sum();
            let mut target_log = 0.0;
            if p.first == 0 {
                sum += f64::from(stats[1]);
                target_log = stats[2];
            }
            if let Some(score) = row.get(target.wrapping_sub(p.col0) as usize) {
                target_log = score.max(PROBABILITY_FLOOR).ln();
            }
            stats.copy_from_slice(&[0.0, sum as f32, target_log]);
        });
    }

    fn cases(&self) -> Vec<Case> {
        let chunk = |name: &str, rows, cols, ld, row0, col0, first| {
            Case::new(name, Call::new(&Params { rows, cols, ld, row0, col0, first }))
        };
        let bench = Params { rows: 256, cols: 8192, ld: 8192, row0: 0, col0: 0, first: 1 };
        vec![
            chunk("1x1", 1, 1, 1, 0, 0, 1),
            chunk("7x3", 7, 3, 3, 0, 0, 1),
            chunk("11x257", 11, 257, 257, 0, 0, 1),
            chunk("add_13x67_of_80", 13, 67, 80, 5, 100, 0),
            chunk("first_6x31_of_32", 6, 31, 32, 3, 0, 1),
            chunk("33x1000", 33, 1000, 1000, 0, 0, 1),
            Case::bench("tinyllama_256x8192", Call::new(&bench)),
        ]
    }

    fn buffers(&self, call: &Call, rng: &mut SeededRng) -> Vec<CaseBuffer> {
        let p: Params = call.params();
        let tokens = p.row0 + p.rows;
        let mut acc = uniform_vec(rng, (p.rows * p.ld) as usize, 0.0, 1.0);
        // Scores of real votes reach from 1 down to nothing at all.
        acc.iter_mut().for_each(|score| *score = if *score < 0.3 { 0.0 } else { score.powi(20) });
        let targets = case_targets(rng, tokens, p.col0 + p.cols);
        let stats = if p.first == 1 && p.row0 == 0 {
            CaseBuffer::Output(3 * tokens as usize)
        } else {
            uniform_f32(rng, 3 * tokens as usize, 0.1, 1.0)
        };
        vec![CaseBuffer::F32(acc), CaseBuffer::U32(targets), stats]
    }

    fn work(&self, call: &Call) -> Work {
        let p: Params = call.params();
        let count = u64::from(p.rows) * u64::from(p.cols);
        let stats = u64::from(p.rows) * if p.first == 1 { 3 } else { 5 };
        Work { bytes: 4 * (count + stats + u64::from(p.rows)), flops: count }
    }

    fn tolerance(&self, _: &Call) -> Tolerance {
        Tolerance { abs: 2e-6, rel: 2e-6, why: "f32 sums of one sign; log near 1 is absolute" }
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::{assert_close, check_op, floats, run, words};
    use super::super::{
        IGNORE, case_logits, case_stats, cross_entropy_forward, cross_entropy_loss, vote_combine,
    };
    use super::*;
    use rand::SeedableRng;

    #[test]
    fn shader_and_cases() {
        check_op(&VoteReduce);
    }

    /// Columns `range` of every row.
    fn chunk(logits: &[f32], vocabulary: usize, range: std::ops::Range<usize>) -> Vec<u32> {
        logits.chunks(vocabulary).flat_map(|row| words(&row[range.clone()])).collect()
    }

    /// P(v) of the vote for each token, in f64.
    fn naive(exits: &[Vec<f32>], weights: &[f32], mode: u32, vocabulary: usize) -> Vec<Vec<f64>> {
        let softmax = |row: &[f32]| -> Vec<f64> {
            let max = row.iter().copied().fold(f32::MIN, f32::max);
            let exps: Vec<f64> = row.iter().map(|&z| f64::from(z - max).exp()).collect();
            let sum: f64 = exps.iter().sum();
            exps.iter().map(|e| e / sum).collect()
        };
        let tokens = exits[0].len() / vocabulary;
        (0..tokens)
            .map(|t| {
                let mut scores = vec![0.0_f64; vocabulary];
                for (exit, &weight) in exits.iter().zip(weights) {
                    for (score, p) in
                        scores.iter_mut().zip(softmax(&exit[t * vocabulary..][..vocabulary]))
                    {
                        let p = f64::from(weight) * p;
                        *score = if mode == vote_combine::MAX { score.max(p) } else { *score + p };
                    }
                }
                let sum: f64 = scores.iter().sum();
                scores.iter().map(|score| score / sum).collect()
            })
            .collect()
    }

    /// The vote through the ops, its vocabulary cut at `cuts`: statistics of each token.
    fn vote(
        exits: &[Vec<f32>],
        weights: &[f32],
        mode: u32,
        targets: &[u32],
        cuts: &[usize],
    ) -> Vec<u32> {
        let vocabulary = *cuts.last().expect("cuts");
        let rows = targets.len() as u32;
        let mut voted = words(&vec![f32::NAN; 3 * targets.len()]);
        let mut stats = vec![words(&vec![f32::NAN; 3 * targets.len()]); exits.len()];
        for pair in cuts.windows(2) {
            let (col0, cols) = (pair[0] as u32, (pair[1] - pair[0]) as u32);
            let first = u32::from(col0 == 0);
            let p = cross_entropy_forward::Params::plain(rows, cols, col0, first);
            for (exit, stats) in exits.iter().zip(&mut stats) {
                let z = chunk(exit, vocabulary, pair[0]..pair[1]);
                let call = cross_entropy_forward::dispatch(p, z, targets.to_vec(), stats.clone());
                *stats = run(call).pop().expect("stats");
            }
        }
        for pair in cuts.windows(2) {
            let (col0, cols) = (pair[0] as u32, (pair[1] - pair[0]) as u32);
            let mut acc = words(&vec![f32::NAN; (rows * cols) as usize]);
            for (k, exit) in exits.iter().enumerate() {
                let (first, weight) = (u32::from(k == 0), weights[k]);
                let p = vote_combine::Params { rows, cols, ld: cols, row0: 0, mode, first, weight };
                let z = chunk(exit, vocabulary, pair[0]..pair[1]);
                acc = run(vote_combine::dispatch(p, z, stats[k].clone(), acc)).pop().expect("acc");
            }
            let first = u32::from(col0 == 0);
            let p = Params { rows, cols, ld: cols, row0: 0, col0, first };
            voted = run(dispatch(p, acc, targets.to_vec(), voted)).pop().expect("stats");
        }
        voted
    }

    #[test]
    fn three_exits_agree_with_the_definition() {
        let (tokens, vocabulary) = (17_u32, 53_u32);
        let mut rng = SeededRng::seed_from_u64(31);
        let exits: Vec<Vec<f32>> = (0..3)
            .map(|_| {
                let mut z = case_logits(&mut rng, tokens, vocabulary, vocabulary);
                // Off the floor, which has a test of its own.
                z.iter_mut().for_each(|z| *z = z.clamp(-30.0, 30.0));
                z
            })
            .collect();
        let targets = case_targets(&mut rng, tokens, vocabulary);
        for (mode, weights) in [(vote_combine::MAX, [1.0; 3]), (vote_combine::SUM, [0.2, 0.3, 0.5])]
        {
            let want = naive(&exits, &weights, mode, vocabulary as usize);
            let want: Vec<f64> = (targets.iter().zip(&want))
                .filter(|(t, _)| **t != IGNORE)
                .map(|(&t, p)| -p[t as usize].ln())
                .collect();
            for cuts in [&[0, 53][..], &[0, 20, 53], &[0, 1, 30, 53]] {
                let stats = vote(&exits, &weights, mode, &targets, cuts);
                let got: Vec<f32> = (targets.iter().zip(floats(&stats).chunks(3)))
                    .filter(|(t, _)| **t != IGNORE)
                    .map(|(_, s)| s[1].ln() + (s[0] - s[2]))
                    .collect();
                assert_close(&got, &want, 2e-6, 2e-6);
                let p = cross_entropy_loss::Params { rows: tokens, accumulate: 0 };
                let call = cross_entropy_loss::dispatch(p, targets.clone(), stats, vec![0, 0]);
                let loss = floats(&run(call)[2]);
                assert_close(&loss, &[want.iter().sum(), want.len() as f64], 1e-5, 1e-6);
            }
        }
    }

    #[test]
    fn a_target_without_probability_costs_a_finite_loss() {
        let logits = vec![1e4, -1e4, 0.0];
        assert_eq!(case_stats(&logits, 3, 3, 0, 1)[1], 1.0);
        let stats = floats(&vote(&[logits], &[1.0], vote_combine::MAX, &[1], &[0, 3]));
        assert_close(&stats, &[0.0, 1.0, f64::from(PROBABILITY_FLOOR).ln()], 0.0, 1e-6);
    }
}
