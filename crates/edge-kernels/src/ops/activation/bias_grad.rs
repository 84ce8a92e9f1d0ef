//! Gradient of a bias, by parts.
//!
//! partials\[p,c\] = Σ dy\[r,c\] over the p-th block of ceil(rows / parts) rows;
//! `matmul::sum_partials` adds the parts up.
//!
//! | tensor   | shape         | dtype | role |
//! |----------|---------------|-------|------|
//! | dy       | [rows, cols]  | f32   | in   |
//! | partials | [parts, cols] | f32   | out  |
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
pub struct BiasGrad;

crate::params! {
    /// Parameters of `bias_grad`.
    pub struct Params {
        /// Rows (tokens).
        rows: u32,
        /// Columns (output channels).
        cols: u32,
        /// Blocks of rows.
        parts: u32,
    }
}

/// Writes the bias's gradient as `parts` partial sums.
pub fn dispatch<B>(params: Params, dy: B, partials: B) -> Dispatch<B> {
    Dispatch::new(&BiasGrad, Call::new(&params), vec![dy, partials])
}

impl Op for BiasGrad {
    fn name(&self) -> &'static str {
        "bias_grad"
    }

    fn shader(&self) -> &'static str {
        "activation/bias_grad.wgsl"
    }

    fn bindings(&self, _: &Call) -> Vec<Binding> {
        vec![read("dy"), read_write("partials")]
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
        let [dy, partials] = buffers else { unreachable!("two bindings") };
        let (dy, rows, cols) = (dy.f32(), p.rows as usize, p.cols as usize);
        let block = rows.div_ceil(p.parts as usize);
        let parts = partials.f32_mut().par_chunks_mut(cols).take(p.parts as usize);
        parts.enumerate().for_each(|(part, out)| {
            let mut sums = vec![0.0_f64; cols];
            for r in part * block..((part + 1) * block).min(rows) {
                let row = &dy[r * cols..][..cols];
                sums.iter_mut().zip(row).for_each(|(sum, dy)| *sum += f64::from(*dy));
            }
            out.iter_mut().zip(sums).for_each(|(out, sum)| *out = sum as f32);
        });
    }

    fn cases(&self) -> Vec<Case> {
        let call = |rows, cols, parts| Call::new(&Params { rows, cols, parts });
        let mut cases: Vec<Case> = [(1, 1, 1), (7, 13, 3), (5, 65, 4), (64, 96, 2), (3, 129, 8)]
            .map(|(r, c, parts)| Case::new(format!("{r}x{c}_in_{parts}"), call(r, c, parts)))
            .into();
        cases.push(Case::bench("qwen2_256", call(256, 896, 16)));
        cases
    }

    fn buffers(&self, call: &Call, rng: &mut SeededRng) -> Vec<CaseBuffer> {
        let p: Params = call.params();
        vec![
            uniform_f32(rng, (p.rows * p.cols) as usize, -1.0, 1.0),
            CaseBuffer::Output((p.parts * p.cols) as usize),
        ]
    }

    fn work(&self, call: &Call) -> Work {
        let p: Params = call.params();
        let count = u64::from(p.rows) * u64::from(p.cols);
        Work { bytes: 4 * (count + u64::from(p.parts) * u64::from(p.cols)), flops: count }
    }

    fn tolerance(&self, _: &Call) -> Tolerance {
        Tolerance { abs: 1e-5, rel: 1e-6, why: "f32 sums of mixed sign over at most 64 rows" }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::activation::bias_add;
    use crate::ops::loss::testing::{check_op, floats, run, words};
    use crate::util::uniform_vec;
    use rand::SeedableRng;

    /// <dy, bias_add(0, b)> = <b, Σ parts>: it is the adjoint.
    #[test]
    fn is_the_adjoint_of_adding_the_bias() {
        check_op(&BiasGrad);
        let mut rng = SeededRng::seed_from_u64(9);
        let (b, dy) = (uniform_vec(&mut rng, 5, -1.0, 1.0), uniform_vec(&mut rng, 35, -1.0, 1.0));
        let add = bias_add::Params { rows: 7, cols: 5, offset: 0 };
        let y = floats(&run(bias_add::dispatch(add, words(&b), vec![0; 35]))[1]);
        let params = Params { rows: 7, cols: 5, parts: 3 };
        let partials = floats(&run(dispatch(params, words(&dy), vec![u32::MAX; 15]))[1]);
        let dot = |a: &[f32], b: &[f32]| -> f64 {
            a.iter().zip(b).map(|(a, b)| f64::from(*a) * f64::from(*b)).sum()
        };
        let spread: Vec<f32> = (0..15).map(|i| b[i % 5]).collect();
        assert!((dot(&dy, &y) - dot(&partials, &spread)).abs() < 1e-5);
    }
}
