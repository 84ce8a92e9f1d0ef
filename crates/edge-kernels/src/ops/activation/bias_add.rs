//! A bias added to the rows of a product, in place.
//!
//! y\[r,c\] += b\[c\]
//!
//! | tensor | shape                        | dtype | role       |
//! |--------|------------------------------|-------|------------|
//! | b      | \[cols\]                     | f32   | in         |
//! | y      | [rows, cols] from `offset`   | f32   | in and out |
//!
//! How: one invocation per element, or per four. The gradient of the product is that of `y`; the
//! bias's own is `bias_grad`.
//! Accuracy: one rounding.
//! Cost: bound by bandwidth.

use rayon::prelude::*;

use crate::lanes;
use crate::op::{
    Binding, Call, Case, CaseBuffer, Dispatch, Field, HostBuffer, Op, Tolerance, Variant, Work,
    read, read_write,
};
use crate::util::{SeededRng, uniform_f32};

/// See the module.
pub struct BiasAdd;

crate::params! {
    /// Parameters of `bias_add`.
    pub struct Params {
        /// Rows (tokens).
        rows: u32,
        /// Columns (output channels).
        cols: u32,
        /// First element of `y`.
        offset: u32,
    }
}

impl Params {
    fn by_four(&self) -> bool {
        lanes::by_four(&[self.cols, self.offset])
    }

    fn count(&self) -> u64 {
        u64::from(self.rows) * u64::from(self.cols)
    }
}

/// Adds `b` to each row of `y`.
pub fn dispatch<B>(params: Params, b: B, y: B) -> Dispatch<B> {
    Dispatch::new(&BiasAdd, Call::new(&params), vec![b, y])
}

impl Op for BiasAdd {
    fn name(&self) -> &'static str {
        "bias_add"
    }

    fn shader(&self) -> &'static str {
        "activation/bias_add.wgsl"
    }

    fn bindings(&self, _: &Call) -> Vec<Binding> {
        vec![read("b"), read_write("y")]
    }

    fn fields(&self) -> &'static [Field] {
        Params::FIELDS
    }

    fn variants(&self, call: &Call) -> Vec<Variant> {
        vec![lanes::variant(call.params::<Params>().by_four())]
    }

    fn grid(&self, call: &Call, _: &Variant) -> [u32; 3] {
        let p: Params = call.params();
        lanes::grid(p.count(), p.by_four(), 256)
    }

    fn reference(&self, call: &Call, buffers: &mut [HostBuffer<'_>]) {
        let p: Params = call.params();
        let [b, y] = buffers else { unreachable!("two bindings") };
        let b = &b.f32()[..p.cols as usize];
        let y = &mut y.f32_mut()[p.offset as usize..][..p.count() as usize];
        y.par_chunks_mut(b.len()).with_min_len(16).for_each(|y| {
            y.iter_mut().zip(b).for_each(|(y, b)| *y += b);
        });
    }

    fn cases(&self) -> Vec<Case> {
        let call = |rows, cols, offset| Call::new(&Params { rows, cols, offset });
        let mut cases: Vec<Case> =
            [(1, 1, 0), (3, 8, 16), (5, 37, 0), (9, 96, 0), (2, 8, 5), (17, 64, 4)]
                .map(|(r, c, at)| Case::new(format!("{r}x{c}_at_{at}"), call(r, c, at)))
                .into();
        cases.push(Case::bench("qwen2_256", call(256, 896, 0)));
        cases
    }

    fn buffers(&self, call: &Call, rng: &mut SeededRng) -> Vec<CaseBuffer> {
        let p: Params = call.params();
        vec![
            uniform_f32(rng, p.cols as usize, -1.0, 1.0),
            uniform_f32(rng, p.offset as usize + p.count() as usize, -2.0, 2.0),
        ]
    }

    fn work(&self, call: &Call) -> Work {
        let p: Params = call.params();
        Work { bytes: 8 * p.count() + 4 * u64::from(p.cols), flops: p.count() }
    }

    fn tolerance(&self, _: &Call) -> Tolerance {
        Tolerance { abs: 1e-7, rel: 1e-6, why: "one rounding; subnormals may be flushed" }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::loss::testing::{check_op, floats, run, words};

    #[test]
    fn rows_from_an_offset_get_the_bias() {
        check_op(&BiasAdd);
        let params = Params { rows: 2, cols: 2, offset: 1 };
        let y = words(&[9.0, 1.0, 2.0, 3.0, 4.0, 5.0]);
        let got = run(dispatch(params, words(&[0.5, -2.0]), y));
        assert_eq!(floats(&got[1]), [9.0, 1.5, 0.0, 3.5, 2.0, 5.0]);
    }
}
