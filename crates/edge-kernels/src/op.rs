//! What an operation is: the vocabulary that every file under `ops/` speaks.
//!
//! Accumulation convention: an output is *overwritten* unless the op's `Params` has a field
//! `accumulate` that is 1, or a field `first` that is 0 (sums over chunks of the vocabulary). Ops
//! that work in place, and `embedding_scatter`, which always adds, say so in their table.

use crate::util::SeededRng;
use bytemuck::Pod;

use crate::format::{Format, Packing};

/// How a shader uses a storage binding.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    /// `var<storage, read>`
    Read,
    /// `var<storage, read_write>`: the reference may read the previous contents.
    ReadWrite,
}

/// One storage buffer of an op, in the order in which `dispatch` binds them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Binding {
    /// Name of the variable in the shader.
    pub name: &'static str,
    /// Read or read-write.
    pub access: Access,
}

/// A read-only binding.
pub const fn read(name: &'static str) -> Binding {
    Binding { name, access: Access::Read }
}

/// A read-write binding.
pub const fn read_write(name: &'static str) -> Binding {
    Binding { name, access: Access::ReadWrite }
}

/// Scalar type of a `Params` field.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scalar {
    /// 32-bit unsigned.
    U32,
    /// 32-bit float.
    F32,
}

/// Name, byte offset and type of a `Params` field: compared with the shader's own struct by test.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Field {
    /// Field name, the same in Rust and WGSL.
    pub name: &'static str,
    /// Byte offset.
    pub offset: usize,
    /// Scalar type.
    pub scalar: Scalar,
}

/// Declares an op's `Params`: a flat `#[repr(C)]` struct of `u32` and `f32` whose fields a test
/// compares with the struct of the same name in the shader.
#[macro_export]
macro_rules! params {
    (
        $(#[$meta:meta])* pub struct $name:ident {
            $($(#[$fmeta:meta])* $field:ident : $ty:ident),+ $(,)?
        }
    ) => {
        $(#[$meta])*
        #[repr(C)]
        #[derive(Clone, Copy, Debug, PartialEq, bytemuck::Pod, bytemuck::Zeroable)]
        pub struct $name { $($(#[$fmeta])* pub $field: $ty),+ }

        impl $name {
            /// The fields, for comparison with the shader.
            pub const FIELDS: &'static [$crate::op::Field] = &[
                $($crate::op::Field {
                    name: stringify!($field),
                    offset: std::mem::offset_of!($name, $field),
                    scalar: $crate::params!(@scalar $ty),
                }),+
            ];
        }

        const _: () = assert!(size_of::<$name>() <= 4 * $crate::op::CALL_WORDS);
    };
    (@scalar u32) => { $crate::op::Scalar::U32 };
    (@scalar f32) => { $crate::op::Scalar::F32 };
}

/// Most words that a `Params` may have (64 bytes: half of the smallest immediate size).
pub const CALL_WORDS: usize = 16;

/// One use of an op: its parameters and, for ops that read weights, the weight format. Everything
/// that decides which shader text is needed and how many workgroups run, except the buffers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Call {
    /// Format of the weight binding; [`Format::F32`] for ops without one.
    pub format: Format,
    words: [u32; CALL_WORDS],
    len: u32,
}

impl Call {
    /// A call with these parameters, weights in f32.
    pub fn new<P: Pod>(params: &P) -> Self {
        Self::with_format(params, Format::F32)
    }

    /// A call with these parameters and weight format.
    pub fn with_format<P: Pod>(params: &P, format: Format) -> Self {
        let source: &[u32] = bytemuck::cast_slice(bytemuck::bytes_of(params));
        let mut words = [0; CALL_WORDS];
        words[..source.len()].copy_from_slice(source);
        Self { format, words, len: source.len() as u32 }
    }

    /// The parameters again.
    pub fn params<P: Pod>(&self) -> P {
        *bytemuck::from_bytes(bytemuck::cast_slice(&self.words[..size_of::<P>() / 4]))
    }

    /// The parameters as words, as the shader reads them.
    pub fn words(&self) -> &[u32] {
        &self.words[..self.len as usize]
    }
}

/// Matrices that the lanes of a subgroup of 32 multiply together, with sums in f32: an experimental
/// extension of WGSL.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Cooperative {
    /// 16 x 16, operands in f16.
    F16,
    /// 8 x 8, operands in f16.
    F16Side8,
    /// 8 x 8, operands in f32.
    F32Side8,
}

impl Cooperative {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::F16, Self::F16Side8, Self::F32Side8];

    /// Rows and columns of a matrix.
    pub fn side(self) -> u32 {
        if self == Self::F16 { 16 } else { 8 }
    }

    /// Whether operands are f16.
    pub fn is_f16(self) -> bool {
        self != Self::F32Side8
    }
}

/// What a variant asks of an adapter beyond core WebGPU.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Needs {
    /// `enable f16;`
    pub f16: bool,
    /// Subgroup operations, correct at any subgroup size.
    pub subgroups: bool,
    /// 64-bit integers.
    pub int64: bool,
    /// Lanes that every subgroup of the device must have (0: any number).
    pub subgroup_size: u32,
    /// Invocations in a workgroup (0: at most the portable 256).
    pub invocations: u32,
    /// Bytes of workgroup memory (0: at most the portable 16384).
    pub workgroup_bytes: u32,
    /// Cooperative matrices. What needs them never runs unless it is named or was measured.
    pub cooperative: Option<Cooperative>,
}

/// What executes shaders.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Hardware {
    /// Either of the two.
    #[default]
    Any,
    /// A driver that runs shaders on the CPU: loads are loops over lanes, and workgroup memory is
    /// no faster than any other.
    Software,
    /// A GPU: whole subgroups, workgroup memory, loads of neighbouring lanes that combine.
    Gpu,
}

