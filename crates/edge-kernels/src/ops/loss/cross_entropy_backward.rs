//! Softmax cross entropy, backward, in place on a chunk of logits.
//!
//! dlogits\[r,c\] = scale · (exp(z\[r,c\] - max) / sum - \[c = targets\[r\]\]), 0 in ignored rows
//!
//! | tensor  | shape         | dtype | role |
//! |---------|---------------|-------|------|
//! | logits  | [rows, ld]    | f32   | in, and dlogits out; columns are ids col0..col0+cols |
//! | targets | \[tokens\]    | u32   | in, [`IGNORE`] where a row does not count |
//! | stats   | [tokens, 3]   | f32   | in: max and sum over the whole vocabulary |
//!
//! Row `r` is token `row0 + r`; `scale` is the upstream gradient of the summed loss. The logits
//! are overwritten because a chunk of them is the largest tensor of a step.
//!
//! How: one workgroup a row.
//! Accuracy: that of `exp`, relative to the probability; -1 at the target is added in f32.
//! Cost: bound by bandwidth.

use crate::util::SeededRng;
use rayon::prelude::*;

use super::{IGNORE, by_lanes, case_logits, case_stats, case_targets, map_variants};
use crate::op::{
    Binding, Call, Case, CaseBuffer, Dispatch, Field, HostBuffer, Op, Tolerance, Variant, Work,
    read, read_write,
};
use crate::util::fold_grid;

/// See the module.
pub struct CrossEntropyBackward;

crate::params! {
    /// Parameters of `cross_entropy_backward`.
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
        /// Upstream gradient: 1 / counted rows for a mean loss.
        scale: f32,
    }
}

/// Overwrites a chunk of logits with the gradient of the loss.
pub fn dispatch<B>(params: Params, logits: B, targets: B, stats: B) -> Dispatch<B> {
    Dispatch::new(&CrossEntropyBackward, Call::new(&params), vec![logits, targets, stats])
}

