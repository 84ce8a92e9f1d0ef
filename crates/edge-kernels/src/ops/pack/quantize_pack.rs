//! A dense matrix to a packed one: what [`pack`] does, bit for bit.
//!
//! scales\[g,n\] = f16(max |source\[n,c\]| / q_max) over the columns c of group g,
//! values\[b,n\] = levels of source\[n,c\] / scale over the columns c of block b
//!
//! | tensor | shape                       | dtype | role |
//! |--------|-----------------------------|-------|------|
//! | source | [rows, cols]                | dense | in: f32, or 16-bit with rows of whole words |
//! | values | [`Format::value_words`]     | u32   | out |
//! | scales | [`Format::scale_words`]     | u32   | out |
//!
//! The format of the call is the packed one.
//!
//! What is promised: the words of `pack` for every input, infinities and NaN included, but for
//! negative subnormals of f32 in 2 bits, whose level may be the other side of 0. A host and a
//! device divide and round differently (WGSL division may be 2.5 units off, its `round` takes the
//! even number at a tie and Rust's the larger magnitude), so nothing depends on that: the scale is
//! a quotient of integers, rounded to f32 and then to f16 in integers, and a level is compared
//! with the products of half levels and the scale, which are exact. That those comparisons are
//! `round(x / scale)` of correctly rounded quotients: a weight that is not such a product is a
//! unit of its last place away, more than half a unit of the quotient.
//!
//! How: one invocation a group of columns of two rows, which share a word of scales.
//! Accuracy: exact.
//! Cost: bound by bandwidth, reads of neighbouring invocations a row apart.

use crate::util::SeededRng;
use rand::RngExt;

use crate::format::{BLOCK, Format, Packing};
use crate::op::{
    Binding, Call, Case, CaseBuffer, Dispatch, Field, HostBuffer, Op, Tolerance, Variant, Work,
    read, read_write,
};
use crate::pack::{pack, unpack};
use crate::util::{fold_grid, uniform_vec};

/// Invocations of a workgroup.
const WG: u32 = 64;

/// Dense formats, by [`Params::source`].
const SOURCES: [Format; 3] = [Format::F32, Format::F16, Format::Bf16];

/// See the module.
pub struct QuantizePack;

crate::params! {
    /// Parameters of `quantize_pack`.
    pub struct Params {
        /// Output channels.
        rows: u32,
        /// Input channels.
        cols: u32,
        /// Format of the source: 0 f32, 1 f16, 2 bf16.
        source: u32,
    }
}

/// Packs `source [rows, cols]`, which is `dense`, into `values` and `scales` of `format`.
///
/// # Panics
/// When `dense` is packed, or `format` is not dense, symmetric values with scales: a mistake of
/// the caller.
pub fn dispatch<B>(
    (rows, cols): (u32, u32),
    (dense, source): (Format, B),
    format: Format,
    values: B,
    scales: B,
) -> Dispatch<B> {
    let source_index = SOURCES.iter().position(|&known| known == dense);
    let source_index = source_index.expect("the source is dense") as u32;
    assert!(packs(format), "{} is not dense and symmetric", format.name());
    let params = Params { rows, cols, source: source_index };
    let call = Call::with_format(&params, format);
    Dispatch::new(&QuantizePack, call, vec![source, values, scales])
}

/// Whether it is a format that this op makes: with scales, symmetric, dense.
fn packs(format: Format) -> bool {
    format.packing().is_some_and(|packing| [2, 3, 4, 8].into_iter().any(|b| packing.is_plain(b)))
}

/// The fragments that read the source and store the levels: all that depends on the formats.
fn fragments(source: u32, format: Format) -> [&'static str; 2] {
    let reads = ["lib/source_f32.wgsl", "lib/source_f16.wgsl", "lib/source_bf16.wgsl"];
    let stores = match format.packing().map(Packing::bits) {
        Some(8) => "lib/pack_q8.wgsl",
        Some(4) => "lib/pack_q4.wgsl",
        Some(3) => "lib/pack_q3.wgsl",
        _ => "lib/pack_q2.wgsl",
    };
    [reads[source as usize], stores]
}

fn group(format: Format) -> u32 {
    format.group().unwrap_or(BLOCK)
}

