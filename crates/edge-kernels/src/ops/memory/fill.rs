//! Fills a buffer with one value.
//!
//! out\[i\] = value, bit by bit, so that it also clears ids and packed words
//!
//! | tensor | shape     | dtype | role |
//! |--------|-----------|-------|------|
//! | out    | \[count\] | any   | out  |
//!
//! How: one invocation per word, or per four.
//! Accuracy: exact.
//! Cost: bound by bandwidth.

use crate::lanes;
use crate::op::{
    Binding, Call, Case, CaseBuffer, Dispatch, Field, HostBuffer, Op, Tolerance, Variant, Work,
    read_write,
};
use crate::util::SeededRng;

/// See the module.
pub struct Fill;

crate::params! {
    /// Parameters of `fill`.
    pub struct Params {
        /// Words to fill.
        count: u32,
        /// Bits of each.
        value_bits: u32,
    }
}

/// Fills the first `count` words of `out` with the bits of `value`.
pub fn dispatch<B>(count: u32, value: f32, out: B) -> Dispatch<B> {
    Dispatch::new(&Fill, call(count, value), vec![out])
}

fn call(count: u32, value: f32) -> Call {
    Call::new(&Params { count, value_bits: value.to_bits() })
}

impl Op for Fill {
    fn name(&self) -> &'static str {
        "fill"
    }

    fn shader(&self) -> &'static str {
        "memory/fill.wgsl"
    }

    fn bindings(&self, _: &Call) -> Vec<Binding> {
        vec![read_write("out")]
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
        let p: Params = call.params();
        let out = &mut buffers[0].u32_mut()[..p.count as usize];
        lanes::map_in_place(out, |_, _| p.value_bits);
    }

    fn cases(&self) -> Vec<Case> {
        let mut cases: Vec<Case> = [(1, 0.0), (257, -2.5), (1024, 0.0), (4100, 1e-30)]
            .map(|(count, value)| Case::new(format!("{count}_of_{value}"), call(count, value)))
            .into();
        cases.push(Case::bench("tinyllama_256", call(256 * 2048, 0.0)));
        cases
    }

    fn buffers(&self, call: &Call, _: &mut SeededRng) -> Vec<CaseBuffer> {
        vec![CaseBuffer::Output(call.params::<Params>().count as usize)]
    }

    fn work(&self, call: &Call) -> Work {
        Work { bytes: 4 * u64::from(call.params::<Params>().count), flops: 0 }
    }

    fn tolerance(&self, _: &Call) -> Tolerance {
        Tolerance { abs: 0.0, rel: 0.0, why: "bits are copied" }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_behind_the_count_stay() {
        let mut out = vec![7; 10];
        Fill.reference(&call(6, -0.0), &mut [HostBuffer::ReadWrite(&mut out)]);
        assert_eq!(out[..6], [0x8000_0000; 6]);
        assert_eq!(out[6..], [7; 4]);
    }
}
