//! The kept elements of a 2:4 sparse matrix out of a dense one: the gradient of what is stored.
//!
//! kept\[n, 2q + j\] (+)= dense\[n, 4q + p_j(n, q)\]
//!
//! | tensor    | shape                           | dtype | role |
//! |-----------|---------------------------------|-------|------|
//! | dense     | [rows, cols]                    | f32   | in: such as dW of `matmul_tn` |
//! | positions | [cols / 32, rows / together]    | u32   | in, both rounded up |
//! | kept      | [rows, 2 · cols / 4]            | f32   | out, rounded up; accumulates if asked |
//!
//! Nibble i of a word of positions belongs to columns 4i..4i + 4 of its block of 32: the lower two
//! bits are the first column that is kept, p_0, the upper two the second, p_1 > p_0. A position
//! behind the last column gives 0.
//!
//! A gradient of half the size is half the optimizer's state and half of what a step reads. The
//! dense gradient need only exist for some rows at a time.
//!
//! How: one invocation four columns of a row.
//! Accuracy: a copy, or one rounding.
//! Cost: bound by bandwidth.

use crate::util::SeededRng;
use rand::RngExt;
use rayon::prelude::*;

use crate::op::{
    Binding, Call, Case, CaseBuffer, Dispatch, Field, HostBuffer, Op, Tolerance, Variant, Work,
    read, read_write,
};
use crate::util::{fold_grid, uniform_f32};

/// Invocations of a workgroup.
const WG: u32 = 64;

/// See the module.
pub struct Gather24;

crate::params! {
    /// Parameters of `gather_2_4`.
    pub struct Params {
        /// Output channels.
        rows: u32,
        /// Input channels.
        cols: u32,
        /// Consecutive rows that share their positions, at least 1.
        together: u32,
        /// 1 adds to `kept`.
        accumulate: u32,
    }
}

impl Params {
    /// Words of positions.
    fn positions(&self) -> usize {
        self.cols.div_ceil(32) as usize * self.rows.div_ceil(self.together) as usize
    }

    /// Elements that are kept.
    fn kept(&self) -> usize {
        2 * self.rows as usize * self.cols.div_ceil(4) as usize
    }
}

/// Takes the elements at `positions` out of `dense`.
pub fn dispatch<B>(params: Params, dense: B, positions: B, kept: B) -> Dispatch<B> {
    Dispatch::new(&Gather24, Call::new(&params), vec![dense, positions, kept])
}

