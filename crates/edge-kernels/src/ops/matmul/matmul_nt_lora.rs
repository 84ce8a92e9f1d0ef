//! Product with the transpose of a weight matrix and the low-rank term of an adapter: the forward
//! pass of a linear layer with LoRA.
//!
//! Y\[m,n\] (+)= X\[m,k\] · W\[n,k\]ᵀ + scale · inner\[m,r\] · B\[b_row0..b_row0+n, r\]ᵀ
//!
//! | tensor | shape   | dtype      | role |
//! |--------|---------|------------|------|
//! | x      | [m, k]  | f32        | in, rows `ld_in` apart behind `in_offset` |
//! | y      | [m, n]  | f32        | out, rows `ld_out` apart behind `out_offset` |
//! | w      | [n, k]  | any format | in, some rows of the layer's weight |
//! | inner  | [m, r]  | f32        | in, x · Aᵀ |
//! | lora_b | [.., r] | f32        | in, of which row `b_row0` belongs to row 0 of W |
//!
//! How: the bodies of `matmul_nt`; the term joins the sums before they are stored, so that Y is
//! written once instead of written, read and written.
//! Accuracy: f32 products and sums over k and r, weights dequantised to f32.
//! Cost: as `matmul_nt`; the term adds r / k of the operations.
//! Source: Hu et al. 2021, "LoRA", eq. 3.

use crate::format::{Format, WeightBuffers};
use crate::op::{
    Binding, Call, Case, CaseBuffer, Dispatch, Field, HostBuffer, Op, Tolerance, Variant, Work,
    read,
};
use crate::ops::matmul::nt_bodies::Product;
use crate::ops::matmul::weight_rows::for_weight_rows;
use crate::ops::matmul::{strided_input, strided_output, weight_bindings, weight_buffers};
use crate::ops::product::{Layout, product};
use crate::util::{SeededRng, uniform_f32};

/// See the module.
pub struct MatmulNtLora;

crate::params! {
    /// Parameters of `matmul_nt_lora`; sizes, strides and offsets in elements.
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
        /// Columns of inner and B.
        rank: u32,
        /// Row of B that belongs to row 0 of W.
        b_row0: u32,
        /// Factor of the low-rank term.
        lora_scale: f32,
        /// Unused.
        pad0: u32,
    }
}

impl Params {
    /// Contiguous operands, overwriting, B from its first row.
    pub fn dense(m: u32, n: u32, k: u32, rank: u32, lora_scale: f32) -> Self {
        let (in_offset, out_offset, accumulate, b_row0, pad0) = (0, 0, 0, 0, 0);
        let (ld_in, ld_out) = (k, n);
        Self {
            m,
            n,
            k,
            ld_in,
            in_offset,
            ld_out,
            out_offset,
            accumulate,
            rank,
            b_row0,
            lora_scale,
            pad0,
        }
    }
}

/// Multiplies `x [m, k]` by the transpose of `w [n, k]`, adds `scale · inner [m, r] · bᵀ`, and
/// writes `y [m, n]`.
pub fn dispatch<B>(
    params: Params,
    w: WeightBuffers<B>,
    (inner, b): (B, B),
    x: B,
    y: B,
) -> Dispatch<B> {
    let call = Call::with_format(&params, w.format);
    let bindings = [x, y].into_iter().chain(w.bindings()).chain([inner, b]).collect();
    Dispatch::new(&MatmulNtLora, call, bindings)
}

fn body(call: &Call) -> Product {
    let p: Params = call.params();
    let Params { m, n, k, ld_in, in_offset, ld_out, out_offset, .. } = p;
    Product { m, n, k, ld_in, in_offset, ld_out, out_offset, format: call.format }
}

