//! Sums of squares of a gradient, in parts: the first half of its norm.
//!
//! partials\[part0 + i\] = sum of x\[j\]² over slice i of `parts` equal slices of 0..count
//!
//! | tensor   | shape               | dtype | role |
//! |----------|---------------------|-------|------|
//! | x        | \[count\]           | f32   | in |
//! | partials | \[≥ part0 + parts\] | f32   | out: elements part0..part0+parts |
//!
//! Every gradient writes its own range of one `partials`; `grad_norm_scale` takes the whole.
//! Slices are ceil(count / parts) long; the last ones may be short or empty.
//!
//! How: one workgroup a part, in the same order each time, without atomics.
//! Accuracy: squares of one sign in f32, by lane and then over the workgroup.
//! Cost: bound by bandwidth, one read.

use crate::util::SeededRng;
use rayon::prelude::*;

use crate::op::{
    Binding, Call, Case, CaseBuffer, Dispatch, Field, HostBuffer, Op, Tolerance, Variant, Work,
    read, read_write,
};
use crate::ops::loss::reduce_variants;
use crate::util::{fold_grid, uniform_f32};

/// See the module.
pub struct SumSquares;

crate::params! {
    /// Parameters of `sum_squares`.
    pub struct Params {
        /// Elements of `x`.
        count: u32,
        /// First element of `partials` to write.
        part0: u32,
        /// Elements of `partials` to write, at least 1.
        parts: u32,
    }
}

/// A part count that keeps a device busy without making the second pass long: 8192 elements a
/// part, at most 256 parts.
pub fn parts(count: u32) -> u32 {
    count.div_ceil(8192).clamp(1, 256)
}

/// Sums the squares of `x` into `parts` elements of `partials`.
pub fn dispatch<B>(params: Params, x: B, partials: B) -> Dispatch<B> {
    Dispatch::new(&SumSquares, Call::new(&params), vec![x, partials])
}

impl Op for SumSquares {
    fn name(&self) -> &'static str {
        "sum_squares"
    }

    fn shader(&self) -> &'static str {
        "optim/sum_squares.wgsl"
    }

    fn bindings(&self, _: &Call) -> Vec<Binding> {
        vec![read("x"), read_write("partials")]
    }

    fn fields(&self) -> &'static [Field] {
        Params::FIELDS
    }

    fn variants(&self, call: &Call) -> Vec<Variant> {
        let p: Params = call.params();
        reduce_variants(p.count.div_ceil(p.parts))
    }

    fn grid(&self, call: &Call, _: &Variant) -> [u32; 3] {
        fold_grid(call.params::<Params>().parts)
    }

    fn reference(&self, call: &Call, buffers: &mut [HostBuffer<'_>]) {
        let p: Params = call.params();
        let [x, partials] = buffers else { unreachable!("two bindings") };
        let (count, slice) = (p.count as usize, p.count.div_ceil(p.parts) as usize);
        let x = &x.f32()[..count];
        let partials = &mut partials.f32_mut()[p.part0 as usize..][..p.parts as usize];
        partials.par_iter_mut().enumerate().for_each(|(part, out)| {
            let start = (part * slice).min(count);
            let end = (start + slice).min(count);
            let squares: f64 = x[start..end].iter().map(|&v| f64::from(v) * f64::from(v)).sum();
            *out = squares as f32;
        });
    }

    fn cases(&self) -> Vec<Case> {
        let case = |count, part0, parts| {
            let name = format!("{count}_in_{parts}_at_{part0}");
            Case::new(name, Call::new(&Params { count, part0, parts }))
        };
        let count = 4 << 20;
        let bench = Params { count, part0: 0, parts: parts(count) };
        vec![
            case(1, 0, 1),
            case(1, 3, 1),
            case(97, 0, 5),
            // Empty last slices: 10 elements are 5 slices of 2.
            case(10, 1, 8),
            case(1000, 0, 3),
            case(4099, 7, 2),
            Case::bench("4m", Call::new(&bench)),
        ]
    }

    fn buffers(&self, call: &Call, rng: &mut SeededRng) -> Vec<CaseBuffer> {
        let p: Params = call.params();
        let partials = if p.part0 == 0 {
            CaseBuffer::Output(p.parts as usize)
        } else {
            uniform_f32(rng, (p.part0 + p.parts + 2) as usize, 0.0, 1.0)
        };
        vec![uniform_f32(rng, p.count as usize, -2.0, 2.0), partials]
    }

    fn work(&self, call: &Call) -> Work {
        let p: Params = call.params();
        Work { bytes: 4 * u64::from(p.count + p.parts), flops: 2 * u64::from(p.count) }
    }

    fn tolerance(&self, _: &Call) -> Tolerance {
        Tolerance { abs: 1e-7, rel: 1e-5, why: "f32 sums of squares, all of one sign" }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::loss::testing::{assert_close, check_op, floats, run, words};
    use crate::util::uniform_vec;
    use rand::SeedableRng;

    #[test]
    fn shader_and_cases() {
        check_op(&SumSquares);
    }

    #[test]
    fn parts_cover_everything_once() {
        let x = uniform_vec(&mut SeededRng::seed_from_u64(2), 1013, -3.0, 3.0);
        let want: f64 = x.iter().map(|&v| f64::from(v).powi(2)).sum();
        for parts in [1, 2, 7, 64, 1013, 1500] {
            let p = Params { count: 1013, part0: 2, parts };
            let partials = words(&vec![-1.0; parts as usize + 3]);
            let got = floats(&run(dispatch(p, words(&x), partials))[1]);
            let (outside, inside) = ([got[0], got[1], got[parts as usize + 2]], &got[2..]);
            assert_eq!(outside, [-1.0; 3]);
            let sum: f64 = inside[..parts as usize].iter().map(|&v| f64::from(v)).sum();
            assert_close(&[sum as f32], &[want], 0.0, 1e-6);
        }
    }
}