/// Largest mean squared error of an approximate variant over the mean square of the exact result.
/// Rounding activations to int8 in groups of 32 leaves about 1e-5 where they are spread evenly,
/// and more where outliers set the scale; 5e-4 is what llama.cpp allows its quantised products.
pub const APPROXIMATE_NMSE: f64 = 5e-4;

/// Mean squared error over mean square; 0 where both are 0.
pub fn nmse(got: &[f32], want: &[f32]) -> f64 {
    let sum = |value: &dyn Fn(f64, f64) -> f64| -> f64 {
        got.iter().zip(want).map(|(&got, &want)| value(got.into(), want.into())).sum()
    };
    let error = sum(&|got, want| (got - want).powi(2));
    let size = sum(&|_, want| want * want);
    if error == 0.0 { 0.0 } else { error / size }
}

/// One way to compute an op: a choice of fragments and constants.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Variant {
    /// Descriptive name (`plain`, `subgroup`, `f16`), a column of the throughput table.
    pub name: &'static str,
    /// `(path in the file, path instead of it)`: choice by fragment.
    pub fragments: Vec<(&'static str, &'static str)>,
    /// Values of `//#spec` constants.
    pub spec: Vec<(&'static str, u32)>,
    /// What it needs.
    pub needs: Needs,
    /// What it was written for; it is right everywhere.
    pub suits: Hardware,
    /// Changes the numbers by more than the op's tolerance ([`APPROXIMATE_NMSE`]): never chosen
    /// unless it is asked for by name, or has cooperative matrices and was measured.
    pub approximate: bool,
}

impl Variant {
    /// A variant with nothing replaced.
    pub fn plain() -> Self {
        Self::named("plain")
    }

    /// A named variant with nothing replaced yet.
    pub fn named(name: &'static str) -> Self {
        Self {
            name,
            fragments: Vec::new(),
            spec: Vec::new(),
            needs: Needs::default(),
            suits: Hardware::Any,
            approximate: false,
        }
    }

