//! AdamW with moments in 8 bits, one step, in place: block-wise quantisation as in Dettmers et
//! al. 2021 (arXiv 2110.02861), with another code and stochastic rounding.
//!
//! The update is that of [`adamw`] with the moments before they are rounded. Then
//! m and v are rounded to f32 of three mantissa bits, up or down at random with the expectation
//! of what was computed, and stored by code: v by 8 bits, m by a sign and 7. The largest of a
//! block of 256, rounded up, has the highest code, each code below is the next smaller number of
//! three mantissa bits, and 0 is 0. So a block of v spans 31.7 octaves, and one of m 15.7. What is
//! smaller is 0 in m and the smallest code in v, which must not become 0: m / sqrt(v) would be
//! huge.
//!
//! | tensor  | shape          | dtype | role |
//! |---------|----------------|-------|------|
//! | param   | \[count\]      | f32   | in and out |
//! | grad    | \[count\]      | f32   | in |
//! | m       | \[blocks, 64\] | u32   | in and out: codes of the first moment, at first 0 |
//! | v       | \[blocks, 64\] | u32   | in and out: codes of the second moment, at first 0 |
//! | largest | \[blocks, 2\]  | f32   | in and out: of m and of v by block, at first 0 |
//! | clip    | \[2\]          | f32   | in: norm and scale of `grad_norm_scale` |
//!
//! Byte j of word w of a block is its element w + 64 j; `blocks` is ceil(count / 256).
//!
//! *Rationale:* a code by exponent instead of the paper's map. Over 1200 steps of Gaussian
//! gradients whose scales differ by a factor of e^(1.5 z) within a block, z normal, the update is
//! 12 % off that of moments in f32 (root mean square), and as much with equal scales. The paper's
//! map with rounding to nearest is 7 % off with nearly equal scales (e^(0.5 z)), but rounds small
//! second moments to 0 and makes updates of 10⁴ with unequal ones. Numbers in
//! `shaders/REJECTED.md`. Rounding must be random in v, of which a step changes a thousandth: to
//! nearest, it would never move. Cutting mantissas needs no division and no search, and gives the
//! same bits on every device.
//!
//! How: one workgroup a block, four elements a lane; 256 elements are 64 lanes of one word.
//! Accuracy: the update is elementwise f32; a moment is stored with an error below one part in 8.
//! Cost: bound by bandwidth, 16 bytes an element.

use crate::util::SeededRng;
use rand::RngExt;
use rayon::prelude::*;

use super::adamw;
use crate::op::{
    Binding, Call, Case, CaseBuffer, Dispatch, Field, HostBuffer, Needs, Op, Tolerance, Variant,
    Work, read, read_write,
};
use crate::util::{fold_grid, uniform_f32};

/// Elements of a block.
pub const BLOCK: u32 = 256;

/// Words of a block of codes.
const WORDS: usize = BLOCK as usize / 4;

/// Bits of a mantissa that are cut off.
const CUT: u32 = 20;

/// Bits of the smallest normal f32: what is below is 0, also where subnormals exist.
const NORMAL: u32 = 0x0080_0000;

/// Highest code of m and of v.
const LEVELS: [u32; 2] = [127, 255];

/// See the module.
pub struct Adamw8bit;

crate::params! {
    /// Parameters of `adamw_8bit`.
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
        /// 1 - beta1^step.
        correction1: f32,
        /// 1 - beta2^step.
        correction2: f32,
        /// Seed of the rounding: another one at each step.
        seed: u32,
    }
}

impl From<(adamw::Params, u32)> for Params {
    /// The parameters of [`adamw`] and a seed.
    fn from((p, seed): (adamw::Params, u32)) -> Self {
        let adamw::Params { count, lr, beta1, beta2, eps, .. } = p;
        let adamw::Params { weight_decay, correction1, correction2, .. } = p;
        Self { count, lr, beta1, beta2, eps, weight_decay, correction1, correction2, seed }
    }
}

