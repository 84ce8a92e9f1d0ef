//! RMS normalisation, forward.
//!
//! y\[r,c\] (+)= x\[r,c\] · rstd\[r\] · w\[c\],  rstd\[r\] = 1 / sqrt(mean_c x\[r,c\]² + eps)
//!
//! | tensor | shape        | dtype | role |
//! |--------|--------------|-------|------|
//! | x      | [rows, cols] | f32   | in   |
//! | w      | \[cols\]     | f32   | in   |
//! | y      | [rows, cols] from `out_offset` | f32 | out, may accumulate |
//! | rstd   | \[rows\]     | f32   | out, for the backward pass |
//!
//! How: one workgroup a row, one element a lane at a time, or four; two passes over `x`, the
//! second from cache.
//! Accuracy: squares are summed in f32 by lane, then by tree.
//! Cost: bound by bandwidth.

use crate::util::SeededRng;
use rayon::prelude::*;

use crate::op::{
    Binding, Call, Case, CaseBuffer, Dispatch, Field, HostBuffer, Op, Tolerance, Variant, Work,
    read, read_write,
};
use crate::ops::loss::{by_lanes, reduce_variants};
use crate::util::{fold_grid, uniform_f32};

/// See the module.
pub struct RmsNormForward;

crate::params! {
    /// Parameters of `rms_norm_forward`.
    pub struct Params {
        /// Rows (tokens).
        rows: u32,
        /// Columns (hidden size).
        cols: u32,
        /// Added to the mean square.
        eps: f32,
        /// First element of `y`.
        out_offset: u32,
        /// 1: add to `y`, as a branch whose output is normalised does to the residual stream.
        accumulate: u32,
    }
}

/// Normalises `x` into `y` and keeps `rstd`.
pub fn dispatch<B>(rows: u32, cols: u32, eps: f32, x: B, w: B, y: B, rstd: B) -> Dispatch<B> {
    dispatch_to(Params { rows, cols, eps, out_offset: 0, accumulate: 0 }, x, w, y, rstd)
}

/// As [`dispatch`], to a place in `y`, or added to what is there.
pub fn dispatch_to<B>(params: Params, x: B, w: B, y: B, rstd: B) -> Dispatch<B> {
    Dispatch::new(&RmsNormForward, Call::new(&params), vec![x, w, y, rstd])
}

impl Op for RmsNormForward {
    fn name(&self) -> &'static str {
        "rms_norm_forward"
    }

    fn shader(&self) -> &'static str {
        "norm/rms_norm_forward.wgsl"
    }

    fn bindings(&self, _: &Call) -> Vec<Binding> {
        vec![read("x"), read("w"), read_write("y"), read_write("rstd")]
    }

    fn fields(&self) -> &'static [Field] {
        Params::FIELDS
    }

    fn variants(&self, call: &Call) -> Vec<Variant> {
        let p: Params = call.params();
        by_lanes(reduce_variants(p.cols), &[p.cols, p.out_offset])
    }

    fn grid(&self, call: &Call, _: &Variant) -> [u32; 3] {
        fold_grid(call.params::<Params>().rows)
    }

    fn reference(&self, call: &Call, buffers: &mut [HostBuffer<'_>]) {
        let p: Params = call.params();
        let [x, w, y, rstd] = buffers else { unreachable!("four bindings") };
        let (x, w, cols) = (x.f32(), w.f32(), p.cols as usize);
        let y = &mut y.f32_mut()[p.out_offset as usize..];
        let rows = y.par_chunks_mut(cols).zip(rstd.f32_mut()).zip(x.par_chunks(cols));
        rows.take(p.rows as usize).for_each(|((y, rstd), x)| {
            let squares: f64 = x.iter().map(|&v| f64::from(v) * f64::from(v)).sum();
            *rstd = (1.0 / (squares / cols as f64 + f64::from(p.eps)).sqrt()) as f32;
            for c in 0..cols {
                let value = x[c] * *rstd * w[c];
                y[c] = if p.accumulate == 1 { y[c] + value } else { value };
            }
        });
    }

    fn cases(&self) -> Vec<Case> {
        let case = |rows, cols| {
            let params = Params { rows, cols, eps: 1e-5, out_offset: 0, accumulate: 0 };
            (format!("{rows}x{cols}"), Call::new(&params))
        };
        // The last has more workgroups than one dimension of a grid.
        let sizes = [(1, 1), (3, 7), (5, 64), (2, 257), (33, 96), (1, 2048), (70_001, 1)];
        let mut cases: Vec<Case> = sizes
            .into_iter()
            .map(|(rows, cols)| {
                let (name, call) = case(rows, cols);
                Case::new(name, call)
            })
            .collect();
        for (rows, cols, out_offset, accumulate) in [(3, 8, 12, 0), (6, 16, 5, 0), (3, 64, 0, 1)] {
            let params = Params { rows, cols, eps: 1e-5, out_offset, accumulate };
            let name = format!("{rows}x{cols}_at_{out_offset}_accumulate_{accumulate}");
            cases.push(Case::new(name, Call::new(&params)));
        }
        let (_, call) = case(256, 2048);
        cases.push(Case::bench("tinyllama_256", call));
        cases
    }

    fn buffers(&self, call: &Call, rng: &mut SeededRng) -> Vec<CaseBuffer> {
        let p: Params = call.params();
        let count = (p.rows * p.cols) as usize;
        vec![
            uniform_f32(rng, count, -2.0, 2.0),
            uniform_f32(rng, p.cols as usize, 0.5, 1.5),
            match p.accumulate == 1 || p.out_offset > 0 {
                true => uniform_f32(rng, p.out_offset as usize + count, -1.0, 1.0),
                false => CaseBuffer::Output(count),
            },
            CaseBuffer::Output(p.rows as usize),
        ]
    }

    fn work(&self, call: &Call) -> Work {
        let p: Params = call.params();
        let count = u64::from(p.rows) * u64::from(p.cols);
        let streams = 2 + u64::from(p.accumulate);
        Work { bytes: 4 * (streams * count + u64::from(p.cols + p.rows)), flops: 4 * count }
    }

    fn tolerance(&self, _: &Call) -> Tolerance {
        Tolerance { abs: 1e-6, rel: 2e-6, why: "f32 sums of squares, all of one sign" }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::loss::testing::{floats, run, words};

    #[test]
    fn a_place_is_filled_or_added_to() {
        let (x, w) = ([3.0, -4.0, 6.0, 8.0], [1.0, 2.0]);
        let rstd = [1.0 / 12.5_f64.sqrt(), 1.0 / 50_f64.sqrt()];
        for accumulate in [0, 1] {
            let params = Params { rows: 2, cols: 2, eps: 0.0, out_offset: 1, accumulate };
            let y = words(&[7.0, 1.0, 2.0, 3.0, 4.0]);
            let got = run(dispatch_to(params, words(&x), words(&w), y, vec![0; 2]));
            let y = floats(&got[2]);
            assert_eq!(y[0], 7.0);
            for i in 0..4 {
                let before = if accumulate == 1 { (i + 1) as f64 } else { 0.0 };
                let want = before + f64::from(x[i]) * rstd[i / 2] * f64::from(w[i % 2]);
                assert!((f64::from(y[i + 1]) - want).abs() < 1e-6, "{i}: {} {want}", y[i + 1]);
            }
        }
    }
}
