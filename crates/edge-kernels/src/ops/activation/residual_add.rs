//! Sum of two activations.
//!
//! out\[i\] = a\[i\] + b\[i\]
//!
//! | tensor | shape     | dtype | role |
//! |--------|-----------|-------|------|
//! | a      | \[count\] | f32   | in   |
//! | b      | \[count\] | f32   | in   |
//! | out    | \[count\] | f32   | out  |
//!
//! How: one invocation per element, or per four. The gradient of both terms is that of `out`.
//! Accuracy: one rounding.
//! Cost: bound by bandwidth.

use crate::lanes;
use crate::op::{
    Binding, Call, Case, CaseBuffer, Dispatch, Field, HostBuffer, Op, Tolerance, Variant, Work,
    read, read_write,
};
use crate::util::{SeededRng, uniform_f32};

/// See the module.
pub struct ResidualAdd;

crate::params! {
    /// Parameters of `residual_add`.
    pub struct Params {
        /// Elements.
        count: u32,
    }
}

/// Writes `a + b` to `out`.
pub fn dispatch<B>(count: u32, a: B, b: B, out: B) -> Dispatch<B> {
    Dispatch::new(&ResidualAdd, Call::new(&Params { count }), vec![a, b, out])
}

impl Op for ResidualAdd {
    fn name(&self) -> &'static str {
        "residual_add"
    }

    fn shader(&self) -> &'static str {
        "activation/residual_add.wgsl"
    }

    fn bindings(&self, _: &Call) -> Vec<Binding> {
        vec![read("a"), read("b"), read_write("out")]
    }

    fn fields(&self) -> &'static [Field] {
        Params::FIELDS
    }

    fn variants(&self, call: &Call) -> Vec<Variant> {
        vec![lanes::variant(lanes::by_four(&[call.params::<Params>().count]))]
    }

    fn grid(&self, call: &Call, _: &Variant) -> [u32; 3] {
        let count = call.params::<Params>().count;
        lanes::grid(u64::from(count), lanes::by_four(&[count]), 256)
    }

    fn reference(&self, call: &Call, buffers: &mut [HostBuffer<'_>]) {
        let count = call.params::<Params>().count as usize;
        let [a, b, out] = buffers else { unreachable!("three bindings") };
        let (a, b) = (&a.f32()[..count], &b.f32()[..count]);
        lanes::map_in_place(&mut out.f32_mut()[..count], |i, _| a[i] + b[i]);
    }

    fn cases(&self) -> Vec<Case> {
        let call = |count| Call::new(&Params { count });
        let mut cases: Vec<Case> =
            [1, 4, 257, 1024, 1028].map(|n| Case::new(format!("{n}"), call(n))).into();
        cases.push(Case::bench("tinyllama_256", call(256 * 2048)));
        cases
    }

    fn buffers(&self, call: &Call, rng: &mut SeededRng) -> Vec<CaseBuffer> {
        let count = call.params::<Params>().count as usize;
        vec![
            uniform_f32(rng, count, -2.0, 2.0),
            uniform_f32(rng, count, -2.0, 2.0),
            CaseBuffer::Output(count),
        ]
    }

    fn work(&self, call: &Call) -> Work {
        let count = u64::from(call.params::<Params>().count);
        Work { bytes: 12 * count, flops: count }
    }

    fn tolerance(&self, _: &Call) -> Tolerance {
        Tolerance { abs: 1e-7, rel: 1e-6, why: "one rounding; subnormals may be flushed" }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn adds_what_is_there_and_no_more() {
        let a: Vec<u32> = [1.5_f32, -2.0, 3.0].map(f32::to_bits).into();
        let b: Vec<u32> = [0.25_f32, 2.0, -8.0].map(f32::to_bits).into();
        let mut out = vec![7.0_f32.to_bits(); 4];
        ResidualAdd.reference(
            &Call::new(&Params { count: 3 }),
            &mut [HostBuffer::Read(&a), HostBuffer::Read(&b), HostBuffer::ReadWrite(&mut out)],
        );
        assert_eq!(out, [1.75_f32, 0.0, -5.0, 7.0].map(f32::to_bits));
    }
}
