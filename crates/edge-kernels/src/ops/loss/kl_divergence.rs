//! Kullback-Leibler divergence of two softmaxes, over chunks of the vocabulary.
//!
//! kl\[r\] = sum_c p\[r,c\] · log(p\[r,c\] / q\[r,c\]), p of `reference` and q of `logits`, in nats
//!
//! | tensor          | shape       | dtype | role |
//! |-----------------|-------------|-------|------|
//! | reference       | [rows, ld]  | f32   | in, logits of p, some columns of the vocabulary |
//! | logits          | [rows, ld]  | f32   | in, logits of q, the same columns |
//! | reference_stats | [tokens, 3] | f32   | in: max and sum of p over the whole vocabulary |
//! | stats           | [tokens, 3] | f32   | in: max and sum of q |
//! | kl              | \[tokens\]  | f32   | out; also in, unless `first` |
//!
//! Row `r` is token `row0 + r`. What is summed is `p (d - 1 + exp(-d))` with `d = log p - log q`:
//! the same in all, because p and q both sum to 1, but no term is negative, and an error of `d`
//! that all columns share (that of the two log-sums) cancels to first order. The plain sum would
//! lose the divergence of two nearly equal distributions to rounding. Equal logits give exactly 0.
//!
//! How: one workgroup a row; a series for small `d`.
//! Accuracy: `d` is rounded at the size of the logits, which moves the sum by that times |p - q|.
//! Cost: bound by bandwidth, one read of both logits.

use rayon::prelude::*;

use super::{case_logits, case_stats, reduce_variants};
use crate::op::{
    Binding, Call, Case, CaseBuffer, Dispatch, Field, HostBuffer, Op, Tolerance, Variant, Work,
    read, read_write,
};
use crate::util::{SeededRng, fold_grid, uniform_vec};

/// See the module.
pub struct KlDivergence;

crate::params! {
    /// Parameters of `kl_divergence`.
    pub struct Params {
        /// Rows (tokens) in this chunk.
        rows: u32,
        /// Columns (vocabulary ids) in this chunk.
        cols: u32,
        /// Elements from one row of the chunks to the next, at least `cols`.
        ld: u32,
        /// Token of the first row, in the statistics and in `kl`.
        row0: u32,
        /// 1: start the sums; 0: add to them.
        first: u32,
    }
}

/// Takes a chunk of two logits into the divergence of each row; `[p, q]` each.
pub fn dispatch<B>(params: Params, logits: [B; 2], stats: [B; 2], kl: B) -> Dispatch<B> {
    let ([reference, logits], [reference_stats, stats]) = (logits, stats);
    let bindings = vec![reference, logits, reference_stats, stats, kl];
    Dispatch::new(&KlDivergence, Call::new(&params), bindings)
}

/// `p (d - 1 + exp(-d))`.
fn term(log_p: f64, log_q: f64) -> f64 {
    let d = log_p - log_q;
    if d < -8.0 {
        return log_p.exp() * (d - 1.0) + log_q.exp();
    }
    if d.abs() < 1e-3 {
        return log_p.exp() * d * d * (0.5 - d / 6.0 + d * d / 24.0);
    }
    log_p.exp() * (d + (-d).exp_m1())
}