/// Words of the codes of one moment of `count` elements.
pub fn moment_words(count: u64) -> u64 {
    count.div_ceil(BLOCK.into()) * WORDS as u64
}

/// Words of `largest` for `count` elements.
pub fn largest_words(count: u64) -> u64 {
    2 * count.div_ceil(BLOCK.into())
}

/// Updates `param` and the moments: `state` is m, v and largest.
pub fn dispatch<B>(params: Params, param: B, grad: B, state: [B; 3], clip: B) -> Dispatch<B> {
    let [m, v, largest] = state;
    Dispatch::new(&Adamw8bit, Call::new(&params), vec![param, grad, m, v, largest, clip])
}

/// PCG-RXS-M-XS (Jarzynski and Olano 2020, "Hash functions for GPU rendering").
fn hash(x: u32) -> u32 {
    let state = x.wrapping_mul(747_796_405).wrapping_add(2_891_336_453);
    let word = ((state >> ((state >> 28) + 4)) ^ state).wrapping_mul(277_803_737);
    (word >> 22) ^ word
}

/// The number of `code`, where `top` has code `levels`.
fn decode(code: u32, top: u32, levels: u32) -> f32 {
    let key = (top + code) as i32 - levels as i32;
    f32::from_bits(if code > 0 && key >= 8 { (key as u32) << CUT } else { 0 })
}

/// The code of `x` >= 0, at least `least` unless x is 0.
fn encode(x: f32, random: u32, top: u32, levels: u32, least: i32) -> u32 {
    let bits = x.to_bits();
    let key = (bits + (random >> (32 - CUT))) >> CUT;
    let code = ((key + levels) as i32 - top as i32).max(least) as u32;
    if bits < NORMAL { 0 } else { code }
}

/// The cut of the largest moment of a block: no moment of it rounds to more.
fn top_of(x: f32) -> u32 {
    if x.to_bits() < NORMAL { 0 } else { (x.to_bits() + (1 << CUT) - 1) >> CUT }
}

/// Both moments of a block's elements.
struct Moments {
    m: [f32; BLOCK as usize],
    v: [f32; BLOCK as usize],
}

/// Codes and largest numbers of a block.
struct State<'a> {
    m: &'a mut [u32],
    v: &'a mut [u32],
    largest: &'a mut [f32],
}

impl State<'_> {
    fn read(&self) -> Moments {
        let [m_top, v_top] = [0, 1].map(|which: usize| self.largest[which].to_bits() >> CUT);
        let mut out = Moments { m: [0.0; BLOCK as usize], v: [0.0; BLOCK as usize] };
        let rows = out.m.chunks_exact_mut(WORDS).zip(out.v.chunks_exact_mut(WORDS));
        for (j, (m, v)) in rows.enumerate() {
            for (m, word) in m.iter_mut().zip(&*self.m) {
                let code = word >> (8 * j) & 255;
                let size = decode(code & 127, m_top, LEVELS[0]);
                *m = f32::from_bits(size.to_bits() | (code & 128) << 24);
            }
            for (v, word) in v.iter_mut().zip(&*self.v) {
                *v = decode(word >> (8 * j) & 255, v_top, LEVELS[1]);
            }
        }
        out
    }

    /// Rounds and stores moments, 0 behind the last element; the block begins at element `first`.
    fn write(&mut self, moments: &Moments, first: u32, salt: u32) {
        let most = |x: &[f32]| x.iter().fold(0.0_f32, |most, x| most.max(x.abs()));
        let [m_top, v_top] = [&moments.m, &moments.v].map(|x| top_of(most(x)));
        for w in 0..WORDS {
            let (mut m_word, mut v_word) = (0, 0);
            for j in 0..BLOCK as usize / WORDS {
                let i = j * WORDS + w;
                let (m, random) = (moments.m[i], hash((first + i as u32) ^ salt));
                let code = encode(m.abs(), random, m_top, LEVELS[0], 0);
                let sign = if m < 0.0 && code > 0 { 128 } else { 0 };
                m_word |= (code | sign) << (8 * j);
                let code = encode(moments.v[i], hash(random), v_top, LEVELS[1], 1);
                v_word |= code << (8 * j);
            }
            self.m[w] = m_word;
            self.v[w] = v_word;
        }
        self.largest.copy_from_slice(&[m_top, v_top].map(|top| f32::from_bits(top << CUT)));
    }
}

