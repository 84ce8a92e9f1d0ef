//! Product with the transpose of a weight matrix, gated: the up projection of an MLP and its
//! activation.
//!
//! hidden\[m,n\] = silu(gate\[m,n\]) · (X\[m,k\] · W\[n,k\]ᵀ),  silu(g) = g · sigmoid(g)
//!
//! | tensor | shape  | dtype      | role |
//! |--------|--------|------------|------|
//! | x      | [m, k] | f32        | in, rows `ld_in` apart behind `in_offset` |
//! | hidden | [m, n] | f32        | out, rows `ld_out` apart behind `out_offset` |
//! | w      | [n, k] | any format | in   |
//! | gate   | [m, n] | f32        | in, placed as `hidden` |
//! | up     | [m, n] | f32        | out, placed as `hidden`: X·Wᵀ, only with `keep_up` |
//!
//! How: the bodies of `matmul_nt`, with the activation where they store. A backward pass needs the
//! up projection itself, so passes with one set `keep_up`.
//! Accuracy: f32 products and sums over k, weights dequantised to f32; the sigmoid as in
//! `swiglu_forward`.
//! Cost: as `matmul_nt`; against it and `swiglu_forward` one dispatch, one reading and one writing
//! of [m, n] less, with `keep_up` one dispatch and one reading.
//! Source: Shazeer 2020, "GLU Variants Improve Transformer".

use crate::format::{Format, WeightBuffers};
use crate::op::{
    Binding, Call, Case, CaseBuffer, Dispatch, Field, HostBuffer, Op, Tolerance, Variant, Work,
    read, read_write,
};
use crate::ops::activation::swiglu_forward::{gates, sigmoid};
use crate::ops::matmul::nt_bodies::Product;
use crate::ops::matmul::weight_rows::for_weight_rows;
use crate::ops::matmul::{strided_input, strided_output, weight_bindings, weight_buffers};
use crate::ops::product::{Layout, product};
use crate::util::SeededRng;

/// See the module.
pub struct MatmulNtSwiglu;

crate::params! {
    /// Parameters of `matmul_nt_swiglu`; sizes, strides and offsets in elements.
    pub struct Params {
        /// Rows of X (tokens).
        m: u32,
        /// Rows of W (output channels).
        n: u32,
        /// Columns of X and W (input channels).
        k: u32,
        /// Between rows of X.
        ld_in: u32,
        /// Of the first element of X.
        in_offset: u32,
        /// Between rows of gate and hidden.
        ld_out: u32,
        /// Of the first element of gate and hidden.
        out_offset: u32,
        /// 1: the product is written too.
        keep_up: u32,
    }
}

impl Params {
    /// Contiguous operands.
    pub fn dense(m: u32, n: u32, k: u32) -> Self {
        Self { m, n, k, ld_in: k, in_offset: 0, ld_out: n, out_offset: 0, keep_up: 0 }
    }
}

/// Multiplies `x [m, k]` by the transpose of `w [n, k]` and by `silu(gate [m, n])` into
/// `hidden [m, n]`; with `up` the product itself is written there.
pub fn dispatch<B>(
    params: Params,
    w: WeightBuffers<B>,
    x: B,
    gate: B,
    hidden: B,
    up: Option<B>,
) -> Dispatch<B> {
    let params = Params { keep_up: up.is_some().into(), ..params };
    let call = Call::with_format(&params, w.format);
    let bindings = [x, hidden].into_iter().chain(w.bindings()).chain([gate]).chain(up).collect();
    Dispatch::new(&MatmulNtSwiglu, call, bindings)
}

/// Number of bindings before `gate`.
fn plain_bindings(call: &Call) -> usize {
    weight_bindings("x", "hidden", call.format).len()
}

fn body(call: &Call) -> Product {
    let p: Params = call.params();
    let Params { m, n, k, ld_in, in_offset, ld_out, out_offset, .. } = p;
    Product { m, n, k, ld_in, in_offset, ld_out, out_offset, format: call.format }
}