impl Op for Gather24 {
    fn name(&self) -> &'static str {
        "gather_2_4"
    }

    fn shader(&self) -> &'static str {
        "pack/gather_2_4.wgsl"
    }

    fn bindings(&self, _: &Call) -> Vec<Binding> {
        vec![read("dense"), read("positions"), read_write("kept")]
    }

    fn fields(&self) -> &'static [Field] {
        Params::FIELDS
    }

    fn variants(&self, _: &Call) -> Vec<Variant> {
        vec![Variant::plain()]
    }

    fn grid(&self, call: &Call, _: &Variant) -> [u32; 3] {
        let p: Params = call.params();
        fold_grid((p.rows * p.cols.div_ceil(4)).div_ceil(WG))
    }

    fn reference(&self, call: &Call, buffers: &mut [HostBuffer<'_>]) {
        let p: Params = call.params();
        let [dense, positions, kept] = buffers else { unreachable!("three bindings") };
        let (dense, positions) = (dense.f32(), positions.u32());
        let (cols, groups) = (p.cols as usize, p.rows.div_ceil(p.together) as usize);
        let width = 2 * cols.div_ceil(4);
        let rows = kept.f32_mut()[..p.kept()].par_chunks_mut(width.max(1)).enumerate();
        rows.for_each(|(n, kept)| {
            for (i, kept) in kept.iter_mut().enumerate() {
                let (four, which) = (i / 2, i % 2);
                let word = positions[four / 8 * groups + n / p.together as usize];
                let column = 4 * four + (word >> (4 * (four % 8) + 2 * which) & 3) as usize;
                let value = if column < cols { dense[n * cols + column] } else { 0.0 };
                *kept = if p.accumulate == 1 { value + *kept } else { value };
            }
        });
    }

    fn cases(&self) -> Vec<Case> {
        let call = |rows, cols, together, accumulate| {
            Call::new(&Params { rows, cols, together, accumulate })
        };
        let sizes = [(1, 1, 1, 0), (3, 31, 1, 1), (5, 66, 1, 0), (37, 33, 32, 1), (9, 64, 4, 0)];
        let mut cases: Vec<Case> = sizes
            .map(|(rows, cols, together, add)| {
                let name = format!("{rows}x{cols}_by_{together}_add_{add}");
                Case::new(name, call(rows, cols, together, add))
            })
            .into();
        cases.push(Case::bench("2048x2048_by_32", call(2048, 2048, 32, 1)));
        cases
    }

    fn buffers(&self, call: &Call, rng: &mut SeededRng) -> Vec<CaseBuffer> {
        let p: Params = call.params();
        let mut nibble = || {
            let first = rng.random_range(0..3_u32);
            first | rng.random_range(first + 1..4) << 2
        };
        let mut word = || (0..8).fold(0, |word, _| word << 4 | nibble());
        let positions = (0..p.positions()).map(|_| word()).collect();
        let kept = match p.accumulate {
            1 => uniform_f32(rng, p.kept(), -1.0, 1.0),
            _ => CaseBuffer::Output(p.kept()),
        };
        let dense = uniform_f32(rng, (p.rows * p.cols) as usize, -1.0, 1.0);
        vec![dense, CaseBuffer::U32(positions), kept]
    }

    fn work(&self, call: &Call) -> Work {
        let p: Params = call.params();
        let moved = p.kept() * (2 + p.accumulate as usize) + p.positions();
        Work { bytes: 4 * moved as u64, flops: p.kept() as u64 * u64::from(p.accumulate) }
    }

    fn tolerance(&self, _: &Call) -> Tolerance {
        Tolerance { abs: 1e-7, rel: 1e-6, why: "at most one rounding; subnormals may be flushed" }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::loss::testing::{check_op, floats, run, words};
    use rand::SeedableRng;

    #[test]
    fn shader_and_cases() {
        check_op(&Gather24);
    }

    #[test]
    fn the_named_columns_are_taken() {
        let p = Params { rows: 2, cols: 7, together: 1, accumulate: 1 };
        let dense: Vec<f32> = (0..14).map(|i| i as f32).collect();
        // Columns 1 and 3 of the first four; 0 and 3, which does not exist, of the second.
        let positions = vec![0b1100_1101, 0b0100_1001];
        let got = run(dispatch(p, words(&dense), positions, words(&[10.0; 8])));
        assert_eq!(floats(&got[2]), [11.0, 13.0, 14.0, 10.0, 18.0, 19.0, 21.0, 22.0]);
    }

    /// ⟨G x, y⟩ = ⟨x, Gᵀ y⟩, with Gᵀ written out: y goes where x came from.
    #[test]
    fn the_adjoint_scatters() {
        let p = Params { rows: 5, cols: 66, together: 2, accumulate: 0 };
        let mut rng = SeededRng::seed_from_u64(4);
        let buffers = Gather24.buffers(&Call::new(&p), &mut rng);
        let [x, positions, _] = [0, 1, 2].map(|i| buffers[i].words());
        let y = crate::util::uniform_vec(&mut rng, p.kept(), -1.0, 1.0);
        let got = run(dispatch(p, x.clone(), positions.clone(), vec![0; p.kept()]));
        let dot = |a: &[f32], b: &[f32]| -> f64 {
            a.iter().zip(b).map(|(&a, &b)| f64::from(a) * f64::from(b)).sum()
        };
        let mut scattered = vec![0.0; 5 * 66];
        for row in 0..5 {
            for four in 0..17 {
                let nibble = positions[four / 8 * 3 + row / 2] >> (4 * (four % 8)) & 15;
                for (j, column) in [nibble & 3, nibble >> 2].into_iter().enumerate() {
                    let column = 4 * four + column as usize;
                    if column < 66 {
                        scattered[row * 66 + column] = y[row * 34 + 2 * four + j];
                    }
                }
            }
        }
        let (left, right) = (dot(&floats(&got[2]), &y), dot(&floats(&x), &scattered));
        assert!((left - right).abs() < 1e-9 && left != 0.0, "{left} and {right}");
    }
}
