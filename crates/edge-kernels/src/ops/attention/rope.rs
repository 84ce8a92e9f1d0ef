//! Rotary position embedding, in place.
//!
//! (a, b) → (a · cos − b · sin, b · cos + a · sin) for
//! a = x\[.., i\], b = x\[.., i + head_dim/2\], the
//! pairing of Hugging Face's `rotate_half`; with inverse, by minus the angle: the backward pass.
//!
//! | tensor | shape                                | dtype | role                       |
//! |--------|--------------------------------------|-------|----------------------------|
//! | table  | [positions, head_dim]                | f32   | in: cosines, then sines    |
//! | segments | [rows, 2]                          | u32   | in                         |
//! | x      | [rows, heads, head_dim] from `offset`| f32   | in and out                 |
//!
//! The position of a row is `position0 + row % seq_len - segments[row][0]`: that in its own sample,
//! by the segments of [`attention_forward`](super::attention_forward). [`rope_table`] makes the
//! table.
//!
//! How: one invocation per pair, or per four.
//! Accuracy: two products and a sum; the angles are those of the table, formed in f64.
//! Cost: bound by bandwidth.
//! Source: Su et al. 2021, "RoFormer".

use rayon::prelude::*;

use super::rope_scaling::{RopeScaling, rope_table};
use crate::lanes;
use crate::op::{
    Binding, Call, Case, CaseBuffer, Dispatch, Field, HostBuffer, Op, Tolerance, Variant, Work,
    read, read_write,
};
use crate::util::{SeededRng, uniform_f32};

/// See the module.
pub struct Rope;

crate::params! {
    /// Parameters of `rope`.
    pub struct Params {
        /// Rows (tokens).
        rows: u32,
        /// Rows of a sequence.
        seq_len: u32,
        /// Heads of a row.
        heads: u32,
        /// Elements of a head, even.
        head_dim: u32,
        /// Position of a sequence's first row.
        position0: u32,
        /// First element of `x`.
        offset: u32,
        /// 1: rotates back, as the backward pass does.
        inverse: u32,
    }
}

impl Params {
    fn by_four(&self) -> bool {
        lanes::by_four(&[self.head_dim / 2, self.offset])
    }

    fn pairs(&self) -> u64 {
        u64::from(self.rows) * u64::from(self.heads) * u64::from(self.head_dim / 2)
    }
}

/// Rotates `x` in place.
///
/// # Panics
/// When `head_dim` is odd or there are no rows in a sequence.
pub fn dispatch<B>(params: Params, table: B, segments: B, x: B) -> Dispatch<B> {
    assert!(params.head_dim.is_multiple_of(2), "head_dim {} has no pairs", params.head_dim);
    assert!(params.seq_len > 0, "a sequence has rows");
    Dispatch::new(&Rope, Call::new(&params), vec![table, segments, x])
}

