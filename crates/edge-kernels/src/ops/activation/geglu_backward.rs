//! GeGLU, backward, in place.
//!
//! d_up = d_out · g · s,  d_gate = d_out · up · s · (1 + g · (1 − s) · z'),
//! s = sigmoid(z),  z = 2 · √(2/π) · (g + 0.044715 · g³),  z' = dz/dg
//!
//! | tensor | shape     | dtype | role               |
//! |--------|-----------|-------|--------------------|
//! | d_out  | \[count\] | f32   | in                 |
//! | gate   | \[count\] | f32   | in, becomes d_gate |
//! | up     | \[count\] | f32   | in, becomes d_up   |
//!
//! How: one invocation per element, or per four; the sigmoid is recomputed. In place, because
//! nothing reads gate and up again.
//! Accuracy: 1 − s is computed by itself, since the difference cancels for large z;
//! z is that of g within ±16, behind which s is 0 or 1.
//! Cost: bound by bandwidth.

use rayon::prelude::*;

use crate::lanes;
use crate::op::{
    Binding, Call, Case, CaseBuffer, Dispatch, Field, HostBuffer, Op, Tolerance, Variant, Work,
    read, read_write,
};
use crate::ops::activation::geglu_forward::{argument, bounded, slope};
use crate::ops::activation::swiglu_forward::{gates, sigmoid};
use crate::util::{SeededRng, uniform_f32};

/// See the module.
pub struct GegluBackward;

crate::params! {
    /// Parameters of `geglu_backward`.
    pub struct Params {
        /// Elements.
        count: u32,
    }
}

/// Overwrites `gate` with its gradient and `up` with its own.
pub fn dispatch<B>(count: u32, d_out: B, gate: B, up: B) -> Dispatch<B> {
    Dispatch::new(&GegluBackward, Call::new(&Params { count }), vec![d_out, gate, up])
}

impl Op for GegluBackward {
    fn name(&self) -> &'static str {
        "geglu_backward"
    }

    fn shader(&self) -> &'static str {
        "activation/geglu_backward.wgsl"
    }

    fn bindings(&self, _: &Call) -> Vec<Binding> {
        vec![read("d_out"), read_write("gate"), read_write("up")]
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
        let [d_out, gate, up] = buffers else { unreachable!("three bindings") };
        let both = gate.f32_mut()[..count].par_iter_mut().zip(&mut up.f32_mut()[..count]);
        both.zip(&d_out.f32()[..count]).with_min_len(4096).for_each(|((gate, up), d)| {
            let (g, u) = (*gate, *up);
            let within = bounded(g);
            let z = argument(within);
            let s = sigmoid(z);
            *gate = d * u * s * (1.0 + within * sigmoid(-z) * slope(within));
            *up = d * g * s;
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
            uniform_f32(rng, count, -1.0, 1.0),
            CaseBuffer::F32(gates(rng, count)),
            uniform_f32(rng, count, -2.0, 2.0),
        ]
    }

    fn work(&self, call: &Call) -> Work {
        let count = u64::from(call.params::<Params>().count);
        Work { bytes: 20 * count, flops: 22 * count }
    }

    fn tolerance(&self, _: &Call) -> Tolerance {
        Tolerance {
            abs: 1e-5,
            rel: 5e-5,
            why: "exp of WGSL is within 3 + 2|x| ULP; d_gate has a zero near g = -0.75",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::util::uniform_vec;
    use rand::SeedableRng;

    fn forward(g: f64, u: f64) -> f64 {
        let z = (2.0 / std::f64::consts::PI).sqrt() * (g + 0.044715 * g.powi(3));
        0.5 * g * (1.0 + z.tanh()) * u
    }

    #[test]
    fn agrees_with_finite_differences() {
        let mut rng = SeededRng::seed_from_u64(2);
        let d_out = uniform_vec(&mut rng, 61, -1.0, 1.0);
        let gate = uniform_vec(&mut rng, 61, -8.0, 8.0);
        let up = uniform_vec(&mut rng, 61, -2.0, 2.0);
        let (mut d_gate, mut d_up) = (gate.clone(), up.clone());
        GegluBackward.reference(
            &Call::new(&Params { count: 61 }),
            &mut [
                HostBuffer::Read(bytemuck::cast_slice(&d_out)),
                HostBuffer::ReadWrite(bytemuck::cast_slice_mut(&mut d_gate)),
                HostBuffer::ReadWrite(bytemuck::cast_slice_mut(&mut d_up)),
            ],
        );
        let h = 1e-5;
        for i in 0..61 {
            let (d, g, u) = (f64::from(d_out[i]), f64::from(gate[i]), f64::from(up[i]));
            let by_gate = d * (forward(g + h, u) - forward(g - h, u)) / (2.0 * h);
            let by_up = d * (forward(g, u + h) - forward(g, u - h)) / (2.0 * h);
            assert!((f64::from(d_gate[i]) - by_gate).abs() < 2e-6, "{g}: {}", d_gate[i]);
            assert!((f64::from(d_up[i]) - by_up).abs() < 2e-6, "{g}: {}", d_up[i]);
        }
    }

    #[test]
    fn huge_gates_have_the_gradient_of_the_identity_or_none() {
        let (mut gate, mut up) = ([1e30_f32, -1e30], [2.0_f32, 2.0]);
        GegluBackward.reference(
            &Call::new(&Params { count: 2 }),
            &mut [
                HostBuffer::Read(bytemuck::cast_slice(&[0.5_f32, 0.5])),
                HostBuffer::ReadWrite(bytemuck::cast_slice_mut(&mut gate)),
                HostBuffer::ReadWrite(bytemuck::cast_slice_mut(&mut up)),
            ],
        );
        assert_eq!((gate, up), ([1.0, 0.0], [5e29, 0.0]));
    }
}