impl Op for Adamw8bit {
    fn name(&self) -> &'static str {
        "adamw_8bit"
    }

    fn shader(&self) -> &'static str {
        "optim/adamw_8bit.wgsl"
    }

    fn bindings(&self, _: &Call) -> Vec<Binding> {
        vec![
            read_write("param"),
            read("grad"),
            read_write("m"),
            read_write("v"),
            read_write("largest"),
            read("clip"),
        ]
    }

    fn fields(&self) -> &'static [Field] {
        Params::FIELDS
    }

    fn variants(&self, _: &Call) -> Vec<Variant> {
        let needs = Needs { subgroups: true, ..Needs::default() };
        let subgroup = Variant::named("subgroup")
            .fragment("lib/reduce.wgsl", "lib/reduce_subgroup.wgsl")
            .needs(needs);
        vec![subgroup, Variant::plain()]
    }

    fn grid(&self, call: &Call, _: &Variant) -> [u32; 3] {
        fold_grid(call.params::<Params>().count.div_ceil(BLOCK))
    }

    fn reference(&self, call: &Call, buffers: &mut [HostBuffer<'_>]) {
        let p: Params = call.params();
        let [param, grad, m, v, largest, clip] = buffers else { unreachable!("six bindings") };
        let (count, scale, salt) = (p.count as usize, clip.f32()[1], hash(p.seed));
        let root2 = p.correction2.sqrt();
        let codes = m.u32_mut().par_chunks_mut(WORDS).zip(v.u32_mut().par_chunks_mut(WORDS));
        let state = codes.zip(largest.f32_mut().par_chunks_mut(2));
        let params = param.f32_mut()[..count].par_chunks_mut(BLOCK as usize);
        let blocks = params.zip(grad.f32()[..count].par_chunks(BLOCK as usize)).zip(state);
        blocks.enumerate().for_each(|(block, ((param, grad), ((m, v), largest)))| {
            let mut state = State { m, v, largest };
            let mut moments = state.read();
            let Moments { m, v } = &mut moments;
            for (((param, grad), m), v) in param.iter_mut().zip(grad).zip(&mut *m).zip(&mut *v) {
                let g = scale * grad;
                *m += (1.0 - p.beta1) * (g - *m);
                *v = p.beta2 * *v + (1.0 - p.beta2) * g * g;
                let denominator = v.sqrt() / root2 + p.eps;
                let decayed = *param - p.lr * p.weight_decay * *param;
                *param = decayed - p.lr / p.correction1 * *m / denominator;
            }
            // Codes behind the last element are 0 already, unless a caller wrote others.
            m[param.len()..].fill(0.0);
            v[param.len()..].fill(0.0);
            state.write(&moments, block as u32 * BLOCK, salt);
        });
    }

    fn cases(&self) -> Vec<Case> {
        let params = |count, step: i32, weight_decay| {
            // Decays by powers of two: see `buffers`.
            let (beta1, beta2) = (0.875_f32, 0.984_375_f32);
            Params {
                count,
                lr: 1e-3,
                beta1,
                beta2,
                eps: 1e-8,
                weight_decay,
                correction1: 1.0 - beta1.powi(step),
                correction2: 1.0 - beta2.powi(step),
                seed: 77 * step as u32,
            }
        };
        let call = |count, step, decay| Call::new(&params(count, step, decay));
        vec![
            Case::new("1", call(1, 1, 0.0)),
            Case::new("67_decay", call(67, 2, 0.1)),
            Case::new("67_large_eps", Call::new(&Params { eps: 0.1, ..params(67, 2, 0.1) })),
            Case::new("256", call(256, 10, 0.01)),
            Case::new("257", call(257, 100, 0.0)),
            Case::new("4099_decay", call(4099, 1000, 0.1)),
            Case::bench("4m", call(4 << 20, 10, 0.01)),
        ]
    }

    /// Every new moment is exact in f32, whether or not a device fuses products and sums: old
    /// moments within 8 octaves, gradients of 8 bits, decays by powers of two. So codes, which
    /// are compared exactly, do not depend on a last bit.
    fn buffers(&self, call: &Call, rng: &mut SeededRng) -> Vec<CaseBuffer> {
        let count = call.params::<Params>().count;
        let words = moment_words(count.into()) as usize;
        let mut codes = |signs: u32, top: u32| -> Vec<u32> {
            let mut code = || match rng.random_range(0..8_u32) {
                0 => 0,
                _ => rng.random_range(top - 63..=top) | (rng.random_range(0..2) * signs),
            };
            (0..words).map(|_| code() | code() << 8 | code() << 16 | code() << 24).collect()
        };
        let (m, v) = (codes(128, LEVELS[0]), codes(0, LEVELS[1]));
        let grads = (0..count).map(|i| match (i / BLOCK) % 3 {
            // A block whose gradient is 0, so that the largest moment decays.
            2 => 0.0,
            _ => rng.random_range(-128..=128_i32) as f32 / 64.0,
        });
        let grads: Vec<f32> = grads.collect();
        vec![
            uniform_f32(rng, count as usize, -1.0, 1.0),
            CaseBuffer::F32(grads),
            CaseBuffer::U32(m),
            CaseBuffer::U32(v),
            CaseBuffer::F32([1.0, 0.5].repeat(words / WORDS)),
            CaseBuffer::F32(vec![2.0, 0.5]),
        ]
    }

    fn work(&self, call: &Call) -> Work {
        let count = u64::from(call.params::<Params>().count);
        let state = 2 * moment_words(count) + largest_words(count);
        Work { bytes: 12 * count + 8 * state + 4, flops: 20 * count }
    }

    fn tolerance(&self, _: &Call) -> Tolerance {
        Tolerance { abs: 1e-6, rel: 2e-6, why: "elementwise; square root and quotient in f32" }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::loss::testing::{check_op, floats, run, words};
    use crate::util::uniform_vec;
    use rand::SeedableRng;

    #[test]
    fn shader_and_cases() {
        check_op(&Adamw8bit);
    }

    fn params(count: usize, step: u32, lr: f32) -> adamw::Params {
        adamw::Params {
            count: count as u32,
            lr,
            beta1: 0.9,
            beta2: 0.999,
            eps: 1e-8,
            weight_decay: 0.0,
            correction1: adamw::correction(0.9, step),
            correction2: adamw::correction(0.999, step),
        }
    }

    /// Parameters, codes of m and v, and largest numbers.
    struct Run([Vec<u32>; 4]);

    impl Run {
        fn new(start: &[f32]) -> Self {
            let count = start.len() as u64;
            let codes = vec![0; moment_words(count) as usize];
            let largest = vec![0; largest_words(count) as usize];
            Self([words(start), codes.clone(), codes, largest])
        }

        fn step(&mut self, p: adamw::Params, seed: u32, grad: &[f32]) {
            let p = (p, seed).into();
            let [param, m, v, largest] = std::mem::take(&mut self.0);
            let state = [m, v, largest];
            let out = run(dispatch(p, param, words(grad), state, words(&[0.0, 1.0])));
            self.0 = [0, 2, 3, 4].map(|i| out[i].clone());
        }

        fn moments(&mut self, count: usize) -> Vec<[f32; 2]> {
            let [_, m, v, largest] = &mut self.0;
            let mut largest = floats(largest);
            let mut out = Vec::with_capacity(count);
            let codes = m.chunks_exact_mut(WORDS).zip(v.chunks_exact_mut(WORDS));
            for ((m, v), largest) in codes.zip(largest.chunks_exact_mut(2)) {
                let moments = State { m, v, largest }.read();
                out.extend(moments.m.into_iter().zip(moments.v).map(|(m, v)| [m, v]));
            }
            out.truncate(count);
            out
        }
    }

    #[test]
    fn the_first_step_is_that_of_32_bits() {
        let mut rng = SeededRng::seed_from_u64(2);
        let start = uniform_vec(&mut rng, 300, -1.0, 1.0);
        let grad = uniform_vec(&mut rng, 300, -1e-3, 1e-3);
        let mut eight = Run::new(&start);
        eight.step(params(300, 1, 1e-2), 1, &grad);
        let p = params(300, 1, 1e-2);
        let (zero, clip) = (|| vec![0; 300], words(&[0.0, 1.0]));
        let want = run(adamw::dispatch(p, words(&start), words(&grad), zero(), zero(), clip));
        assert_eq!(eight.0[0], want[0]);
        // What is stored is off by less than a step of three mantissa bits.
        for (i, [m, v]) in eight.moments(300).into_iter().enumerate() {
            let (want_m, want_v) = (floats(&want[2])[i], floats(&want[3])[i]);
            assert!((m / want_m - 1.0).abs() < 0.125, "m: {m} for {want_m}");
            assert!((v / want_v - 1.0).abs() < 0.125, "v: {v} for {want_v}");
        }
    }

    /// Moments of many equal elements, after many steps, are on average those of 32 bits: what
    /// rounding to nearest fails, since it never lets v decay.
    #[test]
    fn rounding_has_no_bias() {
        const COUNT: usize = 1024;
        let mut eight = Run::new(&[0.0; COUNT]);
        let (mut m, mut v) = (0.0_f64, 0.0_f64);
        for step in 1..=400 {
            // Large at first, then a fifth.
            let g = if step <= 100 { 1.0 } else { 0.2_f32 };
            eight.step(params(COUNT, step, 0.0), step, &[g; COUNT]);
            m += 0.1 * (f64::from(g) - m);
            v = 0.999 * v + 0.001 * f64::from(g) * f64::from(g);
        }
        let moments = eight.moments(COUNT);
        let mean = |i: usize| moments.iter().map(|x| f64::from(x[i])).sum::<f64>() / COUNT as f64;
        assert!((mean(0) / m - 1.0).abs() < 0.01, "m is {} for {m}", mean(0));
        assert!((mean(1) / v - 1.0).abs() < 0.02, "v is {} for {v}", mean(1));
    }

    /// Gradients that differ by 10^12 in one block: the small ones' v must not become 0.
    #[test]
    fn unequal_scales_do_not_blow_up() {
        let grad: Vec<f32> = (0..256).map(|i| 10.0_f32.powi(i % 13 - 12)).collect();
        let mut eight = Run::new(&[0.0; 256]);
        for step in 1..=50 {
            eight.step(params(256, step, 1.0), step, &grad);
        }
        let moved = floats(&eight.0[0]);
        assert!(moved.iter().all(|x| x.abs() < 75.0), "{moved:?}");
        // Within a factor of 10^4 every element moves as Adam says, by one a step.
        for (moved, _) in moved.iter().zip(&grad).filter(|(_, g)| **g > 1e-4) {
            assert!((moved + 50.0).abs() < 10.0, "{moved}");
        }
    }

    #[test]
    fn codes_round_trip() {
        let top = top_of(1.0);
        for (which, levels) in LEVELS.into_iter().enumerate() {
            for code in 1..=levels {
                let x = decode(code, top, levels);
                for random in [0, u32::MAX] {
                    assert_eq!(encode(x, random, top, levels, which as i32), code);
                }
            }
            assert_eq!(decode(levels, top, levels), 1.0);
        }
        assert_eq!(encode(1e-30, 0, top, 255, 1), 1, "v never becomes 0");
        assert_eq!(encode(1e-30, u32::MAX, top, 127, 0), 0);
        assert_eq!(encode(1e-39, u32::MAX, top, 255, 1), 0, "subnormals are 0");
    }
}
