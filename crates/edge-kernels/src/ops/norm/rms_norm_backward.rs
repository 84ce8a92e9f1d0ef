//! RMS normalisation, backward to its input.
//!
//! dx\[r,c\] (+)= rstd\[r\] · w\[c\] · dy\[r,c\]
//!               − x\[r,c\] · rstd\[r\]³ / cols · Σ_k w\[k\] · dy\[r,k\] · x\[r,k\]
//!
//! | tensor | shape        | dtype | role                    |
//! |--------|--------------|-------|-------------------------|
//! | x      | [rows, cols] | f32   | in                      |
//! | w      | \[cols\]     | f32   | in                      |
//! | rstd   | \[rows\]     | f32   | in, of the forward pass |
//! | dy     | [rows, cols] | f32   | in                      |
//! | dx     | [rows, cols] | f32   | out, may accumulate     |
//!
//! How: one workgroup a row; one pass for the sum, one for the result.
//! Accuracy: the sum is in f32 by lane, then by tree.
//! Cost: bound by bandwidth.

use rayon::prelude::*;

use super::row_variants;
use crate::op::{
    Binding, Call, Case, CaseBuffer, Dispatch, Field, HostBuffer, Op, Tolerance, Variant, Work,
    read, read_write,
};
use crate::util::{SeededRng, fold_grid, uniform_f32};

/// See the module.
pub struct RmsNormBackward;

crate::params! {
    /// Parameters of `rms_norm_backward`.
    pub struct Params {
        /// Rows (tokens).
        rows: u32,
        /// Columns (hidden size).
        cols: u32,
        /// 1: add to `dx`, as the gradient of the residual stream wants.
        accumulate: u32,
        /// Unused.
        pad: u32,
    }
}

/// Takes `dy` back to the normalisation's input.
pub fn dispatch<B>(
    rows: u32,
    cols: u32,
    accumulate: bool,
    x: B,
    w: B,
    rstd: B,
    dy: B,
    dx: B,
) -> Dispatch<B> {
    let params = Params { rows, cols, accumulate: u32::from(accumulate), pad: 0 };
    Dispatch::new(&RmsNormBackward, Call::new(&params), vec![x, w, rstd, dy, dx])
}

