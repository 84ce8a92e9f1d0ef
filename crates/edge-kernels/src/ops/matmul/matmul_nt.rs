//! Product with the transpose of a weight matrix: the forward pass of a linear layer.
//!
//! Y\[m,n\] (+)= alpha · X\[m,k\] · W\[n,k\]ᵀ
//!
//! | tensor | shape  | dtype      | role |
//! |--------|--------|------------|------|
//! | x      | [m, k] | f32        | in, rows `ld_in` apart behind `in_offset` |
//! | y      | [m, n] | f32        | out, rows `ld_out` apart behind `out_offset` |
//! | w      | [n, k] | any format | in   |
//!
//! How: one of several bodies (`nt_bodies.rs`): slices of k for few rows, tiles through workgroup
//! memory or through the caches for many.
//! Accuracy: f32 products and sums over k, weights dequantised to f32.
//! Cost: bound by arithmetic from some dozen rows on, by the bytes of the weights below.

use crate::format::{Format, WeightBuffers};
use crate::op::{
    Binding, Call, Case, CaseBuffer, Dispatch, Field, HostBuffer, Op, Tolerance, Variant, Work,
};
use crate::ops::matmul::nt_bodies::Product;
use crate::ops::matmul::weight_rows::for_weight_rows;
use crate::ops::matmul::{strided_input, strided_output, weight_bindings, weight_buffers};
use crate::ops::product::{Layout, product};
use crate::util::SeededRng;

/// See the module.
pub struct MatmulNt;

crate::params! {
    /// Parameters of `matmul_nt`; sizes, strides and offsets in elements.
    pub struct Params {
        /// Rows of X and Y (tokens).
        m: u32,
        /// Rows of W (output channels).
        n: u32,
        /// Columns of X and W (input channels).
        k: u32,
        /// Between rows of X.
        ld_in: u32,
        /// Of the first element of X.
        in_offset: u32,
        /// Between rows of Y.
        ld_out: u32,
        /// Of the first element of Y.
        out_offset: u32,
        /// 1: adds to Y.
        accumulate: u32,
        /// Factor of the product.
        alpha: f32,
        /// Unused.
        pad0: u32,
        /// Unused.
        pad1: u32,
        /// Unused.
        pad2: u32,
    }
}

impl Params {
    /// Contiguous operands, `alpha` 1, overwriting.
    pub fn dense(m: u32, n: u32, k: u32) -> Self {
        Self {
            m,
            n,
            k,
            ld_in: k,
            in_offset: 0,
            ld_out: n,
            out_offset: 0,
            accumulate: 0,
            alpha: 1.0,
            pad0: 0,
            pad1: 0,
            pad2: 0,
        }
    }
}

/// Multiplies `x [m, k]` by the transpose of `w [n, k]` into `y [m, n]`.
pub fn dispatch<B>(params: Params, w: WeightBuffers<B>, x: B, y: B) -> Dispatch<B> {
    let call = Call::with_format(&params, w.format);
    Dispatch::new(&MatmulNt, call, [x, y].into_iter().chain(w.bindings()).collect())
}

fn body(call: &Call) -> Product {
    let p: Params = call.params();
    let Params { m, n, k, ld_in, in_offset, ld_out, out_offset, .. } = p;
    Product { m, n, k, ld_in, in_offset, ld_out, out_offset, format: call.format }
}

impl Op for MatmulNt {
    fn name(&self) -> &'static str {
        "matmul_nt"
    }

    fn shader(&self) -> &'static str {
        "matmul/matmul_nt.wgsl"
    }

    fn bindings(&self, call: &Call) -> Vec<Binding> {
        weight_bindings("x", "y", call.format)
    }

    fn fields(&self) -> &'static [Field] {
        Params::FIELDS
    }

    fn variants(&self, call: &Call) -> Vec<Variant> {
        body(call).variants()
    }

    fn sizes(&self, call: &Call) -> Option<[u32; 3]> {
        let p: Params = call.params();
        Some([p.m, p.n, p.k])
    }

    fn grid(&self, call: &Call, variant: &Variant) -> [u32; 3] {
        body(call).grid(variant)
    }

    fn reference(&self, call: &Call, buffers: &mut [HostBuffer<'_>]) {
        let p: Params = call.params();
        let [x, y, weights @ ..] = buffers else { unreachable!("three bindings or more") };
        let [m, k] = [p.m, p.k].map(|size| size as usize);
        let x_at = Layout::rows(p.in_offset as usize, p.ld_in as usize);
        let y = y.f32_mut();
        for_weight_rows(call.format, [p.n, p.k], weights, |first, rows| {
            let y_at = Layout::rows(p.out_offset as usize + first, p.ld_out as usize);
            let w_at = Layout::rows(0, k).transposed();
            let shape = [m, rows.len() / k, k];
            let add = p.accumulate == 1;
            product(shape, p.alpha, add, (x.f32(), x_at), (rows, w_at), (&mut *y, y_at));
        });
    }

    fn cases(&self) -> Vec<Case> {
        cases()
    }

    fn buffers(&self, call: &Call, rng: &mut SeededRng) -> Vec<CaseBuffer> {
        let p: Params = call.params();
        let mut buffers = vec![
            strided_input(rng, [p.m, p.k], p.ld_in, p.in_offset),
            strided_output(rng, [p.m, p.n], p.ld_out, p.out_offset, p.accumulate),
        ];
        buffers.extend(weight_buffers(rng, call.format, p.n, p.k));
        buffers
    }

    fn work(&self, call: &Call) -> Work {
        let p: Params = call.params();
        let [m, n, k] = [p.m, p.n, p.k].map(u64::from);
        let outputs = m * n * (1 + u64::from(p.accumulate));
        Work { bytes: 4 * (m * k + outputs) + call.format.bytes(p.n, p.k), flops: 2 * m * n * k }
    }

    fn tolerance(&self, call: &Call) -> Tolerance {
        let p: Params = call.params();
        super::sum_tolerance(p.k, p.alpha)
    }
}