impl Op for Rope {
    fn name(&self) -> &'static str {
        "rope"
    }

    fn shader(&self) -> &'static str {
        "attention/rope.wgsl"
    }

    fn bindings(&self, _: &Call) -> Vec<Binding> {
        vec![read("table"), read("segments"), read_write("x")]
    }

    fn fields(&self) -> &'static [Field] {
        Params::FIELDS
    }

    fn variants(&self, call: &Call) -> Vec<Variant> {
        vec![lanes::variant(call.params::<Params>().by_four())]
    }

    fn grid(&self, call: &Call, _: &Variant) -> [u32; 3] {
        let p: Params = call.params();
        lanes::grid(p.pairs(), p.by_four(), 64)
    }

    fn reference(&self, call: &Call, buffers: &mut [HostBuffer<'_>]) {
        let p: Params = call.params();
        let [table, segments, x] = buffers else { unreachable!("three bindings") };
        let segments = segments.u32();
        let (table, dim) = (table.f32(), p.head_dim as usize);
        let width = p.heads as usize * dim;
        let sign = if p.inverse == 1 { -1.0 } else { 1.0 };
        let x = &mut x.f32_mut()[p.offset as usize..][..p.rows as usize * width];
        x.par_chunks_mut(width).enumerate().for_each(|(row, x)| {
            let position = p.position0 + row as u32 % p.seq_len - segments[2 * row];
            let position = position as usize;
            let (cosines, sines) = table[position * dim..][..dim].split_at(dim / 2);
            for head in x.chunks_exact_mut(dim) {
                let (low, high) = head.split_at_mut(dim / 2);
                for i in 0..dim / 2 {
                    let (a, b, sine) = (low[i], high[i], sign * sines[i]);
                    low[i] = a * cosines[i] - b * sine;
                    high[i] = b * cosines[i] + a * sine;
                }
            }
        });
    }

    fn cases(&self) -> Vec<Case> {
        let base = Params {
            rows: 6,
            seq_len: 3,
            heads: 2,
            head_dim: 16,
            position0: 0,
            offset: 0,
            inverse: 0,
        };
        let mut cases: Vec<Case> = [
            ("pair", Params { rows: 1, seq_len: 1, heads: 1, head_dim: 2, ..base }),
            ("sequences", base),
            ("inverse", Params { inverse: 1, ..base }),
            ("head_dim_20", Params { head_dim: 20, heads: 3, ..base }),
            ("head_dim_80", Params { head_dim: 80, rows: 5, seq_len: 5, ..base }),
            ("append", Params { rows: 2, seq_len: 2, position0: 5, offset: 5 * 32, ..base }),
            ("odd_offset", Params { rows: 1, seq_len: 1, position0: 9, offset: 7, ..base }),
        ]
        .map(|(name, params)| Case::new(name, Call::new(&params)))
        .into();
        let params = Params { rows: 256, seq_len: 256, heads: 32, head_dim: 64, ..base };
        cases.push(Case::bench("tinyllama_256", Call::new(&params)));
        cases
    }

    fn buffers(&self, call: &Call, rng: &mut SeededRng) -> Vec<CaseBuffer> {
        let p: Params = call.params();
        let positions = p.position0 + p.seq_len;
        let table = rope_table(positions, p.head_dim, 10000.0, RopeScaling::None);
        let count = p.offset + p.rows * p.heads * p.head_dim;
        // Of every other row a segment begins there or before.
        let first = |row: u32| (row % 2) * (p.position0 + row % p.seq_len).saturating_sub(row % 3);
        let segments = (0..p.rows).flat_map(|row| [first(row), p.seq_len]).collect();
        vec![
            CaseBuffer::F32(table),
            CaseBuffer::U32(segments),
            uniform_f32(rng, count as usize, -2.0, 2.0),
        ]
    }

    fn work(&self, call: &Call) -> Work {
        let p: Params = call.params();
        let table = u64::from(p.rows.min(p.seq_len)) * u64::from(p.head_dim);
        Work { bytes: 4 * (4 * p.pairs() + table + 2 * u64::from(p.rows)), flops: 6 * p.pairs() }
    }

    fn tolerance(&self, _: &Call) -> Tolerance {
        Tolerance { abs: 5e-7, rel: 5e-7, why: "two products and a sum, which may cancel" }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::util::uniform_vec;
    use rand::SeedableRng;

    const P: Params =
        Params { rows: 6, seq_len: 3, heads: 2, head_dim: 6, position0: 4, offset: 5, inverse: 0 };

    /// The first of each row's segment.
    const FIRST: [u32; 6] = [0, 0, 6, 4, 5, 0];

    fn run(params: Params, x: &mut [f32]) {
        let segments: Vec<u32> = FIRST.iter().flat_map(|first| [*first, 3]).collect();
        let table = rope_table(7, 6, 100.0, RopeScaling::None);
        let mut buffers = [
            HostBuffer::Read(bytemuck::cast_slice(&table)),
            HostBuffer::Read(&segments),
            HostBuffer::ReadWrite(bytemuck::cast_slice_mut(x)),
        ];
        Rope.reference(&Call::new(&params), &mut buffers);
    }

    /// Pairs as complex numbers, multiplied by exp(i · position · frequency).
    #[test]
    fn is_a_complex_rotation_of_each_pair() {
        let mut rng = SeededRng::seed_from_u64(7);
        let before = uniform_vec(&mut rng, 5 + 72, -1.0, 1.0);
        let mut x = before.clone();
        run(P, &mut x);
        assert_eq!(x[..5], before[..5]);
        for (row, head, i) in [(0, 0, 0), (1, 1, 2), (2, 1, 0), (3, 0, 1), (4, 0, 0), (5, 1, 1)] {
            let position = 4.0 + (row % 3) as f64 - f64::from(FIRST[row]);
            let angle = position * 100_f64.powf(-2.0 * i as f64 / 6.0);
            let at = 5 + (row * 2 + head) * 6 + i;
            let (a, b) = (f64::from(before[at]), f64::from(before[at + 3]));
            let (size, phase) = (a.hypot(b), b.atan2(a) + angle);
            assert!((f64::from(x[at]) - size * phase.cos()).abs() < 1e-6);
            assert!((f64::from(x[at + 3]) - size * phase.sin()).abs() < 1e-6);
        }
    }

    /// <dy, R x> = <R⁻¹ dy, x>: the inverse is the transpose, and so the backward pass.
    #[test]
    fn the_inverse_is_the_adjoint_and_undoes_it() {
        let mut rng = SeededRng::seed_from_u64(8);
        let x = uniform_vec(&mut rng, 77, -1.0, 1.0);
        let dy = uniform_vec(&mut rng, 77, -1.0, 1.0);
        let (mut y, mut dx) = (x.clone(), dy.clone());
        run(P, &mut y);
        run(Params { inverse: 1, ..P }, &mut dx);
        let dot = |a: &[f32], b: &[f32]| -> f64 {
            a.iter().zip(b).map(|(a, b)| f64::from(*a) * f64::from(*b)).sum()
        };
        assert!((dot(&dy, &y) - dot(&dx, &x)).abs() < 1e-5);
        run(Params { inverse: 1, ..P }, &mut y);
        assert!(x.iter().zip(&y).all(|(a, b)| (a - b).abs() < 1e-6));
    }
}