impl Op for QuantizePack {
    fn name(&self) -> &'static str {
        "quantize_pack"
    }

    fn shader(&self) -> &'static str {
        "pack/quantize_pack.wgsl"
    }

    fn bindings(&self, _: &Call) -> Vec<Binding> {
        vec![read("source"), read_write("values"), read_write("scales")]
    }

    fn fields(&self) -> &'static [Field] {
        Params::FIELDS
    }

    fn variants(&self, call: &Call) -> Vec<Variant> {
        let [reads, stores] = fragments(call.params::<Params>().source, call.format);
        let variant = Variant::plain()
            .fragment("lib/source_f32.wgsl", reads)
            .fragment("lib/pack_q4.wgsl", stores);
        vec![variant.spec("GROUP", group(call.format))]
    }

    fn grid(&self, call: &Call, _: &Variant) -> [u32; 3] {
        let p: Params = call.params();
        let invocations = p.cols.div_ceil(group(call.format)) * p.rows.div_ceil(2);
        fold_grid(invocations.div_ceil(WG))
    }

    fn reference(&self, call: &Call, buffers: &mut [HostBuffer<'_>]) {
        let p: Params = call.params();
        let [source, values, scales] = buffers else { unreachable!("three bindings") };
        let dense = SOURCES[p.source as usize];
        let words = dense.value_words(p.rows, p.cols) as usize;
        let data = unpack(dense, p.rows, p.cols, &source.u32()[..words], &[]);
        let packed = pack(call.format, p.rows, p.cols, &data);
        values.u32_mut()[..packed.values.len()].copy_from_slice(&packed.values);
        scales.u32_mut()[..packed.scales.len()].copy_from_slice(&packed.scales);
    }

    fn cases(&self) -> Vec<Case> {
        let call =
            |format, rows, cols, source| Call::with_format(&Params { rows, cols, source }, format);
        let mut cases = Vec::new();
        for (format, source) in [
            (Format::Q8, 0),
            (Format::Q4, 0),
            (Format::Q3, 0),
            (Format::Q2, 0),
            (Packing::new(4).group_size(64).format(), 1),
            (Packing::new(2).group_size(64).format(), 2),
        ] {
            for (rows, cols) in [(1, 1), (3, 31), (5, 33), (17, 96), (7, 130)] {
                let dense = SOURCES[source as usize].name();
                let name = format!("{}_from_{dense}_{rows}x{cols}", format.name());
                cases.push(Case::new(name, call(format, rows, cols, source)));
            }
        }
        let bench = call(Format::Q4, 2048, 2048, 2);
        cases.push(Case::bench("q4_from_bf16_2048x2048", bench));
        cases
    }

    /// Rows of very different sizes, ties between levels, zeros, infinities and NaN.
    fn buffers(&self, call: &Call, rng: &mut SeededRng) -> Vec<CaseBuffer> {
        let p: Params = call.params();
        let count = (p.rows * p.cols) as usize;
        let mut data = uniform_vec(rng, count, -1.0, 1.0);
        for (i, x) in data.iter_mut().enumerate() {
            let (row, column) = (i as u32 / p.cols, i as u32 % p.cols);
            // Half of all numbers lie on, just below or just above a half level of their group.
            let limit = [127.0_f32, 7.0, 3.0, 1.5][rng.random_range(0..4)];
            let tie = (rng.random_range(0..127) as f32 + 0.5) / limit;
            let near = f32::from_bits(tie.to_bits() + rng.random_range(0..3) - 1);
            if rng.random_range(0..2) == 0 && near < 1.0 {
                *x = near.copysign(*x);
            }
            if column % 32 == 5 {
                *x = 1.0_f32.copysign(*x);
            }
            *x *= [1.0, 1e-6, 3e5, 0.37, 0.0, 1e-3, 1e-8][row as usize % 7];
            match (row % 5, column) {
                (2, 7) => *x = f32::NAN,
                (3, 40) => *x = f32::NEG_INFINITY,
                _ => {}
            }
        }
        let dense = SOURCES[p.source as usize];
        let garbage = |words: u64| CaseBuffer::U32(vec![0xdead_beef; words as usize]);
        vec![
            CaseBuffer::U32(pack(dense, p.rows, p.cols, &data).values),
            garbage(call.format.value_words(p.rows, p.cols)),
            garbage(call.format.scale_words(p.rows, p.cols)),
        ]
    }

    fn work(&self, call: &Call) -> Work {
        let p: Params = call.params();
        let dense = SOURCES[p.source as usize];
        let bytes = dense.bytes(p.rows, p.cols) + call.format.bytes(p.rows, p.cols);
        Work { bytes, flops: 3 * u64::from(p.rows) * u64::from(p.cols) }
    }

    fn tolerance(&self, _: &Call) -> Tolerance {
        Tolerance { abs: 0.0, rel: 0.0, why: "words, compared exactly" }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::loss::testing::{check_op, run, words};

    #[test]
    fn shader_and_cases() {
        check_op(&QuantizePack);
    }

    #[test]
    fn is_what_pack_makes() {
        let data: Vec<f32> = (0..3 * 40).map(|i| (i % 17) as f32 - 8.0).collect();
        for dense in SOURCES {
            for format in Format::TESTED.into_iter().filter(|format| packs(*format)) {
                let source = pack(dense, 3, 40, &data).values;
                let want = pack(format, 3, 40, &data);
                let (values, scales) = (vec![1; want.values.len()], vec![1; want.scales.len()]);
                let got = run(dispatch((3, 40), (dense, source), format, values, scales));
                assert_eq!((&got[1], &got[2]), (&want.values, &want.scales));
            }
        }
        let q8 = Format::Q8;
        let source = words(&[0.0, -127.0]);
        let got = run(dispatch((1, 2), (Format::F32, source), q8, vec![0; 8], vec![0; 1]));
        assert_eq!((got[1][0], got[2][0]), (0x8080_0180, 0x3c00));
    }
}