impl Op for CrossEntropyBackward {
    fn name(&self) -> &'static str {
        "cross_entropy_backward"
    }

    fn shader(&self) -> &'static str {
        "loss/cross_entropy_backward.wgsl"
    }

    fn bindings(&self, _: &Call) -> Vec<Binding> {
        vec![read_write("logits"), read("targets"), read("stats")]
    }

    fn fields(&self) -> &'static [Field] {
        Params::FIELDS
    }

    fn variants(&self, call: &Call) -> Vec<Variant> {
        let p: Params = call.params();
        by_lanes(map_variants(p.cols), &[p.cols, p.ld])
    }

    fn grid(&self, call: &Call, _: &Variant) -> [u32; 3] {
        fold_grid(call.params::<Params>().rows)
    }

    fn reference(&self, call: &Call, buffers: &mut [HostBuffer<'_>]) {
        let p: Params = call.params();
        let [logits, targets, stats] = buffers else { unreachable!("three bindings") };
        let (row0, cols) = (p.row0 as usize, p.cols as usize);
        let stats = stats.f32()[3 * row0..].par_chunks(3);
        let tokens = targets.u32()[row0..].par_iter().zip(stats);
        let rows = logits.f32_mut().par_chunks_mut(p.ld as usize).zip(tokens);
        rows.take(p.rows as usize).for_each(|(row, (&target, stats))| {
            let row = &mut row[..cols];
            if target == IGNORE {
                row.fill(0.0);
                return;
            }
            let (max, factor) = (stats[0], p.scale / stats[1]);
            let hit = target.wrapping_sub(p.col0) as usize;
            // Not scale·p - scale, which would lose what is left of 1 - p to rounding twice.
            let at_hit = row.get(hit).map(|&z| p.scale * ((z - max).exp() / stats[1] - 1.0));
            row.iter_mut().for_each(|z| *z = factor * (*z - max).exp());
            if let Some(value) = at_hit {
                row[hit] = value;
            }
        });
    }

    fn cases(&self) -> Vec<Case> {
        let chunk = |name: &str, rows, cols, ld, row0, col0, scale| {
            Case::new(name, Call::new(&Params { rows, cols, ld, row0, col0, scale }))
        };
        let bench =
            Params { rows: 256, cols: 8192, ld: 8192, row0: 0, col0: 0, scale: 1.0 / 256.0 };
        vec![
            chunk("1x1", 1, 1, 1, 0, 0, 1.0),
            chunk("7x3", 7, 3, 3, 0, 0, 0.37),
            chunk("11x257", 11, 257, 257, 0, 0, -1.7),
            chunk("33x1000", 33, 1000, 1000, 0, 0, 1.0 / 33.0),
            chunk("13x67_of_80", 13, 67, 80, 5, 100, 2.0),
            chunk("9x132_of_140", 9, 132, 140, 2, 37, 0.5),
            chunk("1x2053", 1, 2053, 2053, 0, 4096, 1.0),
            Case::bench("tinyllama_256x8192", Call::new(&bench)),
        ]
    }

    fn buffers(&self, call: &Call, rng: &mut SeededRng) -> Vec<CaseBuffer> {
        let p: Params = call.params();
        let tokens = p.row0 + p.rows;
        let logits = case_logits(rng, p.rows, p.cols, p.ld);
        let targets = case_targets(rng, tokens, p.col0 + p.cols);
        let stats = case_stats(&logits, p.cols, p.ld, p.row0, tokens);
        vec![CaseBuffer::F32(logits), CaseBuffer::U32(targets), CaseBuffer::F32(stats)]
    }

    fn work(&self, call: &Call) -> Work {
        let p: Params = call.params();
        let count = u64::from(p.rows) * u64::from(p.cols);
        Work { bytes: 4 * (2 * count + 3 * u64::from(p.rows)), flops: 4 * count }
    }

    fn tolerance(&self, call: &Call) -> Tolerance {
        Tolerance {
            abs: 1e-6 * call.params::<Params>().scale.abs(),
            rel: 1e-5,
            why: "exp within 3 + 2|x| units in the last place; 1 is subtracted at the target",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::cross_entropy_forward;
    use super::super::testing::{assert_close, check_op, floats, run, words};
    use super::*;
    use crate::util::uniform_vec;
    use rand::{RngExt, SeedableRng};

    #[test]
    fn shader_and_cases() {
        check_op(&CrossEntropyBackward);
    }

    /// Summed loss of the counted rows, in f64.
    fn loss(logits: &[f64], vocabulary: usize, targets: &[u32]) -> f64 {
        let rows = logits.chunks(vocabulary).zip(targets).filter(|(_, t)| **t != IGNORE);
        rows.map(|(row, &t)| {
            let max = row.iter().copied().fold(f64::MIN, f64::max);
            let sum: f64 = row.iter().map(|z| (z - max).exp()).sum();
            sum.ln() + max - row[t as usize]
        })
        .sum()
    }

    #[test]
    fn chunks_agree_with_finite_differences() {
        let (rows, vocabulary) = (6_u32, 29_u32);
        let mut rng = SeededRng::seed_from_u64(21);
        let mut logits = uniform_vec(&mut rng, (rows * vocabulary) as usize, -3.0, 3.0);
        logits[29..58].fill(0.5);
        let mut targets = case_targets(&mut rng, rows, vocabulary);
        targets[4] = IGNORE;
        let scale = rng.random_range(-2.0..2.0_f32);
        let mut point: Vec<f64> = logits.iter().map(|&z| f64::from(z)).collect();
        let want: Vec<f64> = (0..point.len())
            .map(|i| {
                let (z, step) = (point[i], 1e-5);
                point[i] = z + step;
                let above = loss(&point, vocabulary as usize, &targets);
                point[i] = z - step;
                let below = loss(&point, vocabulary as usize, &targets);
                point[i] = z;
                f64::from(scale) * (above - below) / (2.0 * step)
            })
            .collect();
        for cuts in [&[0_usize, 29][..], &[0, 13, 29], &[0, 1, 20, 29]] {
            let mut stats = vec![0; 3 * rows as usize];
            let chunk = |pair: &[usize]| -> Vec<u32> {
                logits.chunks(29).flat_map(|row| words(&row[pair[0]..pair[1]])).collect()
            };
            for pair in cuts.windows(2) {
                let (col0, cols) = (pair[0] as u32, (pair[1] - pair[0]) as u32);
                let first = u32::from(col0 == 0);
                let p = cross_entropy_forward::Params::plain(rows, cols, col0, first);
                let call = cross_entropy_forward::dispatch(p, chunk(pair), targets.clone(), stats);
                stats = run(call).pop().expect("stats");
            }
            for pair in cuts.windows(2) {
                let (col0, cols) = (pair[0] as u32, (pair[1] - pair[0]) as u32);
                let p = Params { rows, cols, ld: cols, row0: 0, col0, scale };
                let got = run(dispatch(p, chunk(pair), targets.clone(), stats.clone()));
                let want: Vec<f64> =
                    want.chunks(29).flat_map(|row| row[pair[0]..pair[1]].to_vec()).collect();
                assert_close(&floats(&got[0]), &want, 1e-7, 1e-5);
            }
        }
    }

    #[test]
    fn ignored_rows_get_zero_whatever_they_hold() {
        let p = Params { rows: 1, cols: 2, ld: 3, row0: 1, col0: 0, scale: 1.0 };
        let logits = words(&[f32::INFINITY, f32::NAN, 5.0]);
        let stats = words(&[0.0, 0.0, 0.0, f32::NAN, 0.0, 0.0]);
        let got = run(dispatch(p, logits, vec![0, IGNORE], stats));
        assert_eq!(floats(&got[0]), [0.0, 0.0, 5.0]);
    }
}