impl Op for MatmulNtLora {
    fn name(&self) -> &'static str {
        "matmul_nt_lora"
    }

    fn shader(&self) -> &'static str {
        "matmul/matmul_nt_lora.wgsl"
    }

    fn bindings(&self, call: &Call) -> Vec<Binding> {
        let mut bindings = weight_bindings("x", "y", call.format);
        bindings.extend([read("inner"), read("lora_b")]);
        bindings
    }

    fn fields(&self) -> &'static [Field] {
        Params::FIELDS
    }

    fn variants(&self, call: &Call) -> Vec<Variant> {
        let p: Params = call.params();
        let four = p.rank.is_multiple_of(4);
        let loads = if four { "lib/lora_vec4.wgsl" } else { "lib/lora_any.wgsl" };
        let inner = weight_bindings("x", "y", call.format).len() as u32 + 1;
        let with_term = |variant: Variant| {
            variant
                .fragment("lib/tail_none.wgsl", "lib/tail_lora.wgsl")
                .fragment("lib/lora_vec4.wgsl", loads)
                .spec("INNER_BINDING", inner)
        };
        // Sums of cooperative matrices are in no lane's registers, where more could be added.
        let exact = body(call)
            .variants()
            .into_iter()
            .filter(|variant| !variant.approximate && variant.needs.cooperative.is_none());
        exact.map(with_term).collect()
    }

    fn tuned_as(&self) -> &'static str {
        "matmul_nt"
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
        let [x, y, weights @ .., inner, b] = buffers else { unreachable!("five bindings or more") };
        let [m, n, k, rank] = [p.m, p.n, p.k, p.rank].map(|size| size as usize);
        let x_at = Layout::rows(p.in_offset as usize, p.ld_in as usize);
        let y_at = |first| Layout::rows(p.out_offset as usize + first, p.ld_out as usize);
        let y = y.f32_mut();
        for_weight_rows(call.format, [p.n, p.k], weights, |first, rows| {
            let w_at = Layout::rows(0, k).transposed();
            let (shape, add) = ([m, rows.len() / k, k], p.accumulate == 1);
            product(shape, 1.0, add, (x.f32(), x_at), (rows, w_at), (&mut *y, y_at(first)));
        });
        let b_at = Layout::rows(p.b_row0 as usize * rank, rank).transposed();
        let inner = (inner.f32(), Layout::rows(0, rank));
        product([m, n, rank], p.lora_scale, true, inner, (b.f32(), b_at), (y, y_at(0)));
    }

    fn cases(&self) -> Vec<Case> {
        let mut cases = Vec::new();
        let mut add = |name: &str, format: Format, params: Params| {
            let name = format!("{name}_{}", format.name());
            cases.push(Case::new(name, Call::with_format(&params, format)));
        };
        let q4 = Format::Q4;
        let shard = Params {
            ld_in: 72,
            in_offset: 4,
            ld_out: 131,
            out_offset: 5,
            accumulate: 1,
            b_row0: 3,
            ..Params::dense(35, 71, 64, 8, -0.75)
        };
        for format in [Format::F32, q4] {
            add("shard_35x71x64_r8", format, shard);
            // What stores four channels at once.
            add("four_35x72x64_r8", format, Params { n: 72, ld_out: 76, out_offset: 4, ..shard });
        }
        add("1x67x96_r8", q4, Params::dense(1, 67, 96, 8, 2.0));
        add("17x64x32_r4", q4, Params::dense(17, 64, 32, 4, 2.0));
        add("5x39x31_r3", Format::F32, Params::dense(5, 39, 31, 3, 0.5));
        add("1x1x1_r1", Format::F32, Params::dense(1, 1, 1, 1, 2.0));
        for (m, format) in [(1, q4), (256, Format::F32), (256, q4)] {
            let name = format!("tinyllama_q_proj_{m}x2048x2048_r8_{}", format.name());
            let params = Params::dense(m, 2048, 2048, 8, 2.0);
            cases.push(Case::bench(name, Call::with_format(&params, format)));
        }
        cases
    }

    fn buffers(&self, call: &Call, rng: &mut SeededRng) -> Vec<CaseBuffer> {
        let p: Params = call.params();
        let mut buffers = vec![
            strided_input(rng, [p.m, p.k], p.ld_in, p.in_offset),
            strided_output(rng, [p.m, p.n], p.ld_out, p.out_offset, p.accumulate),
        ];
        buffers.extend(weight_buffers(rng, call.format, p.n, p.k));
        buffers.push(uniform_f32(rng, (p.m * p.rank) as usize, -1.0, 1.0));
        buffers.push(uniform_f32(rng, ((p.b_row0 + p.n) * p.rank) as usize, -1.0, 1.0));
        buffers
    }

    fn work(&self, call: &Call) -> Work {
        let p: Params = call.params();
        let [m, n, k, rank] = [p.m, p.n, p.k, p.rank].map(u64::from);
        let outputs = m * n * (1 + u64::from(p.accumulate));
        let bytes = 4 * (m * k + outputs + rank * (m + n)) + call.format.bytes(p.n, p.k);
        Work { bytes, flops: 2 * m * n * (k + rank) }
    }

    fn tolerance(&self, call: &Call) -> Tolerance {
        let p: Params = call.params();
        super::sum_tolerance(p.k + p.rank, p.lora_scale)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pack::unpack;
    use rand::SeedableRng;

    #[test]
    fn the_reference_is_the_definition() {
        let mut rng = SeededRng::seed_from_u64(1);
        for case in MatmulNtLora.cases().iter().filter(|case| !case.bench) {
            let (call, p) = (&case.call, case.call.params::<Params>());
            let buffers = MatmulNtLora.buffers(call, &mut rng);
            let mut words: Vec<Vec<u32>> = buffers.iter().map(CaseBuffer::words).collect();
            let before: Vec<Vec<u32>> = words.clone();
            let mut host: Vec<HostBuffer<'_>> = Vec::new();
            for (at, words) in words.iter_mut().enumerate() {
                host.push(match at {
                    1 => HostBuffer::ReadWrite(words),
                    _ => HostBuffer::Read(words),
                });
            }
            MatmulNtLora.reference(call, &mut host);
            let float = |at: usize, i: u32| f64::from(f32::from_bits(before[at][i as usize]));
            let scales = if call.format.is_packed() { &before[3][..] } else { &[] };
            let w = unpack(call.format, p.n, p.k, &before[2], scales);
            let last = before.len() - 1;
            for (row, n) in (0..p.m).flat_map(|row| (0..p.n).map(move |n| (row, n))) {
                let term = |c: u32| {
                    float(0, p.in_offset + row * p.ld_in + c) * f64::from(w[(n * p.k + c) as usize])
                };
                let inner = |r: u32| {
                    float(last - 1, row * p.rank + r) * float(last, (p.b_row0 + n) * p.rank + r)
                };
                let at = p.out_offset + row * p.ld_out + n;
                let old = if p.accumulate == 1 { float(1, at) } else { 0.0 };
                let low: f64 = (0..p.rank).map(inner).sum();
                let want = old + (0..p.k).map(term).sum::<f64>() + f64::from(p.lora_scale) * low;
                let got = f64::from(f32::from_bits(words[1][at as usize]));
                let bound = f64::from(MatmulNtLora.tolerance(call).abs) + 1e-5 * want.abs();
                assert!((got - want).abs() <= bound, "{} [{row},{n}]: {got} {want}", case.name);
            }
        }
    }
}
