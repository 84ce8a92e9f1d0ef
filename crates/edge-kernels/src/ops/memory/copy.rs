//! Copies words from one buffer to another.
//!
//! dst\[dst_offset + i\] = src\[src_offset + i\]
//!
//! | tensor | shape                   | dtype | role                 |
//! |--------|-------------------------|-------|----------------------|
//! | src    | \[src_offset + count\]  | any   | in                   |
//! | dst    | \[dst_offset + count\]  | any   | out, rest untouched  |
//!
//! How: one invocation per word, or per four where count and offsets are multiples of four.
//! Accuracy: exact.
//! Cost: bound by bandwidth.

use crate::lanes;
use crate::op::{
    Binding, Call, Case, CaseBuffer, Dispatch, Field, HostBuffer, Op, Tolerance, Variant, Work,
    read, read_write,
};
use crate::util::{SeededRng, uniform_f32};

/// See the module.
pub struct Copy;

crate::params! {
    /// Parameters of `copy`.
    pub struct Params {
        /// Words to copy.
        count: u32,
        /// First word of the source.
        src_offset: u32,
        /// First word of the destination.
        dst_offset: u32,
    }
}

impl Params {
    fn by_four(&self) -> bool {
        lanes::by_four(&[self.count, self.src_offset, self.dst_offset])
    }
}

/// Copies `count` words of `src` to `dst`, which are different buffers.
pub fn dispatch<B>(params: Params, src: B, dst: B) -> Dispatch<B> {
    Dispatch::new(&Copy, Call::new(&params), vec![src, dst])
}

impl Op for Copy {
    fn name(&self) -> &'static str {
        "copy"
    }

    fn shader(&self) -> &'static str {
        "memory/copy.wgsl"
    }

    fn bindings(&self, _: &Call) -> Vec<Binding> {
        vec![read("src"), read_write("dst")]
    }

    fn fields(&self) -> &'static [Field] {
        Params::FIELDS
    }

    fn variants(&self, call: &Call) -> Vec<Variant> {
        vec![lanes::variant(call.params::<Params>().by_four())]
    }

    fn grid(&self, call: &Call, _: &Variant) -> [u32; 3] {
        let p: Params = call.params();
        lanes::grid(u64::from(p.count), p.by_four(), 256)
    }

    fn reference(&self, call: &Call, buffers: &mut [HostBuffer<'_>]) {
        let p: Params = call.params();
        let [src, dst] = buffers else { unreachable!("two bindings") };
        let src = &src.u32()[p.src_offset as usize..];
        let dst = &mut dst.u32_mut()[p.dst_offset as usize..][..p.count as usize];
        lanes::map_in_place(dst, |i, _| src[i]);
    }

    fn cases(&self) -> Vec<Case> {
        let call =
            |count, src_offset, dst_offset| Call::new(&Params { count, src_offset, dst_offset });
        let mut cases: Vec<Case> =
            [(1, 0, 0), (13, 5, 2), (1024, 0, 0), (64, 12, 8), (64, 3, 0), (771, 0, 4)]
                .map(|(n, src, dst)| {
                    Case::new(format!("{n}_from_{src}_to_{dst}"), call(n, src, dst))
                })
                .into();
        cases.push(Case::bench("tinyllama_256", call(256 * 2048, 0, 0)));
        cases
    }

    fn buffers(&self, call: &Call, rng: &mut SeededRng) -> Vec<CaseBuffer> {
        let p: Params = call.params();
        // Room behind the copied range shows what must stay.
        vec![
            uniform_f32(rng, (p.src_offset + p.count) as usize, -1.0, 1.0),
            uniform_f32(rng, (p.dst_offset + p.count + 9) as usize, -1.0, 1.0),
        ]
    }

    fn work(&self, call: &Call) -> Work {
        Work { bytes: 8 * u64::from(call.params::<Params>().count), flops: 0 }
    }

    fn tolerance(&self, _: &Call) -> Tolerance {
        Tolerance { abs: 0.0, rel: 0.0, why: "bits are copied" }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_range_is_written() {
        let src: Vec<u32> = (0..10).collect();
        let mut dst = vec![99; 8];
        let call = Call::new(&Params { count: 3, src_offset: 4, dst_offset: 2 });
        Copy.reference(&call, &mut [HostBuffer::Read(&src), HostBuffer::ReadWrite(&mut dst)]);
        assert_eq!(dst, [99, 99, 4, 5, 6, 99, 99, 99]);
    }
}
