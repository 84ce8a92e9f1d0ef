//! RMS normalisation, forward.
//!
//! y\[r,c\] = x\[r,c\] · rstd\[r\] · w\[c\],  rstd\[r\] = 1 / sqrt(mean_c x\[r,c\]² + eps)
//!
//! | tensor | shape        | dtype | role |
//! |--------|--------------|-------|------|
//! | x      | [rows, cols] | f32   | in   |
//! | w      | \[cols\]     | f32   | in   |
//! | y      | [rows, cols] | f32   | out  |
//! | rstd   | \[rows\]     | f32   | out, for the backward pass |
//!
//! How: one workgroup a row, one element a lane at a time, or four; two passes over `x`, the
//! second from cache.
//! Accuracy: squares are summed in f32 by lane, then by tree.
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
        /// Unused.
        pad: u32,
    }
}

/// Normalises `x` into `y` and keeps `rstd`.
pub fn dispatch<B>(rows: u32, cols: u32, eps: f32, x: B, w: B, y: B, rstd: B) -> Dispatch<B> {
    let params = Params { rows, cols, eps, pad: 0 };
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
        row_variants(call.params::<Params>().cols)
    }

    fn grid(&self, call: &Call, _: &Variant) -> [u32; 3] {
        fold_grid(call.params::<Params>().rows)
    }

    fn reference(&self, call: &Call, buffers: &mut [HostBuffer<'_>]) {
        let p: Params = call.params();
        let [x, w, y, rstd] = buffers else { unreachable!("four bindings") };
        let (x, w, cols) = (x.f32(), w.f32(), p.cols as usize);
        let rows = y.f32_mut().par_chunks_mut(cols).zip(rstd.f32_mut()).zip(x.par_chunks(cols));
        rows.take(p.rows as usize).for_each(|((y, rstd), x)| {
            let squares: f64 = x.iter().map(|&v| f64::from(v) * f64::from(v)).sum();
            *rstd = (1.0 / (squares / cols as f64 + f64::from(p.eps)).sqrt()) as f32;
            for c in 0..cols {
                y[c] = x[c] * *rstd * w[c];
            }
        });
    }

    fn cases(&self) -> Vec<Case> {
        let case = |rows, cols| {
            let params = Params { rows, cols, eps: 1e-5, pad: 0 };
            (format!("{rows}x{cols}"), Call::new(&params))
        };
        let mut cases: Vec<Case> = [(1, 1), (3, 7), (5, 64), (2, 257), (33, 96), (1, 2048)]
            .into_iter()
            .map(|(rows, cols)| {
                let (name, call) = case(rows, cols);
                Case::new(name, call)
            })
            .collect();
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
            CaseBuffer::Output(count),
            CaseBuffer::Output(p.rows as usize),
        ]
    }

    fn work(&self, call: &Call) -> Work {
        let p: Params = call.params();
        let count = u64::from(p.rows) * u64::from(p.cols);
        Work { bytes: 4 * (2 * count + u64::from(p.cols + p.rows)), flops: 4 * count }
    }

    fn tolerance(&self, _: &Call) -> Tolerance {
        Tolerance { abs: 1e-6, rel: 2e-6, why: "f32 sums of squares, all of one sign" }
    }
}
