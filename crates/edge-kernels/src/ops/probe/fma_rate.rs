//! Chains of multiply-adds in registers: how fast a device multiplies and adds.
//!
//! y\[i\] = Σ_j v_j, where v_j = x\[i\] + j for j in 0..12, then `steps` times v_j = a · v_j + b
//!
//! | tensor | shape     | dtype | role |
//! |--------|-----------|-------|------|
//! | x      | \[count\] | f32   | in   |
//! | y      | \[count\] | f32   | out  |
//!
//! How: twelve independent chains hide the latency of an instruction, or of a multiplication and
//! an addition where they are two, and still fit in sixteen registers with `a` and `b`.
//! Accuracy: |a| <= 1/2 shrinks earlier roundings, so that any number of steps is as good as two.
//! Cost: bound by arithmetic, 24 operations a step and element.

use rayon::prelude::*;

use crate::op::{
    Binding, Call, Case, CaseBuffer, Dispatch, Field, HostBuffer, Op, Tolerance, Variant, Work,
    read, read_write,
};
use crate::util::{SeededRng, fold_grid, uniform_f32};

/// Chains of an element.
const CHAINS: u32 = 12;

/// Steps that the shader unrolls.
pub const UNROLLED: u32 = 16;

/// Invocations in a workgroup.
const WG: u32 = 64;

/// See the module.
pub struct FmaRate;

crate::params! {
    /// Parameters of `fma_rate`.
    pub struct Params {
        /// Elements.
        count: u32,
        /// Steps of each chain: a multiple of [`UNROLLED`].
        steps: u32,
        /// Factor of a step, at most 1/2 in size.
        a: f32,
        /// Summand of a step.
        b: f32,
    }
}

impl Params {
    /// `count` elements, `steps` steps, and factors that change every value.
    ///
    /// # Panics
    /// When `steps` is not a multiple of [`UNROLLED`].
    pub fn new(count: u32, steps: u32) -> Self {
        assert!(steps.is_multiple_of(UNROLLED), "{steps} steps: the shader unrolls {UNROLLED}");
        Self { count, steps, a: -0.4375, b: 0.75 }
    }
}

/// Runs the chains of `x [count]` and stores their sums in `y [count]`.
pub fn dispatch<B>(params: Params, x: B, y: B) -> Dispatch<B> {
    Dispatch::new(&FmaRate, Call::new(&params), vec![x, y])
}

impl Op for FmaRate {
    fn name(&self) -> &'static str {
        "fma_rate"
    }

    fn shader(&self) -> &'static str {
        "probe/fma_rate.wgsl"
    }

    fn bindings(&self, _: &Call) -> Vec<Binding> {
        vec![read("x"), read_write("y")]
    }

    fn fields(&self) -> &'static [Field] {
        Params::FIELDS
    }

    fn variants(&self, _: &Call) -> Vec<Variant> {
        let named = |name, fused| Variant::named(name).spec("FUSED", fused);
        // Which of them a driver turns into the fast instruction is what is being asked.
        vec![named("fused", 1), named("separate", 0)]
    }

    fn grid(&self, call: &Call, _: &Variant) -> [u32; 3] {
        fold_grid(call.params::<Params>().count.div_ceil(WG))
    }

    /// By the sum of the geometric series: v = aˢ v₀ + b (1 - aˢ) / (1 - a).
    fn reference(&self, call: &Call, buffers: &mut [HostBuffer<'_>]) {
        let p: Params = call.params();
        let [x, y] = buffers else { unreachable!("two bindings") };
        let (a, b) = (f64::from(p.a), f64::from(p.b));
        let power = a.powf(f64::from(p.steps));
        let rest = b * (1.0 - power) / (1.0 - a);
        let chains = f64::from(CHAINS);
        // The chains start at x, x + 1, …
        let starts = chains * (chains - 1.0) / 2.0;
        let y = &mut y.f32_mut()[..p.count as usize];
        y.par_iter_mut().zip(x.f32()).for_each(|(y, x)| {
            *y = (power * (chains * f64::from(*x) + starts) + chains * rest) as f32;
        });
    }

    fn cases(&self) -> Vec<Case> {
        let mut cases: Vec<Case> = [(1, 16), (63, 0), (257, 32)]
            .map(|(count, steps)| {
                Case::new(format!("{count}x{steps}"), Call::new(&Params::new(count, steps)))
            })
            .into();
        cases.push(Case::bench("65536x1024", Call::new(&Params::new(1 << 16, 1024))));
        cases
    }

    fn buffers(&self, call: &Call, rng: &mut SeededRng) -> Vec<CaseBuffer> {
        let count = call.params::<Params>().count as usize;
        vec![uniform_f32(rng, count, -1.0, 1.0), CaseBuffer::Output(count)]
    }

    fn work(&self, call: &Call) -> Work {
        let p: Params = call.params();
        let count = u64::from(p.count);
        Work { bytes: 8 * count, flops: 2 * u64::from(CHAINS) * count * u64::from(p.steps) }
    }

    fn tolerance(&self, _: &Call) -> Tolerance {
        Tolerance {
            abs: 1e-5,
            rel: 4e-6,
            why: "a few roundings of each chain, and of the sum of twelve",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_series_is_the_recurrence() {
        let p = Params::new(2, 48);
        let x = [0.3_f32, -0.9].map(f32::to_bits);
        for steps in [0, 16, 48] {
            let mut y = [0_u32; 2];
            let call = Call::new(&Params { steps, ..p });
            FmaRate.reference(&call, &mut [HostBuffer::Read(&x), HostBuffer::ReadWrite(&mut y)]);
            for (x, y) in x.map(f32::from_bits).iter().zip(y.map(f32::from_bits)) {
                let chain = |j: u32| {
                    let start = f64::from(*x) + f64::from(j);
                    (0..steps).fold(start, |v, _| f64::from(p.a) * v + f64::from(p.b))
                };
                let want: f64 = (0..CHAINS).map(chain).sum();
                assert!((f64::from(y) - want).abs() < 1e-5, "{steps} steps: {y}, not {want}");
            }
        }
    }

    /// Sixteen steps must leave enough of the start for a shader that skips one to be found out.
    #[test]
    fn the_cases_tell_a_missing_step() {
        let x = [0.5_f32.to_bits()];
        let [all, fewer] = [16, 15].map(|steps| {
            let mut y = [0_u32];
            let call = Call::new(&Params { steps, ..Params::new(1, 16) });
            FmaRate.reference(&call, &mut [HostBuffer::Read(&x), HostBuffer::ReadWrite(&mut y)]);
            f32::from_bits(y[0])
        });
        let Tolerance { abs, rel, .. } = FmaRate.tolerance(&Call::new(&Params::new(1, 16)));
        assert!((all - fewer).abs() > 4.0 * (abs + rel * all.abs()), "{all} and {fewer}");
    }
}