    /// Replaces a constant marked `//#spec`.
    pub fn spec(mut self, name: &'static str, value: u32) -> Self {
        self.spec.push((name, value));
        self
    }

    /// Includes `instead` where the file includes `path`.
    pub fn fragment(mut self, path: &'static str, instead: &'static str) -> Self {
        if path != instead {
            self.fragments.push((path, instead));
        }
        self
    }

    /// Includes `instead` where the file, or the variant so far, includes `path`.
    pub fn replace(mut self, path: &'static str, instead: &'static str) -> Self {
        let mut found = false;
        for (_, included) in self.fragments.iter_mut().filter(|(_, to)| *to == path) {
            (*included, found) = (instead, true);
        }
        if found { self } else { self.fragment(path, instead) }
    }

    /// Puts `weights/packed.wgsl` together for a packing.
    pub fn packing(self, packing: Packing) -> Self {
        let pieces = packing.pieces().into_iter();
        let variant = pieces.fold(self, |variant, (path, instead)| variant.fragment(path, instead));
        match packing.group() {
            Some(group) => variant.spec("GROUP", group),
            None => variant,
        }
    }

    /// States what it needs.
    pub fn needs(mut self, needs: Needs) -> Self {
        self.needs = needs;
        self
    }

    /// States what it was written for.
    pub fn suits(mut self, hardware: Hardware) -> Self {
        self.suits = hardware;
        self
    }

    /// States that it changes the numbers.
    pub fn approximate(mut self) -> Self {
        self.approximate = true;
        self
    }
}

/// Least work that the definition asks for: the base of GB/s, GFLOP/s and share of the roof.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Work {
    /// Bytes that must be read and written once.
    pub bytes: u64,
    /// Floating-point operations, a fused multiply-add counting two.
    pub flops: u64,
}

/// How far a shader's result may be from the reference: `|got - want| <= abs + rel * |want|`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Tolerance {
    /// Absolute part.
    pub abs: f32,
    /// Relative part.
    pub rel: f32,
    /// Why this much, in a sentence.
    pub why: &'static str,
}

/// Contents of a buffer in a case or on the host device.
#[derive(Clone, Debug, PartialEq)]
pub enum CaseBuffer {
    /// f32 contents.
    F32(Vec<f32>),
    /// u32 contents: ids, packed weights.
    U32(Vec<u32>),
    /// An f32 output of this many elements, poisoned with NaN before the run: the op must write
    /// all of it and may not read it.
    Output(usize),
}

impl CaseBuffer {
    /// The contents as words, outputs as NaN.
    pub fn words(&self) -> Vec<u32> {
        match self {
            Self::F32(values) => bytemuck::cast_slice(values).to_vec(),
            Self::U32(values) => values.clone(),
            Self::Output(len) => vec![f32::NAN.to_bits(); *len],
        }
    }
}

/// A call that tests and benches run.
#[derive(Clone, Debug)]
pub struct Case {
    /// Unique within the op; names the shape where it occurs in a model if it does.
    pub name: String,
    /// The call.
    pub call: Call,
    /// Also timed by the benches, and therefore model-sized.
    pub bench: bool,
}

impl Case {
    /// A case for tests.
    pub fn new(name: impl Into<String>, call: Call) -> Self {
        Self { name: name.into(), call, bench: false }
    }

    /// A model-sized case that is also timed.
    pub fn bench(name: impl Into<String>, call: Call) -> Self {
        Self { name: name.into(), call, bench: true }
    }
}

