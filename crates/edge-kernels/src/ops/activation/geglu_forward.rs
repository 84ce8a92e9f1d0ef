//! GeGLU, forward: the gate through GELU in its tanh approximation.
//!
//! out\[i\] = gelu(gate\[i\]) · up\[i\],  gelu(g) = 0.5 · g · (1 + tanh(z / 2)) = g · sigmoid(z),
//! z = 2 · √(2/π) · (g + 0.044715 · g³)
//!
//! | tensor | shape     | dtype | role |
//! |--------|-----------|-------|------|
//! | gate   | \[count\] | f32   | in   |
//! | up     | \[count\] | f32   | in   |
//! | out    | \[count\] | f32   | out  |
//!
//! How: one invocation per element, or per four.
//! Accuracy: z is that of g within ±16, behind which the sigmoid is 0 or 1; it is formed from
//! exp(−|z|), so no magnitude of g overflows.
//! Cost: bound by bandwidth.
//! Source: Shazeer 2020, "GLU Variants Improve Transformer"; Hendrycks & Gimpel 2016 for GELU.

use crate::lanes;
use crate::op::{
    Binding, Call, Case, CaseBuffer, Dispatch, Field, HostBuffer, Op, Tolerance, Variant, Work,
    read, read_write,
};
use crate::ops::activation::swiglu_forward::{gates, sigmoid};
use crate::util::{SeededRng, uniform_f32};

/// See the module.
pub struct GegluForward;

crate::params! {
    /// Parameters of `geglu_forward`.
    pub struct Params {
        /// Elements.
        count: u32,
    }
}

/// Writes `gelu(gate) * up` to `out`.
pub fn dispatch<B>(count: u32, gate: B, up: B, out: B) -> Dispatch<B> {
    Dispatch::new(&GegluForward, Call::new(&Params { count }), vec![gate, up, out])
}

/// `2 · √(2/π)`.
const SLOPE: f32 = 1.595_769_2;
/// Weight of the cube in the tanh approximation of GELU.
const CUBE: f32 = 0.044_715;

/// The gate within the bounds behind which its sigmoid is 0 or 1.
pub(crate) fn bounded(g: f32) -> f32 {
    g.clamp(-16.0, 16.0)
}

/// What the sigmoid is taken of, for a bounded gate.
pub(crate) fn argument(g: f32) -> f32 {
    SLOPE * (g + CUBE * g * g * g)
}

/// Derivative of [`argument`].
pub(crate) fn slope(g: f32) -> f32 {
    SLOPE * (1.0 + 3.0 * CUBE * g * g)
}

impl Op for GegluForward {
    fn name(&self) -> &'static str {
        "geglu_forward"
    }

    fn shader(&self) -> &'static str {
        "activation/geglu_forward.wgsl"
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
        lanes::map_in_place(&mut out.f32_mut()[..count], |i, _| {
            gate[i] * sigmoid(argument(bounded(gate[i]))) * up[i]
        });
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
        Work { bytes: 12 * count, flops: 11 * count }
    }

    fn tolerance(&self, _: &Call) -> Tolerance {
        Tolerance {
            abs: 2e-6,
            rel: 5e-5,
            why: "exp of WGSL is within 3 + 2|x| ULP, and x grows with the gate's cube",
        }
    }
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
        GegluForward.reference(
            &Call::new(&Params { count: 100 }),
            &mut [
                HostBuffer::Read(bytemuck::cast_slice(&gate)),
                HostBuffer::Read(bytemuck::cast_slice(&up)),
                HostBuffer::ReadWrite(bytemuck::cast_slice_mut(&mut out)),
            ],
        );
        for i in 0..100 {
            let (g, u) = (f64::from(gate[i]), f64::from(up[i]));
            let z = (2.0 / std::f64::consts::PI).sqrt() * (g + 0.044715 * g.powi(3));
            let want = 0.5 * g * (1.0 + z.tanh()) * u;
            let got = f64::from(out[i]);
            assert!((got - want).abs() <= 2e-6 * want.abs() + 1e-6, "{g} {u}: {got} {want}");
        }
    }
}
