//! AdamW, one step, in place (Loshchilov and Hutter, 2019; the order of `torch.optim.AdamW`).
//!
//! g = clip\[1\] · grad;  p -= lr · weight_decay · p;  m += (1 - beta1) · (g - m);
//! v = beta2 · v + (1 - beta2) · g²;
//! p -= lr / correction1 · m / (sqrt(v) / sqrt(correction2) + eps)
//!
//! | tensor | shape     | dtype | role |
//! |--------|-----------|-------|------|
//! | param  | \[count\] | f32   | in and out |
//! | grad   | \[count\] | f32   | in |
//! | m      | \[count\] | f32   | in and out: first moment, 0 before the first step |
//! | v      | \[count\] | f32   | in and out: second moment, 0 before the first step |
//! | clip   | \[2\]     | f32   | in: norm and scale of `grad_norm_scale` |
//!
//! How: one lane an element.
//! Accuracy: elementwise f32.
//! Cost: bound by bandwidth, 28 bytes an element.

use crate::util::SeededRng;
use rayon::prelude::*;

use crate::op::{
    Binding, Call, Case, CaseBuffer, Dispatch, Field, HostBuffer, Op, Tolerance, Variant, Work,
    read, read_write,
};
use crate::util::{fold_grid, uniform_f32};

/// Lanes of a workgroup, and elements of a task on the host times 16.
const WG: u32 = 256;

/// See the module.
pub struct Adamw;

crate::params! {
    /// Parameters of `adamw`.
    pub struct Params {
        /// Elements.
        count: u32,
        /// Learning rate of this step.
        lr: f32,
        /// Decay of the first moment.
        beta1: f32,
        /// Decay of the second moment.
        beta2: f32,
        /// Added to the denominator.
        eps: f32,
        /// Decoupled weight decay, multiplied by the learning rate.
        weight_decay: f32,
        /// 1 - beta1^step, see [`correction`].
        correction1: f32,
        /// 1 - beta2^step, see [`correction`].
        correction2: f32,
    }
}

/// Bias correction 1 - beta^step of a moment at the 1-based `step`, from the f32 beta that the
/// update itself uses, so that the first step has exactly the gradient's own size.
pub fn correction(beta: f32, step: u32) -> f32 {
    (1.0 - f64::from(beta).powf(f64::from(step))) as f32
}

/// Updates `param`, `m` and `v`.
pub fn dispatch<B>(params: Params, param: B, grad: B, m: B, v: B, clip: B) -> Dispatch<B> {
    Dispatch::new(&Adamw, Call::new(&params), vec![param, grad, m, v, clip])
}

impl Op for Adamw {
    fn name(&self) -> &'static str {
        "adamw"
    }

    fn shader(&self) -> &'static str {
        "optim/adamw.wgsl"
    }

    fn bindings(&self, _: &Call) -> Vec<Binding> {
        vec![read_write("param"), read("grad"), read_write("m"), read_write("v"), read("clip")]
    }

    fn fields(&self) -> &'static [Field] {
        Params::FIELDS
    }

    fn variants(&self, _: &Call) -> Vec<Variant> {
        vec![Variant::plain().spec("WG", WG)]
    }

    fn grid(&self, call: &Call, _: &Variant) -> [u32; 3] {
        fold_grid(call.params::<Params>().count.div_ceil(WG))
    }

    fn reference(&self, call: &Call, buffers: &mut [HostBuffer<'_>]) {
        let p: Params = call.params();
        let [param, grad, m, v, clip] = buffers else { unreachable!("five bindings") };
        let (count, scale, task) = (p.count as usize, clip.f32()[1], 16 * WG as usize);
        let root2 = p.correction2.sqrt();
        let moments = m.f32_mut()[..count]
            .par_chunks_mut(task)
            .zip(v.f32_mut()[..count].par_chunks_mut(task));
        let values =
            param.f32_mut()[..count].par_chunks_mut(task).zip(grad.f32()[..count].par_chunks(task));
        values.zip(moments).for_each(|((param, grad), (m, v))| {
            for i in 0..param.len() {
                let g = scale * grad[i];
                m[i] += (1.0 - p.beta1) * (g - m[i]);
                v[i] = p.beta2 * v[i] + (1.0 - p.beta2) * g * g;
                let denominator = v[i].sqrt() / root2 + p.eps;
                let decayed = param[i] - p.lr * p.weight_decay * param[i];
                param[i] = decayed - p.lr / p.correction1 * m[i] / denominator;
            }
        });
    }

    fn cases(&self) -> Vec<Case> {
        let params = |count, step, weight_decay| Params {
            count,
            lr: 1e-3,
            beta1: 0.9,
            beta2: 0.999,
            eps: 1e-8,
            weight_decay,
            correction1: correction(0.9, step),
            correction2: correction(0.999, step),
        };
        let case = |name: &str, count, step, weight_decay| {
            Case::new(name, Call::new(&params(count, step, weight_decay)))
        };
        vec![
            case("1", 1, 1, 0.0),
            case("67_decay", 67, 2, 0.1),
            case("256", 256, 10, 0.01),
            case("257", 257, 100, 0.0),
            Case::new("67_large_eps", Call::new(&Params { eps: 0.1, ..params(67, 2, 0.1) })),
            case("4099_decay", 4099, 1000, 0.1),
            Case::bench("4m", Call::new(&params(4 << 20, 10, 0.01))),
        ]
    }

    fn buffers(&self, call: &Call, rng: &mut SeededRng) -> Vec<CaseBuffer> {
        let count = call.params::<Params>().count as usize;
        vec![
            uniform_f32(rng, count, -1.0, 1.0),
            uniform_f32(rng, count, -2.0, 2.0),
            uniform_f32(rng, count, -0.5, 0.5),
            uniform_f32(rng, count, 0.0, 0.3),
            uniform_f32(rng, 2, 0.5, 1.0),
        ]
    }

    fn work(&self, call: &Call) -> Work {
        let count = u64::from(call.params::<Params>().count);
        Work { bytes: 28 * count + 4, flops: 16 * count }
    }

    fn tolerance(&self, _: &Call) -> Tolerance {
        Tolerance { abs: 1e-6, rel: 2e-6, why: "elementwise; square root and quotient in f32" }
    }
}