impl Op for KlDivergence {
    fn name(&self) -> &'static str {
        "kl_divergence"
    }

    fn shader(&self) -> &'static str {
        "loss/kl_divergence.wgsl"
    }

    fn bindings(&self, _: &Call) -> Vec<Binding> {
        vec![
            read("reference"),
            read("logits"),
            read("reference_stats"),
            read("stats"),
            read_write("kl"),
        ]
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
        let [reference, logits, reference_stats, stats, kl] = buffers else {
            unreachable!("five bindings")
        };
        let (row0, cols, ld) = (p.row0 as usize, p.cols as usize, p.ld as usize);
        let (reference, logits) = (reference.f32(), logits.f32());
        let (reference_stats, stats) = (reference_stats.f32(), stats.f32());
        let max_and_log = |stats: &[f32], row: usize| {
            let at = 3 * (row0 + row);
            (f64::from(stats[at]), f64::from(stats[at + 1]).ln())
        };
        let rows = kl.f32_mut()[row0..].par_iter_mut().take(p.rows as usize).enumerate();
        rows.for_each(|(row, kl)| {
            let (p_max, p_log) = max_and_log(reference_stats, row);
            let (q_max, q_log) = max_and_log(stats, row);
            let pairs = reference[row * ld..][..cols].iter().zip(&logits[row * ld..]);
            let terms = pairs
                .map(|(&z, &w)| term(f64::from(z) - p_max - p_log, f64::from(w) - q_max - q_log));
            let sum: f64 = terms.sum();
            let before = if p.first == 1 { 0.0 } else { f64::from(*kl) };
            *kl = (before + sum) as f32;
        });
    }

    fn cases(&self) -> Vec<Case> {
        let chunk = |name: &str, rows, cols, ld, row0, first| {
            Case::new(name, Call::new(&Params { rows, cols, ld, row0, first }))
        };
        let bench = Params { rows: 256, cols: 8192, ld: 8192, row0: 0, first: 1 };
        vec![
            chunk("1x1", 1, 1, 1, 0, 1),
            chunk("7x3", 7, 3, 3, 0, 1),
            chunk("11x257", 11, 257, 257, 0, 1),
            chunk("33x1000", 33, 1000, 1000, 0, 1),
            chunk("add_13x67_of_80", 13, 67, 80, 5, 0),
            chunk("first_6x31_of_32", 6, 31, 32, 3, 1),
            chunk("add_1x2053", 1, 2053, 2053, 0, 0),
            Case::bench("tinyllama_256x8192", Call::new(&bench)),
        ]
    }

    fn buffers(&self, call: &Call, rng: &mut SeededRng) -> Vec<CaseBuffer> {
        let p: Params = call.params();
        let (tokens, ld) = (p.row0 + p.rows, p.ld as usize);
        let reference = case_logits(rng, p.rows, p.cols, p.ld);
        let mut logits = case_logits(rng, p.rows, p.cols, p.ld);
        // Of each four rows one is of other logits, one the same, two are near, by two distances.
        for (r, (row, other)) in logits.chunks_mut(ld).zip(reference.chunks(ld)).enumerate() {
            let noise = [0.0, 1e-2, 0.5][r % 4 % 3];
            if r % 4 < 3 {
                let change = uniform_vec(rng, ld, -noise - 1e-9, noise + 1e-9);
                let near = other.iter().zip(&change);
                row.iter_mut().zip(near).for_each(|(z, (other, change))| *z = other + change);
            }
        }
        let stats = [&reference, &logits]
            .map(|logits| CaseBuffer::F32(case_stats(logits, p.cols, p.ld, p.row0, tokens)));
        let kl = match p.first == 1 && p.row0 == 0 {
            true => CaseBuffer::Output(tokens as usize),
            false => CaseBuffer::F32(uniform_vec(rng, tokens as usize, 0.0, 1.0)),
        };
        let [reference_stats, stats] = stats;
        let [reference, logits] = [reference, logits].map(CaseBuffer::F32);
        vec![reference, logits, reference_stats, stats, kl]
    }

    fn work(&self, call: &Call) -> Work {
        let p: Params = call.params();
        let count = u64::from(p.rows) * u64::from(p.cols);
        let rows = u64::from(p.rows) * if p.first == 1 { 5 } else { 6 };
        Work { bytes: 4 * (2 * count + rows), flops: 10 * count }
    }

    fn tolerance(&self, _: &Call) -> Tolerance {
        Tolerance {
            abs: 1e-7,
            rel: 2e-5,
            why: "exp within 3 + 2|x| units in the last place; logarithms rounded at their size",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::cross_entropy_forward;
    use super::super::testing::{assert_close, check_op, floats, run, words};
    use super::*;
    use rand::SeedableRng;

    #[test]
    fn shader_and_cases() {
        check_op(&KlDivergence);
    }

    /// The plain sum of p log(p / q), in f64.
    fn naive(p: &[f32], q: &[f32]) -> f64 {
        let log_softmax = |row: &[f32]| -> Vec<f64> {
            let max = row.iter().copied().fold(f32::MIN, f32::max);
            let sum: f64 = row.iter().map(|&z| f64::from(z - max).exp()).sum();
            row.iter().map(|&z| f64::from(z - max) - sum.ln()).collect()
        };
        let pairs = log_softmax(p).into_iter().zip(log_softmax(q));
        pairs.map(|(p, q)| p.exp() * (p - q)).sum()
    }

    /// The divergences through the ops, the vocabulary cut at `cuts`.
    fn divergences(logits: [&[f32]; 2], rows: u32, cuts: &[usize]) -> Vec<f32> {
        let vocabulary = *cuts.last().expect("cuts");
        let chunk = |logits: &[f32], pair: &[usize]| -> Vec<u32> {
            logits.chunks(vocabulary).flat_map(|row| words(&row[pair[0]..pair[1]])).collect()
        };
        let stats = logits.map(|logits| {
            let mut stats = vec![0; 3 * rows as usize];
            for pair in cuts.windows(2) {
                let (col0, cols) = (pair[0] as u32, (pair[1] - pair[0]) as u32);
                let first = u32::from(col0 == 0);
                let p = cross_entropy_forward::Params::plain(rows, cols, col0, first);
                let targets = vec![0; rows as usize];
                let z = chunk(logits, pair);
                let call = cross_entropy_forward::dispatch(p, z, targets, stats);
                stats = run(call).pop().expect("stats");
            }
            stats
        });
        let mut kl = vec![f32::NAN.to_bits(); rows as usize];
        for pair in cuts.windows(2) {
            let cols = (pair[1] - pair[0]) as u32;
            let p = Params { rows, cols, ld: cols, row0: 0, first: u32::from(pair[0] == 0) };
            let chunks = logits.map(|logits| chunk(logits, pair));
            kl = run(dispatch(p, chunks, stats.clone(), kl)).pop().expect("kl");
        }
        floats(&kl)
    }

    #[test]
    fn chunks_agree_with_the_plain_sum() {
        let (rows, vocabulary) = (12_u32, 101_usize);
        let mut rng = SeededRng::seed_from_u64(5);
        let p = uniform_vec(&mut rng, rows as usize * vocabulary, -6.0, 6.0);
        for (distance, rel) in [(0.0, 0.0), (1e-3, 1e-3), (0.3, 1e-5), (20.0, 1e-5)] {
            let change = uniform_vec(&mut rng, p.len(), -distance - 1e-9, distance + 1e-9);
            let near = |(z, change): (&f32, &f32)| if distance == 0.0 { *z } else { z + change };
            let q: Vec<f32> = p.iter().zip(&change).map(near).collect();
            let rows_of = || p.chunks(vocabulary).zip(q.chunks(vocabulary));
            let want: Vec<f64> = rows_of().map(|(p, q)| naive(p, q)).collect();
            for cuts in [&[0, 101][..], &[0, 40, 101], &[0, 1, 64, 101]] {
                let got = divergences([&p, &q], rows, cuts);
                assert!(got.iter().all(|kl| *kl >= 0.0));
                if distance == 0.0 {
                    assert!(got.iter().all(|kl| *kl == 0.0), "{got:?}");
                }
                assert_close(&got, &want, 1e-13, rel);
            }
        }
    }

    #[test]
    fn a_token_that_one_excludes_costs_what_the_other_gives_it() {
        // p is uniform over two, q sure of one of them: 0.5 log(0.5) + 0.5 (log 0.5 + 80).
        let (p, q) = ([0.0, 0.0, -90.0], [80.0, 0.0, -90.0]);
        let got = divergences([&p, &q], 1, &[0, 3]);
        assert_close(&got, &[0.5_f64.ln() + 40.0], 0.0, 1e-6);
        let got = divergences([&q, &p], 1, &[0, 3]);
        assert_close(&got, &[2.0_f64.ln()], 0.0, 1e-6);
    }
}
