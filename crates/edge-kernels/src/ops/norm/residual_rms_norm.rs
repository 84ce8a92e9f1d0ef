//! A branch's output added to the residual stream, and the sum normalised.
//!
//! sum\[r,c\] = x\[r,c\] + y\[r,c\];  y\[r,c\] = sum\[r,c\] · rstd\[r\] · w\[c\],
//! rstd\[r\] = 1 / sqrt(mean_c sum\[r,c\]² + eps)
//!
//! | tensor | shape        | dtype | role |
//! |--------|--------------|-------|------|
//! | x      | [rows, cols] | f32   | in: the residual stream |
//! | w      | \[cols\]     | f32   | in: the norm's weight |
//! | y      | [rows, cols] | f32   | in: the branch; out: the normalised sum |
//! | sum    | [rows, cols] | f32   | out: the residual stream behind the branch |
//! | rstd   | \[rows\]     | f32   | out, for the backward pass |
//!
//! Takes the place of a copy of `x`, the second half of an accumulating product, and
//! `rms_norm_forward`: 20 bytes an element, the branch's store included, instead of 24.
//!
//! How: one workgroup a row, one element a lane at a time, or four; two passes, the second over
//! `sum` from cache.
//! Accuracy: as `rms_norm_forward`.
//! Cost: bound by bandwidth.

use crate::util::SeededRng;
use rayon::prelude::*;

use super::row_variants;
use crate::op::{
    Binding, Call, Case, CaseBuffer, Dispatch, Field, HostBuffer, Op, Tolerance, Variant, Work,
    read, read_write,
};
use crate::util::{fold_grid, uniform_f32};

/// See the module.
pub struct ResidualRmsNorm;

crate::params! {
    /// Parameters of `residual_rms_norm`.
    pub struct Params {
        /// Rows (tokens).
        rows: u32,
        /// Columns (hidden size).
        cols: u32,
        /// Added to the mean square.
        eps: f32,
    }
}

/// Adds `y` to `x`, keeps the `sum` and `rstd`, and normalises into `y`.
pub fn dispatch<B>(params: Params, x: B, w: B, y: B, sum: B, rstd: B) -> Dispatch<B> {
    Dispatch::new(&ResidualRmsNorm, Call::new(&params), vec![x, w, y, sum, rstd])
}

impl Op for ResidualRmsNorm {
    fn name(&self) -> &'static str {
        "residual_rms_norm"
    }

    fn shader(&self) -> &'static str {
        "norm/residual_rms_norm.wgsl"
    }

    fn bindings(&self, _: &Call) -> Vec<Binding> {
        vec![read("x"), read("w"), read_write("y"), read_write("sum"), read_write("rstd")]
    }

    fn fields(&self) -> &'static [Field] {
        Params::FIELDS
    }

    fn variants(&self, call: &Call) -> Vec<Variant> {
        row_variants(call.params::<Params>().cols)
    }

    fn grid(&self, call: &Call, _: &Variant) -> [u32; 3] {
        fold_grid(call.params::<Params>().rows)
    }

    fn reference(&self, call: &Call, buffers: &mut [HostBuffer<'_>]) {
        let p: Params = call.params();
        let [x, w, y, sum, rstd] = buffers else { unreachable!("five bindings") };
        let (x, w, cols) = (x.f32(), w.f32(), p.cols as usize);
        let written = y.f32_mut().par_chunks_mut(cols).zip(sum.f32_mut().par_chunks_mut(cols));
        let rows = written.zip(rstd.f32_mut()).zip(x.par_chunks(cols));
        rows.take(p.rows as usize).for_each(|(((y, sum), rstd), x)| {
            for c in 0..cols {
                sum[c] = x[c] + y[c];
            }
            let squares: f64 = sum.iter().map(|&v| f64::from(v) * f64::from(v)).sum();
            *rstd = (1.0 / (squares / cols as f64 + f64::from(p.eps)).sqrt()) as f32;
            for c in 0..cols {
                y[c] = sum[c] * *rstd * w[c];
            }
        });
    }

    fn cases(&self) -> Vec<Case> {
        let call = |rows, cols| Call::new(&Params { rows, cols, eps: 1e-5 });
        let sizes = [(1, 1), (3, 7), (5, 64), (2, 257), (33, 96)];
        let mut cases: Vec<Case> =
            sizes.map(|(rows, cols)| Case::new(format!("{rows}x{cols}"), call(rows, cols))).into();
        cases.push(Case::bench("tinyllama_256", call(256, 2048)));
        cases
    }

    fn buffers(&self, call: &Call, rng: &mut SeededRng) -> Vec<CaseBuffer> {
        let p: Params = call.params();
        let count = (p.rows * p.cols) as usize;
        vec![
            uniform_f32(rng, count, -2.0, 2.0),
            uniform_f32(rng, p.cols as usize, 0.5, 1.5),
            uniform_f32(rng, count, -1.0, 1.0),
            CaseBuffer::Output(count),
            CaseBuffer::Output(p.rows as usize),
        ]
    }

    fn work(&self, call: &Call) -> Work {
        let p: Params = call.params();
        let count = u64::from(p.rows) * u64::from(p.cols);
        Work { bytes: 4 * (4 * count + u64::from(p.cols + p.rows)), flops: 5 * count }
    }

    fn tolerance(&self, _: &Call) -> Tolerance {
        Tolerance { abs: 1e-6, rel: 2e-6, why: "f32 sums of squares, all of one sign" }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::loss::testing::{check_op, floats, run, words};
    use crate::ops::norm::rms_norm_forward;

    #[test]
    fn shader_and_cases() {
        check_op(&ResidualRmsNorm);
    }

    #[test]
    fn is_a_sum_and_a_norm() {
        let (x, branch, w) = ([1.0, -2.0, 3.0, 0.5], [0.5, 2.0, -1.0, 1.5], [2.0, -1.0]);
        let out = || vec![f32::NAN.to_bits(); 4];
        let params = Params { rows: 2, cols: 2, eps: 1e-5 };
        let got = run(dispatch(params, words(&x), words(&w), words(&branch), out(), vec![0; 2]));
        let sum = [1.5, 0.0, 2.0, 2.0];
        assert_eq!(floats(&got[3]), sum);
        let norm =
            rms_norm_forward::dispatch(2, 2, 1e-5, words(&sum), words(&w), out(), vec![0; 2]);
        let want = run(norm);
        assert_eq!((&got[2], &got[4]), (&want[2], &want[3]));
    }
}
