//! Norm of all gradients and the factor that clips it: the second half of gradient clipping.
//!
//! out\[0\] = norm = sqrt(sum of partials)
//! out\[1\] = min(1, max_norm / (norm + 1e-6)), or 1 if max_norm <= 0, as
//! `torch.nn.utils.clip_grad_norm_`
//!
//! | tensor   | shape     | dtype | role |
//! |----------|-----------|-------|------|
//! | partials | \[parts\] | f32   | in: sums of squares of all gradients |
//! | out      | \[2\]     | f32   | out: norm, scale; the scale is what `adamw` multiplies by |
//!
//! A norm that is not finite is for the host to see in `out[0]` before it trusts the step.
//!
//! How: one workgroup, in the same order each time.
//! Accuracy: terms of one sign in f32.
//! Cost: latency.

use crate::util::SeededRng;

use crate::op::{
    Binding, Call, Case, CaseBuffer, Dispatch, Field, HostBuffer, Op, Tolerance, Variant, Work,
    read, read_write,
};
use crate::ops::loss::reduce_variants;
use crate::util::uniform_f32;

/// See the module.
pub struct GradNormScale;

crate::params! {
    /// Parameters of `grad_norm_scale`.
    pub struct Params {
        /// Elements of `partials`.
        parts: u32,
        /// Norm to clip to; no clipping if not positive.
        max_norm: f32,
    }
}

/// Turns sums of squares into the norm and the clipping factor.
pub fn dispatch<B>(params: Params, partials: B, out: B) -> Dispatch<B> {
    Dispatch::new(&GradNormScale, Call::new(&params), vec![partials, out])
}

impl Op for GradNormScale {
    fn name(&self) -> &'static str {
        "grad_norm_scale"
    }

    fn shader(&self) -> &'static str {
        "optim/grad_norm_scale.wgsl"
    }

    fn bindings(&self, _: &Call) -> Vec<Binding> {
        vec![read("partials"), read_write("out")]
    }

    fn fields(&self) -> &'static [Field] {
        Params::FIELDS
    }

    fn variants(&self, call: &Call) -> Vec<Variant> {
        reduce_variants(call.params::<Params>().parts)
    }

    fn grid(&self, _: &Call, _: &Variant) -> [u32; 3] {
        [1, 1, 1]
    }

    fn reference(&self, call: &Call, buffers: &mut [HostBuffer<'_>]) {
        let p: Params = call.params();
        let [partials, out] = buffers else { unreachable!("two bindings") };
        let partials = &partials.f32()[..p.parts as usize];
        let norm = partials.iter().map(|&part| f64::from(part)).sum::<f64>().sqrt();
        let scale = if p.max_norm > 0.0 { f64::from(p.max_norm) / (norm + 1e-6) } else { 1.0 };
        out.f32_mut()[..2].copy_from_slice(&[norm as f32, scale.min(1.0) as f32]);
    }

    fn cases(&self) -> Vec<Case> {
        let case =
            |name: &str, parts, max_norm| Case::new(name, Call::new(&Params { parts, max_norm }));
        let bench = Params { parts: 2048, max_norm: 1.0 };
        vec![
            case("1_unclipped", 1, 0.0),
            case("1_below", 1, 50.0),
            case("7_above", 7, 0.5),
            case("257_above", 257, 1.0),
            case("1021_unclipped", 1021, -1.0),
            Case::bench("parts_2048", Call::new(&bench)),
        ]
    }

    fn buffers(&self, call: &Call, rng: &mut SeededRng) -> Vec<CaseBuffer> {
        let parts = call.params::<Params>().parts as usize;
        vec![uniform_f32(rng, parts, 0.1, 3.0), CaseBuffer::Output(2)]
    }

    fn work(&self, call: &Call) -> Work {
        let parts = u64::from(call.params::<Params>().parts);
        Work { bytes: 4 * (parts + 2), flops: parts }
    }

    fn tolerance(&self, _: &Call) -> Tolerance {
        Tolerance { abs: 0.0, rel: 5e-6, why: "f32 sum of one sign, a square root, a quotient" }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::loss::testing::{assert_close, check_op, floats, run, words};

    #[test]
    fn shader_and_cases() {
        check_op(&GradNormScale);
    }

    #[test]
    fn clips_only_what_is_longer() {
        let clip = |partials: &[f32], max_norm| {
            let p = Params { parts: partials.len() as u32, max_norm };
            floats(&run(dispatch(p, words(partials), vec![0; 2]))[1])
        };
        assert_close(&clip(&[9.0, 16.0], 1.0), &[5.0, 1.0 / (5.0 + 1e-6)], 0.0, 1e-6);
        assert_eq!(clip(&[9.0, 16.0], 10.0), [5.0, 1.0]);
        assert_eq!(clip(&[9.0, 16.0], 0.0), [5.0, 1.0]);
        assert_eq!(clip(&[0.0], 1.0), [0.0, 1.0]);
    }
}
