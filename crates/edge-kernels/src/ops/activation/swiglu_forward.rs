//! SwiGLU, forward.
//!
//! out\[i\] = silu(gate\[i\]) · up\[i\],  silu(g) = g · sigmoid(g)
//!
//! | tensor | shape     | dtype | role |
//! |--------|-----------|-------|------|
//! | gate   | \[count\] | f32   | in   |
//! | up     | \[count\] | f32   | in   |
//! | out    | \[count\] | f32   | out  |
//!
//! How: one invocation per element, or per four.
//! Accuracy: the sigmoid is formed from exp(−|g|), so no magnitude of g overflows.
//! Cost: bound by bandwidth.
//! Source: Shazeer 2020, "GLU Variants Improve Transformer".

use crate::lanes;
use crate::op::{
    Binding, Call, Case, CaseBuffer, Dispatch, Field, HostBuffer, Op, Tolerance, Variant, Work,
    read, read_write,
};
use crate::util::{SeededRng, uniform_f32};

/// See the module.
pub struct SwigluForward;

crate::params! {
    /// Parameters of `swiglu_forward`.
    pub struct Params {
        /// Elements.
        count: u32,
    }
}

/// Writes `silu(gate) * up` to `out`.
pub fn dispatch<B>(count: u32, gate: B, up: B, out: B) -> Dispatch<B> {
    Dispatch::new(&SwigluForward, Call::new(&Params { count }), vec![gate, up, out])
}

/// `1 / (1 + exp(-g))`, finite steps only.
pub(crate) fn sigmoid(g: f32) -> f32 {
    let small = (-g.abs()).exp();
    let numerator = if g >= 0.0 { 1.0 } else { small };
    numerator / (1.0 + small)
}

impl Op for SwigluForward {
    fn name(&self) -> &'static str {
        "swiglu_forward"
    }

    fn shader(&self) -> &'static str {
        "activation/swiglu_forward.wgsl"
    }

    fn bindings(&self, _: &Call) -> Vec<Binding> {
        vec![read("gate"), read("up"), read_write("out")]
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
        let [gate, up, out] = buffers else { unreachable!("three bindings") };
        let (gate, up) = (&gate.f32()[..count], &up.f32()[..count]);
        lanes::map_in_place(&mut out.f32_mut()[..count], |i, _| gate[i] * sigmoid(gate[i]) * up[i]);
    }

    fn cases(&self) -> Vec<Case> {
        let call = |count| Call::new(&Params { count });
        let mut cases: Vec<Case> =
            [1, 8, 257, 1024, 1028].map(|n| Case::new(format!("{n}"), call(n))).into();
        cases.push(Case::bench("tinyllama_256", call(256 * 5632)));
        cases
    }

    fn buffers(&self, call: &Call, rng: &mut SeededRng) -> Vec<CaseBuffer> {
        let count = call.params::<Params>().count as usize;
        vec![
            CaseBuffer::F32(gates(rng, count)),
            uniform_f32(rng, count, -2.0, 2.0),
            CaseBuffer::Output(count),
        ]
    }

    fn work(&self, call: &Call) -> Work {
        let count = u64::from(call.params::<Params>().count);
        Work { bytes: 12 * count, flops: 6 * count }
    }

    fn tolerance(&self, _: &Call) -> Tolerance {
        Tolerance { abs: 1e-6, rel: 1e-5, why: "exp of WGSL is within 3 + 2|x| ULP" }
    }
}

/// Gates of ordinary size, with some so large that a naive sigmoid would overflow.
pub(crate) fn gates(rng: &mut SeededRng, count: usize) -> Vec<f32> {
    let mut gates = crate::util::uniform_vec(rng, count, -6.0, 6.0);
    for (index, value) in [(3, -120.0), (5, 120.0), (6, 1e30), (7, -1e30)] {
        if let Some(gate) = gates.get_mut(index) {
            *gate = value;
        }
    }
    gates
}

#[cfg(test)]
mod tests {
    use super::*;
    use rand::SeedableRng;

    #[test]
    fn agrees_with_the_formula_in_f64() {
        let mut rng = SeededRng::seed_from_u64(1);
        let gate = gates(&mut rng, 100);
        let up = crate::util::uniform_vec(&mut rng, 100, -2.0, 2.0);
        let mut out = vec![0.0_f32; 100];
        SwigluForward.reference(
            &Call::new(&Params { count: 100 }),
            &mut [
                HostBuffer::Read(bytemuck::cast_slice(&gate)),
                HostBuffer::Read(bytemuck::cast_slice(&up)),
                HostBuffer::ReadWrite(bytemuck::cast_slice_mut(&mut out)),
            ],
        );
        for i in 0..100 {
            let (g, u) = (f64::from(gate[i]), f64::from(up[i]));
            let want = g / (1.0 + (-g).exp()) * u;
            let got = f64::from(out[i]);
            assert!((got - want).abs() <= 1e-6 * want.abs() + 1e-12, "{g} {u}: {got} {want}");
        }
    }
}