/// Tiny shapes around the tiles, every format; shapes of TinyLlama and SmolLM2-135M to time.
fn cases() -> Vec<Case> {
    let mut cases = Vec::new();
    let mut add = |name: &str, format: Format, params: Params| {
        let name = format!("{name}_{}", format.name());
        cases.push(Case::new(name, Call::with_format(&params, format)));
    };
    for format in Format::TESTED {
        let shard = Params {
            ld_in: 72,
            in_offset: 4,
            ld_out: 131,
            out_offset: 5,
            accumulate: 1,
            alpha: -0.75,
            ..Params::dense(17, 71, 64)
        };
        // What packed formats share is tested with a few of them, the way from words to weights
        // with all, where no size is even.
        add("odd_17x39x69", format, Params { n: 39, k: 69, ..shard });
        add("even_1x72x192", format, Params::dense(1, 72, 192));
        // What stores four channels at once, and loads them so where they are a multiple of 8.
        let four = Params { m: 35, n: 72, ld_out: 76, out_offset: 4, ..shard };
        add("four_35x72x64", format, four);
        if format.packing().is_some_and(|packing| !packing.is_basic()) {
            continue;
        }
        add("many_35x71x64", format, Params { m: 35, ..shard });
        add("shard_17x71x64", format, shard);
        add("four_35x36x64", format, Params { n: 36, ..four });
        add("5x39x31", format, Params::dense(5, 39, 31));
        add("1x67x96", format, Params::dense(1, 67, 96));
        add("even_3x40x64", format, Params { ld_in: 72, in_offset: 8, ..Params::dense(3, 40, 64) });
    }
    for (m, n, k) in [(1, 1, 1), (2, 3, 8), (4, 5, 9), (33, 65, 40), (64, 8, 64), (9, 8, 264)] {
        add(&format!("{m}x{n}x{k}"), Format::F32, Params::dense(m, n, k));
    }
    // Beyond the largest tiles, in both directions.
    for format in [Format::F32, Format::F16, Format::Q4, Format::row_grouped(4)] {
        let params = Params { ld_in: 76, ..Params::dense(131, 133, 73) };
        add("tiles_131x133x73", format, params);
    }
    // Rows that start at odd elements, though k is a multiple of the block.
    let odd = Params { ld_in: 33, in_offset: 1, ..Params::dense(9, 40, 32) };
    add("odd_rows_9x40x32", Format::Q4, odd);
    let mut bench = |name: &str, format: Format, m, n, k| {
        let name = format!("{name}_{m}x{n}x{k}_{}", format.name());
        cases.push(Case::bench(name, Call::with_format(&Params::dense(m, n, k), format)));
    };
    for format in Format::TIMED {
        bench("tinyllama_q_proj", format, 1, 2048, 2048);
        bench("tinyllama_q_proj", format, 256, 2048, 2048);
    }
    for format in [Format::F32, Format::Q4] {
        bench("tinyllama_up_proj", format, 256, 5632, 2048);
        bench("tinyllama_down_proj", format, 256, 2048, 5632);
        bench("smollm2_up_proj", format, 256, 1536, 576);
    }
    bench("lora_a", Format::F32, 2048, 8, 64);
    bench("lora_a", Format::F32, 256, 8, 2048);
    bench("lora_b", Format::F32, 256, 2048, 8);
    bench("lora_a", Format::F32, 512, 8, 192);
    bench("lora_a", Format::F32, 512, 32, 192);
    bench("lora_b", Format::F32, 512, 192, 32);
    cases
}