impl Op for RmsNormBackward {
    fn name(&self) -> &'static str {
        "rms_norm_backward"
    }

    fn shader(&self) -> &'static str {
        "norm/rms_norm_backward.wgsl"
    }

    fn bindings(&self, _: &Call) -> Vec<Binding> {
        vec![read("x"), read("w"), read("rstd"), read("dy"), read_write("dx")]
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
        let [x, w, rstd, dy, dx] = buffers else { unreachable!("five bindings") };
        let (x, w, rstd, dy, cols) = (x.f32(), w.f32(), rstd.f32(), dy.f32(), p.cols as usize);
        let rows = dx.f32_mut().par_chunks_mut(cols).take(p.rows as usize).enumerate();
        rows.for_each(|(r, dx)| {
            let (x, dy) = (&x[r * cols..][..cols], &dy[r * cols..][..cols]);
            let scale = f64::from(rstd[r]);
            let mut pull = 0.0;
            for c in 0..cols {
                pull += f64::from(w[c]) * f64::from(dy[c]) * f64::from(x[c]);
            }
            let pull = pull * scale * scale / cols as f64;
            for c in 0..cols {
                let direct = f64::from(w[c]) * f64::from(dy[c]);
                let value = (scale * (direct - f64::from(x[c]) * pull)) as f32;
                dx[c] = if p.accumulate == 1 { dx[c] + value } else { value };
            }
        });
    }

    fn cases(&self) -> Vec<Case> {
        let call = |rows, cols, accumulate| Call::new(&Params { rows, cols, accumulate, pad: 0 });
        let mut cases: Vec<Case> =
            [(1, 1, 0), (3, 7, 1), (5, 64, 0), (2, 257, 1), (33, 96, 0), (1, 2048, 1)]
                .map(|(rows, cols, accumulate)| {
                    let suffix = if accumulate == 1 { "_accumulate" } else { "" };
                    Case::new(format!("{rows}x{cols}{suffix}"), call(rows, cols, accumulate))
                })
                .into();
        cases.push(Case::bench("tinyllama_256", call(256, 2048, 1)));
        cases
    }

    fn buffers(&self, call: &Call, rng: &mut SeededRng) -> Vec<CaseBuffer> {
        let p: Params = call.params();
        let count = (p.rows * p.cols) as usize;
        let x = crate::util::uniform_vec(rng, count, -2.0, 2.0);
        let rstd = x
            .chunks(p.cols as usize)
            .map(|row| (row.iter().map(|x| x * x).sum::<f32>() / p.cols as f32 + 1e-5).powf(-0.5));
        let rstd = CaseBuffer::F32(rstd.collect());
        vec![
            CaseBuffer::F32(x),
            uniform_f32(rng, p.cols as usize, 0.5, 1.5),
            rstd,
            uniform_f32(rng, count, -1.0, 1.0),
            if p.accumulate == 1 {
                uniform_f32(rng, count, -1.0, 1.0)
            } else {
                CaseBuffer::Output(count)
            },
        ]
    }

    fn work(&self, call: &Call) -> Work {
        let p: Params = call.params();
        let count = u64::from(p.rows) * u64::from(p.cols);
        let streams = 3 + u64::from(p.accumulate);
        Work { bytes: 4 * (streams * count + u64::from(p.cols + p.rows)), flops: 8 * count }
    }

    fn tolerance(&self, call: &Call) -> Tolerance {
        // With few columns the two terms nearly cancel, scaled by a large rstd.
        let abs = if call.params::<Params>().cols < 16 { 2e-5 } else { 2e-6 };
        Tolerance { abs, rel: 5e-6, why: "f32 sums of mixed sign; the two terms may cancel" }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::util::uniform_vec;
    use rand::SeedableRng;

    const EPS: f64 = 1e-5;

    /// Σ dy · norm(x) of one row.
    fn objective(x: &[f64], w: &[f32], dy: &[f32]) -> f64 {
        let mean = x.iter().map(|x| x * x).sum::<f64>() / x.len() as f64;
        let scale = (mean + EPS).powf(-0.5);
        (0..x.len()).map(|c| f64::from(dy[c]) * x[c] * scale * f64::from(w[c])).sum()
    }

    #[test]
    fn agrees_with_finite_differences_and_accumulates() {
        let (rows, cols) = (3, 11);
        let mut rng = SeededRng::seed_from_u64(3);
        let x = uniform_vec(&mut rng, rows * cols, -2.0, 2.0);
        let w = uniform_vec(&mut rng, cols, 0.5, 1.5);
        let dy = uniform_vec(&mut rng, rows * cols, -1.0, 1.0);
        let before = uniform_vec(&mut rng, rows * cols, -1.0, 1.0);
        let wide: Vec<f64> = x.iter().map(|&x| f64::from(x)).collect();
        let rstd: Vec<f32> = wide
            .chunks(cols)
            .map(|row| {
                (row.iter().map(|x| x * x).sum::<f64>() / cols as f64 + EPS).powf(-0.5) as f32
            })
            .collect();
        for accumulate in [0, 1] {
            let mut dx = before.clone();
            let params = Params { rows: rows as u32, cols: cols as u32, accumulate, pad: 0 };
            RmsNormBackward.reference(
                &Call::new(&params),
                &mut [
                    HostBuffer::Read(bytemuck::cast_slice(&x)),
                    HostBuffer::Read(bytemuck::cast_slice(&w)),
                    HostBuffer::Read(bytemuck::cast_slice(&rstd)),
                    HostBuffer::Read(bytemuck::cast_slice(&dy)),
                    HostBuffer::ReadWrite(bytemuck::cast_slice_mut(&mut dx)),
                ],
            );
            for i in 0..rows * cols {
                let row = i / cols * cols..(i / cols + 1) * cols;
                let at = |h: f64| {
                    let mut x = wide[row.clone()].to_vec();
                    x[i % cols] += h;
                    objective(&x, &w, &dy[row.clone()])
                };
                let slope = (at(1e-5) - at(-1e-5)) / 2e-5;
                let want = slope + f64::from(accumulate) * f64::from(before[i]);
                assert!((f64::from(dx[i]) - want).abs() < 2e-6, "{i}: {} {want}", dx[i]);
            }
        }
    }
}