/// A binding as the reference sees it: words in host memory.
pub enum HostBuffer<'a> {
    /// Bound `read`.
    Read(&'a [u32]),
    /// Bound `read_write`.
    ReadWrite(&'a mut [u32]),
}

impl HostBuffer<'_> {
    /// As words.
    pub fn u32(&self) -> &[u32] {
        match self {
            Self::Read(words) => words,
            Self::ReadWrite(words) => words,
        }
    }

    /// As floats.
    pub fn f32(&self) -> &[f32] {
        bytemuck::cast_slice(self.u32())
    }

    /// As mutable words.
    ///
    /// # Panics
    /// When the op declares this binding `read`: a mistake in the op's file.
    pub fn u32_mut(&mut self) -> &mut [u32] {
        match self {
            Self::Read(_) => panic!("the reference writes a binding that is declared read-only"),
            Self::ReadWrite(words) => words,
        }
    }

    /// As mutable floats.
    ///
    /// # Panics
    /// As [`HostBuffer::u32_mut`].
    pub fn f32_mut(&mut self) -> &mut [f32] {
        bytemuck::cast_slice_mut(self.u32_mut())
    }
}

/// A call with its buffers: what a recorder takes. `B` is whatever the device binds.
#[derive(Clone)]
pub struct Dispatch<B> {
    /// The op.
    pub op: &'static dyn Op,
    /// Parameters and weight format.
    pub call: Call,
    /// One buffer per binding, in the op's order.
    pub bindings: Vec<B>,
}

impl<B> Dispatch<B> {
    /// A dispatch of `op`.
    pub fn new(op: &'static dyn Op, call: Call, bindings: Vec<B>) -> Self {
        Self { op, call, bindings }
    }
}

/// An operation. One Rust file, one WGSL file with the same stem, one line in [`crate::OPS`].
pub trait Op: Sync + Send {
    /// The stem of the shader, of the Rust file, of the bench row.
    fn name(&self) -> &'static str;

    /// Path below `shaders/`; its entry point is [`Op::name`].
    fn shader(&self) -> &'static str;

    /// Storage bindings of a call: binding `i + 1` of group 0 is element `i` (binding 0 is
    /// `params`). Depends on the call only where a weight format or an output that may be left out
    /// brings buffers of its own.
    fn bindings(&self, call: &Call) -> Vec<Binding>;

    /// Fields of `Params`.
    fn fields(&self) -> &'static [Field];

    /// All ways to compute this call, the preferred first; the last needs nothing special.
    fn variants(&self, call: &Call) -> Vec<Variant>;

    /// The op whose measurements hold for this one: one with the same variants that does less with
    /// each result.
    fn tuned_as(&self) -> &'static str {
        self.name()
    }

    /// Sizes `[m, n, k]` of a product whose variants are worth measuring on a device; `None` for
    /// ops that run their first variant.
    fn sizes(&self, _call: &Call) -> Option<[u32; 3]> {
        None
    }

    /// Workgroups to run. Sizes above 65535 in a dimension are the op's to fold.
    fn grid(&self, call: &Call, variant: &Variant) -> [u32; 3];

    /// The definition, on the host, with the same parameters and buffers as the shader. It is
    /// also what the `cpu` device runs, so it may use rayon and `gemm`.
    fn reference(&self, call: &Call, buffers: &mut [HostBuffer<'_>]);

    /// Calls to test: 1, odd, prime, tile ± 1, model-sized; every format and every static choice.
    fn cases(&self) -> Vec<Case>;

    /// Buffers for a call, of the right sizes, seeded.
    fn buffers(&self, call: &Call, rng: &mut SeededRng) -> Vec<CaseBuffer>;

    /// Least bytes and flops of a call.
    fn work(&self, call: &Call) -> Work;

    /// Allowed difference between shader and reference.
    fn tolerance(&self, call: &Call) -> Tolerance;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_error_is_relative_to_the_result() {
        assert_eq!(nmse(&[0.0, 0.0], &[0.0, 0.0]), 0.0);
        assert!((nmse(&[1.0, 3.0], &[1.0, 2.0]) - 0.2).abs() < 1e-12);
        assert!(nmse(&[1.0], &[0.0]).is_infinite());
        assert!(nmse(&[f32::NAN], &[1.0]).is_nan());
    }
}