#[cfg(test)]
mod tests {
    use super::super::{grad_norm_scale, sum_squares};
    use super::*;
    use crate::ops::loss::testing::{assert_close, check_op, floats, run, words};
    use crate::util::uniform_vec;
    use rand::SeedableRng;

    #[test]
    fn shader_and_cases() {
        check_op(&Adamw);
    }

    const COUNT: usize = 301;
    const LR: f64 = 1e-2;
    const DECAY: f64 = 0.1;
    const MAX_NORM: f64 = 1.0;

    /// torch.nn.utils.clip_grad_norm_ and torch.optim.AdamW, single tensor, in f64.
    fn torch_step(p: &mut [f64], grad: &[f32], m: &mut [f64], v: &mut [f64], step: i32) {
        let (beta1, beta2, eps) = (0.9_f64, 0.999_f64, 1e-8);
        let norm = grad.iter().map(|&g| f64::from(g).powi(2)).sum::<f64>().sqrt();
        let scale = (MAX_NORM / (norm + 1e-6)).min(1.0);
        let step_size = LR / (1.0 - beta1.powi(step));
        let root2 = (1.0 - beta2.powi(step)).sqrt();
        for i in 0..p.len() {
            let g = f64::from(grad[i]) * scale;
            p[i] *= 1.0 - LR * DECAY;
            m[i] = beta1 * m[i] + (1.0 - beta1) * g;
            v[i] = beta2 * v[i] + (1.0 - beta2) * g * g;
            p[i] -= step_size * m[i] / (v[i].sqrt() / root2 + eps);
        }
    }

    #[test]
    fn several_steps_agree_with_torch() {
        let mut rng = SeededRng::seed_from_u64(5);
        let start = uniform_vec(&mut rng, COUNT, -1.0, 1.0);
        let mut want: Vec<f64> = start.iter().map(|&p| f64::from(p)).collect();
        let (mut want_m, mut want_v) = (vec![0.0; COUNT], vec![0.0; COUNT]);
        let (mut param, mut m, mut v) = (words(&start), vec![0; COUNT], vec![0; COUNT]);
        let mut clipped = 0;
        for step in 1..=7 {
            // The steps differ in size, so that some are clipped and some are not.
            let size = [2.0, 0.01, 1.0, 0.05, 3.0, 0.02, 0.3][step - 1];
            let grad = uniform_vec(&mut rng, COUNT, -size, size);
            let parts = sum_squares::Params { count: COUNT as u32, part0: 0, parts: 3 };
            let parts = run(sum_squares::dispatch(parts, words(&grad), vec![0; 3])).remove(1);
            let clip = grad_norm_scale::Params { parts: 3, max_norm: MAX_NORM as f32 };
            let clip = run(grad_norm_scale::dispatch(clip, parts, vec![0; 2])).remove(1);
            clipped += usize::from(floats(&clip)[1] < 1.0);
            let p = Params {
                count: COUNT as u32,
                lr: LR as f32,
                beta1: 0.9,
                beta2: 0.999,
                eps: 1e-8,
                weight_decay: DECAY as f32,
                correction1: correction(0.9, step as u32),
                correction2: correction(0.999, step as u32),
            };
            let out = run(dispatch(p, param, words(&grad), m, v, clip));
            [param, m, v] = [out[0].clone(), out[2].clone(), out[3].clone()];
            torch_step(&mut want, &grad, &mut want_m, &mut want_v, step as i32);
            assert_close(&floats(&param), &want, 1e-6, 1e-6);
            assert_close(&floats(&m), &want_m, 1e-7, 2e-6);
            // 1 - beta2 with beta2 in f32 is 1.3e-5 off 0.001.
            assert_close(&floats(&v), &want_v, 1e-12, 2e-5);
        }
        assert!(clipped > 0 && clipped < 7, "{clipped} of 7 steps clipped");
    }

    #[test]
    fn a_zero_gradient_only_decays() {
        let p = Params {
            count: 2,
            lr: 0.5,
            beta1: 0.9,
            beta2: 0.999,
            eps: 1e-8,
            weight_decay: 0.5,
            correction1: correction(0.9, 1),
            correction2: correction(0.999, 1),
        };
        let zero = || vec![0; 2];
        let param = words(&[4.0, -8.0]);
        let got = run(dispatch(p, param, zero(), zero(), zero(), words(&[0.0, 1.0])));
        assert_eq!(floats(&got[0]), [3.0, -6.0]);
    }
}
