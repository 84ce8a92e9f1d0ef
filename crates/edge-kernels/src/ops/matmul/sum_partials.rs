//! Sum of partial sums.
//!
//! out\[i\] (+)= alpha · sum_p partials\[p·len + i\]
//!
//! | tensor   | shape        | dtype | role |
//! |----------|--------------|-------|------|
//! | partials | [parts, len] | f32   | in   |
//! | out      | \[len\]      | f32   | out  |
//!
//! How: one thread an element, in the order of the parts: repeat runs are equal to the bit.
//! Accuracy: f32 sums over the parts.
//! Cost: bound by bandwidth.

use rayon::prelude::*;

use crate::op::{
    Binding, Call, Case, CaseBuffer, Dispatch, Field, HostBuffer, Op, Tolerance, Variant, Work,
    read, read_write,
};
use crate::util::{SeededRng, fold_grid, uniform_f32};

/// See the module.
pub struct SumPartials;

/// Lanes of a workgroup, as in the shader.
const WG: u32 = 64;

crate::params! {
    /// Parameters of `sum_partials`.
    pub struct Params {
        /// Partial sums of each element.
        parts: u32,
        /// Elements.
        len: u32,
        /// 1: adds to `out`.
        accumulate: u32,
        /// Factor of the sum.
        alpha: f32,
    }
}

/// Sums `partials [parts, len]` over the parts into `out [len]`.
pub fn dispatch<B>(params: Params, partials: B, out: B) -> Dispatch<B> {
    Dispatch::new(&SumPartials, Call::new(&params), vec![partials, out])
}

impl Op for SumPartials {
    fn name(&self) -> &'static str {
        "sum_partials"
    }

    fn shader(&self) -> &'static str {
        "matmul/sum_partials.wgsl"
    }

    fn bindings(&self, _: &Call) -> Vec<Binding> {
        vec![read("partials"), read_write("out")]
    }

    fn fields(&self) -> &'static [Field] {
        Params::FIELDS
    }

    fn variants(&self, _: &Call) -> Vec<Variant> {
        vec![Variant::plain()]
    }

    fn grid(&self, call: &Call, _: &Variant) -> [u32; 3] {
        fold_grid(call.params::<Params>().len.div_ceil(WG))
    }

    fn reference(&self, call: &Call, buffers: &mut [HostBuffer<'_>]) {
        let p: Params = call.params();
        let [partials, out] = buffers else { unreachable!("two bindings") };
        let (partials, len) = (partials.f32(), p.len as usize);
        out.f32_mut()[..len].par_iter_mut().enumerate().for_each(|(i, out)| {
            let sum: f64 = (0..p.parts as usize).map(|q| f64::from(partials[q * len + i])).sum();
            let sum = p.alpha * sum as f32;
            *out = if p.accumulate == 1 { *out + sum } else { sum };
        });
    }

    fn cases(&self) -> Vec<Case> {
        let case = |parts, len, accumulate, alpha| {
            let params = Params { parts, len, accumulate, alpha };
            (format!("{parts}x{len}_accumulate{accumulate}"), Call::new(&params))
        };
        let mut cases: Vec<Case> =
            [(1, 1, 0, 1.0), (3, 65, 1, -0.5), (7, 63, 0, 2.0), (2, 1000, 1, 1.0)]
                .into_iter()
                .map(|(parts, len, accumulate, alpha)| {
                    let (name, call) = case(parts, len, accumulate, alpha);
                    Case::new(name, call)
                })
                .collect();
        let (name, call) = case(2, 16384, 1, 1.0);
        cases.push(Case::bench(format!("lora_{name}"), call));
        cases
    }

    fn buffers(&self, call: &Call, rng: &mut SeededRng) -> Vec<CaseBuffer> {
        let p: Params = call.params();
        let len = p.len as usize;
        let out = if p.accumulate == 1 {
            uniform_f32(rng, len, -1.0, 1.0)
        } else {
            CaseBuffer::Output(len)
        };
        vec![uniform_f32(rng, len * p.parts as usize, -1.0, 1.0), out]
    }

    fn work(&self, call: &Call) -> Work {
        let p: Params = call.params();
        let [parts, len] = [p.parts, p.len].map(u64::from);
        Work { bytes: 4 * len * (parts + 1 + u64::from(p.accumulate)), flops: parts * len }
    }

    fn tolerance(&self, call: &Call) -> Tolerance {
        let parts = call.params::<Params>().parts;
        Tolerance {
            abs: f32::EPSILON * parts as f32,
            rel: 1e-6,
            why: "an f32 sum over the parts, each of them below 1",
        }
    }
}