impl Op for MatmulNtSwiglu {
    fn name(&self) -> &'static str {
        "matmul_nt_swiglu"
    }

    fn shader(&self) -> &'static str {
        "matmul/matmul_nt_swiglu.wgsl"
    }

    fn bindings(&self, call: &Call) -> Vec<Binding> {
        let mut bindings = weight_bindings("x", "hidden", call.format);
        bindings.push(read("gate"));
        if call.params::<Params>().keep_up == 1 {
            bindings.push(read_write("up"));
        }
        bindings
    }

    fn fields(&self) -> &'static [Field] {
        Params::FIELDS
    }

    fn variants(&self, call: &Call) -> Vec<Variant> {
        let gate = plain_bindings(call) as u32 + 1;
        // Sums of cooperative matrices are in no lane's registers, where more could be added.
        let exact = body(call)
            .variants()
            .into_iter()
            .filter(|variant| !variant.approximate && variant.needs.cooperative.is_none());
        let up = match call.params::<Params>().keep_up {
            1 => "lib/up_kept.wgsl",
            _ => "lib/up_dropped.wgsl",
        };
        let place = |variant: Variant| {
            variant.spec("GATE_BINDING", gate).fragment("lib/up_dropped.wgsl", up)
        };
        exact.map(place).collect()
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
        let (buffers, up) = buffers.split_at_mut(plain_bindings(call) + 1);
        let [x, hidden, weights @ .., gate] = buffers else {
            unreachable!("four bindings or more")
        };
        let [m, n, k] = [p.m, p.n, p.k].map(|size| size as usize);
        let (offset, ld) = (p.out_offset as usize, p.ld_out as usize);
        let x_at = Layout::rows(p.in_offset as usize, p.ld_in as usize);
        let (gate, hidden) = (gate.f32(), hidden.f32_mut());
        for_weight_rows(call.format, [p.n, p.k], weights, |first, rows| {
            let (shape, w_at) = ([m, rows.len() / k, k], Layout::rows(0, k).transposed());
            let out = (&mut *hidden, Layout::rows(offset + first, ld));
            product(shape, 1.0, false, (x.f32(), x_at), (rows, w_at), out);
        });
        for row in 0..m {
            if let [up] = &mut *up {
                let at = offset + row * ld..offset + row * ld + n;
                up.f32_mut()[at.clone()].copy_from_slice(&hidden[at]);
            }
            for at in offset + row * ld..offset + row * ld + n {
                hidden[at] *= gate[at] * sigmoid(gate[at]);
            }
        }
    }

    fn cases(&self) -> Vec<Case> {
        let mut cases = Vec::new();
        let mut add = |name: &str, format: Format, params: Params| {
            let name = format!("{name}_{}", format.name());
            cases.push(Case::new(name, Call::with_format(&params, format)));
        };
        let q4 = Format::Q4;
        let shard = Params { ld_out: 131, out_offset: 5, ..Params::dense(35, 71, 64) };
        for format in [Format::F32, q4] {
            add("shard_35x71x64", format, shard);
            add("shard_kept_35x71x64", format, Params { keep_up: 1, ..shard });
            // What stores four channels at once.
            let four = Params { n: 72, ld_out: 76, out_offset: 4, ..shard };
            add("four_35x72x64", format, four);
            add("four_kept_35x72x64", format, Params { keep_up: 1, ..four });
        }
        add("kept_1x67x96", q4, Params { keep_up: 1, ..Params::dense(1, 67, 96) });
        add("kept_5x39x31", Format::F32, Params { keep_up: 1, ..Params::dense(5, 39, 31) });
        add("1x67x96", q4, Params::dense(1, 67, 96));
        add("17x64x32", q4, Params { ld_in: 36, in_offset: 4, ..Params::dense(17, 64, 32) });
        add("5x39x31", Format::F32, Params::dense(5, 39, 31));
        add("1x1x1", Format::F32, Params::dense(1, 1, 1));
        for (m, format) in [(1, q4), (256, Format::F32), (256, q4)] {
            let name = format!("tinyllama_up_proj_{m}x5632x2048_{}", format.name());
            let params = Params::dense(m, 5632, 2048);
            cases.push(Case::bench(name, Call::with_format(&params, format)));
        }
        let kept = Params { keep_up: 1, ..Params::dense(64, 1536, 576) };
        let name = "smollm2_up_proj_kept_64x1536x576_q4";
        cases.push(Case::bench(name, Call::with_format(&kept, q4)));
        cases
    }

    fn buffers(&self, call: &Call, rng: &mut SeededRng) -> Vec<CaseBuffer> {
        let p: Params = call.params();
        let mut buffers = vec![
            strided_input(rng, [p.m, p.k], p.ld_in, p.in_offset),
            strided_output(rng, [p.m, p.n], p.ld_out, p.out_offset, 0),
        ];
        buffers.extend(weight_buffers(rng, call.format, p.n, p.k));
        let len = (p.out_offset + (p.m - 1) * p.ld_out + p.n) as usize;
        // An infinite product of a huge gate and a sum of any sign has no tolerance.
        let gates = gates(rng, len).into_iter().map(|gate| gate.clamp(-120.0, 120.0)).collect();
        buffers.push(CaseBuffer::F32(gates));
        if p.keep_up == 1 {
            let up = strided_output(rng, [p.m, p.n], p.ld_out, p.out_offset, 0);
            buffers.push(up);
        }
        buffers
    }

    fn work(&self, call: &Call) -> Work {
        let p: Params = call.params();
        let [m, n, k] = [p.m, p.n, p.k].map(u64::from);
        let bytes = 4 * (m * k + (2 + u64::from(p.keep_up)) * m * n) + call.format.bytes(p.n, p.k);
        Work { bytes, flops: 2 * m * n * k + 6 * m * n }
    }

    fn tolerance(&self, call: &Call) -> Tolerance {
        // A gate multiplies the error of the sum, by up to 120 in the cases.
        let sum = super::sum_tolerance(call.params::<Params>().k, 120.0);
        Tolerance { why: "f32 sums in another order, times silu of gates up to 120", ..sum }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::activation::swiglu_forward;
    use crate::ops::matmul::matmul_nt;
    use rand::SeedableRng;

    /// The two ops that it replaces give the same.
    #[test]
    fn it_is_a_product_and_swiglu() {
        let mut rng = SeededRng::seed_from_u64(1);
        let (m, n, k) = (3, 20, 37);
        let call = Call::new(&Params { keep_up: 1, ..Params::dense(m, n, k) });
        let mut words: Vec<Vec<u32>> =
            MatmulNtSwiglu.buffers(&call, &mut rng).iter().map(CaseBuffer::words).collect();
        let [x, hidden, w, gate, kept] = &mut words[..] else { unreachable!("five buffers") };
        let mut up = hidden.clone();
        MatmulNtSwiglu.reference(
            &call,
            &mut [
                HostBuffer::Read(x),
                HostBuffer::ReadWrite(hidden),
                HostBuffer::Read(w),
                HostBuffer::Read(gate),
                HostBuffer::ReadWrite(kept),
            ],
        );
        matmul_nt::MatmulNt.reference(
            &Call::new(&matmul_nt::Params::dense(m, n, k)),
            &mut [HostBuffer::Read(x), HostBuffer::ReadWrite(&mut up), HostBuffer::Read(w)],
        );
        assert_eq!(*kept, up);
        let mut want = hidden.clone();
        let swiglu = swiglu_forward::dispatch(m * n, (), (), ());
        swiglu.op.reference(
            &swiglu.call,
            &mut [HostBuffer::Read(gate), HostBuffer::Read(&up), HostBuffer::ReadWrite(&mut want)],
        );
        for (got, want) in hidden.iter().zip(&want) {
            let (got, want) = (f32::from_bits(*got), f32::from_bits(*want));
            assert!((got - want).abs() <= 1e-6 * want.abs(), "{got} {want}");
        }
    }
}
