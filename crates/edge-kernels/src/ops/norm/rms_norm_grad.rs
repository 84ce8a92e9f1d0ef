//! RMS normalisation, gradient of its weight, by parts.
//!
//! partials\[p,c\] = Σ dy\[r,c\] · x\[r,c\] · rstd\[r\] over the p-th block of ceil(rows / parts)
//! rows; `matmul::sum_partials` adds the parts up.
//!
//! | tensor   | shape         | dtype | role                    |
//! |----------|---------------|-------|-------------------------|
//! | x        | [rows, cols]  | f32   | in                      |
//! | rstd     | \[rows\]      | f32   | in, of the forward pass |
//! | dy       | [rows, cols]  | f32   | in                      |
//! | partials | [parts, cols] | f32   | out                     |
//!
//! How: one invocation a column of a part. A part behind the last row is 0.
//! Accuracy: f32 sums over a block of rows.
//! Cost: bound by bandwidth.

use rayon::prelude::*;

use crate::lanes;
use crate::op::{
    Binding, Call, Case, CaseBuffer, Dispatch, Field, HostBuffer, Op, Tolerance, Variant, Work,
    read, read_write,
};
use crate::util::{SeededRng, uniform_f32};

/// See the module.
pub struct RmsNormGrad;

crate::params! {
    /// Parameters of `rms_norm_grad`.
    pub struct Params {
        /// Rows (tokens).
        rows: u32,
        /// Columns (hidden size).
        cols: u32,
        /// Blocks of rows.
        parts: u32,
        /// Unused.
        pad: u32,
    }
}

/// Writes the weight's gradient as `parts` partial sums.
pub fn dispatch<B>(
    rows: u32,
    cols: u32,
    parts: u32,
    x: B,
    rstd: B,
    dy: B,
    partials: B,
) -> Dispatch<B> {
    let params = Params { rows, cols, parts, pad: 0 };
    Dispatch::new(&RmsNormGrad, Call::new(&params), vec![x, rstd, dy, partials])
}

/// A good number of parts: enough invocations for a GPU, few enough partial sums to add up.
pub fn parts(rows: u32) -> u32 {
    rows.div_ceil(32).clamp(1, 32)
}

impl Op for RmsNormGrad {
    fn name(&self) -> &'static str {
        "rms_norm_grad"
    }

    fn shader(&self) -> &'static str {
        "norm/rms_norm_grad.wgsl"
    }

    fn bindings(&self, _: &Call) -> Vec<Binding> {
        vec![read("x"), read("rstd"), read("dy"), read_write("partials")]
    }

    fn fields(&self) -> &'static [Field] {
        Params::FIELDS
    }

    fn variants(&self, _: &Call) -> Vec<Variant> {
        vec![Variant::plain()]
    }

    fn grid(&self, call: &Call, _: &Variant) -> [u32; 3] {
        let p: Params = call.params();
        lanes::grid(u64::from(p.parts) * u64::from(p.cols), false, 64)
    }

    fn reference(&self, call: &Call, buffers: &mut [HostBuffer<'_>]) {
        let p: Params = call.params();
        let [x, rstd, dy, partials] = buffers else { unreachable!("four bindings") };
        let (x, rstd, dy) = (x.f32(), rstd.f32(), dy.f32());
        let (rows, cols) = (p.rows as usize, p.cols as usize);
        let block = rows.div_ceil(p.parts as usize);
        let parts = partials.f32_mut().par_chunks_mut(cols).take(p.parts as usize);
        parts.enumerate().for_each(|(part, out)| {
            let mut sums = vec![0.0_f64; cols];
            for r in part * block..((part + 1) * block).min(rows) {
                let (x, dy) = (&x[r * cols..][..cols], &dy[r * cols..][..cols]);
                for c in 0..cols {
                    sums[c] += f64::from(dy[c]) * f64::from(x[c]) * f64::from(rstd[r]);
                }
            }
            for c in 0..cols {
                out[c] = sums[c] as f32;
            }
        });
    }

    fn cases(&self) -> Vec<Case> {
        let call = |rows, cols, parts| Call::new(&Params { rows, cols, parts, pad: 0 });
        let mut cases: Vec<Case> = [(1, 1, 1), (7, 13, 3), (5, 65, 4), (64, 96, 2), (3, 129, 8)]
            .map(|(r, c, parts)| Case::new(format!("{r}x{c}_in_{parts}"), call(r, c, parts)))
            .into();
        cases.push(Case::bench("tinyllama_256", call(256, 2048, parts(256))));
        cases
    }

    fn buffers(&self, call: &Call, rng: &mut SeededRng) -> Vec<CaseBuffer> {
        let p: Params = call.params();
        let count = (p.rows * p.cols) as usize;
        vec![
            uniform_f32(rng, count, -2.0, 2.0),
            uniform_f32(rng, p.rows as usize, 0.5, 1.5),
            uniform_f32(rng, count, -1.0, 1.0),
            CaseBuffer::Output((p.parts * p.cols) as usize),
        ]
    }

    fn work(&self, call: &Call) -> Work {
        let p: Params = call.params();
        let (rows, cols) = (u64::from(p.rows), u64::from(p.cols));
        let bytes = 4 * (2 * rows * cols + rows + u64::from(p.parts) * cols);
        Work { bytes, flops: 3 * rows * cols }
    }

    fn tolerance(&self, _: &Call) -> Tolerance {
        Tolerance { abs: 1e-5, rel: 1e-6, why: "f32 sums of mixed sign over at most 64 rows" }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::util::uniform_vec;
    use rand::SeedableRng;

    /// The forward pass is linear in w, so the difference quotient with step 1 is its gradient.
    #[test]
    fn parts_add_up_to_the_difference_quotient() {
        let (rows, cols, parts) = (7, 5, 3);
        let mut rng = SeededRng::seed_from_u64(4);
        let x = uniform_vec(&mut rng, rows * cols, -2.0, 2.0);
        let w = uniform_vec(&mut rng, cols, 0.5, 1.5);
        let dy = uniform_vec(&mut rng, rows * cols, -1.0, 1.0);
        let rstd = uniform_vec(&mut rng, rows, 0.5, 1.5);
        let mut partials = vec![f32::NAN; parts * cols];
        let params = Params { rows: rows as u32, cols: cols as u32, parts: parts as u32, pad: 0 };
        RmsNormGrad.reference(
            &Call::new(&params),
            &mut [
                HostBuffer::Read(bytemuck::cast_slice(&x)),
                HostBuffer::Read(bytemuck::cast_slice(&rstd)),
                HostBuffer::Read(bytemuck::cast_slice(&dy)),
                HostBuffer::ReadWrite(bytemuck::cast_slice_mut(&mut partials)),
            ],
        );
        let objective = |w: &[f64]| -> f64 {
            let term = |i: usize| {
                f64::from(dy[i]) * f64::from(x[i]) * f64::from(rstd[i / cols]) * w[i % cols]
            };
            (0..rows * cols).map(term).sum()
        };
        let wide: Vec<f64> = w.iter().map(|&w| f64::from(w)).collect();
        for c in 0..cols {
            let mut moved = wide.clone();
            moved[c] += 1.0;
            let want = objective(&moved) - objective(&wide);
            let got: f64 = (0..parts).map(|p| f64::from(partials[p * cols + c])).sum();
            assert!((got - want).abs() < 1e-5, "{c}: {got} {want}");
        }
    }
}
