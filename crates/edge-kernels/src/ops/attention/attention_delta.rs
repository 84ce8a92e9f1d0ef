//! Attention, backward: what the softmax's gradient subtracts from each row, with its log-sum-exp.
//!
//! delta\[r,h\] = Σ_d out\[r,h,d\] · d_out\[r,h,d\]  (= Σ_j p\[j\] · dp\[j\])
//!
//! | tensor | shape                   | dtype | role |
//! |--------|-------------------------|-------|------|
//! | out    | [rows, heads, head_dim] | f32   | in   |
//! | d_out  | [rows, heads, head_dim] | f32   | in   |
//! | lse    | [rows, heads]           | f32   | in   |
//! | stats  | [rows, heads, 2]        | f32   | out: lse, delta |
//!
//! Both in one buffer, since `attention_backward_kv` binds as many as every device has.
//!
//! How: one invocation a row and head.
//! Accuracy: f32 sums over `head_dim`.
//! Cost: bound by bandwidth.

use rayon::prelude::*;

use crate::lanes;
use crate::op::{
    Binding, Call, Case, CaseBuffer, Dispatch, Field, HostBuffer, Op, Tolerance, Variant, Work,
    read, read_write,
};
use crate::util::{SeededRng, uniform_f32};

/// See the module.
pub struct AttentionDelta;

crate::params! {
    /// Parameters of `attention_delta`.
    pub struct Params {
        /// Rows (tokens).
        rows: u32,
        /// Query heads.
        heads: u32,
        /// Elements of a head.
        head_dim: u32,
    }
}

/// Writes `lse` and the products of `out` and `d_out`, head by head, to `stats`.
pub fn dispatch<B>(
    rows: u32,
    heads: u32,
    head_dim: u32,
    out: B,
    d_out: B,
    lse: B,
    stats: B,
) -> Dispatch<B> {
    let params = Params { rows, heads, head_dim };
    Dispatch::new(&AttentionDelta, Call::new(&params), vec![out, d_out, lse, stats])
}

impl Op for AttentionDelta {
    fn name(&self) -> &'static str {
        "attention_delta"
    }

    fn shader(&self) -> &'static str {
        "attention/attention_delta.wgsl"
    }

    fn bindings(&self, _: &Call) -> Vec<Binding> {
        vec![read("out"), read("d_out"), read("lse"), read_write("stats")]
    }

    fn fields(&self) -> &'static [Field] {
        Params::FIELDS
    }

    fn variants(&self, call: &Call) -> Vec<Variant> {
        vec![lanes::variant(lanes::by_four(&[call.params::<Params>().head_dim]))]
    }

    fn grid(&self, call: &Call, _: &Variant) -> [u32; 3] {
        let p: Params = call.params();
        lanes::grid(u64::from(p.rows) * u64::from(p.heads), false, 64)
    }

    fn reference(&self, call: &Call, buffers: &mut [HostBuffer<'_>]) {
        let p: Params = call.params();
        let [out, d_out, lse, stats] = buffers else { unreachable!("four bindings") };
        let (dim, count) = (p.head_dim as usize, (p.rows * p.heads) as usize);
        let heads = out.f32().par_chunks(dim).zip(d_out.f32().par_chunks(dim));
        let stats = stats.f32_mut()[..2 * count].par_chunks_exact_mut(2).zip(lse.f32());
        stats.zip(heads).with_min_len(64).for_each(|((stats, lse), (out, d_out))| {
            let sum: f64 = out.iter().zip(d_out).map(|(a, b)| f64::from(*a) * f64::from(*b)).sum();
            stats.copy_from_slice(&[*lse, sum as f32]);
        });
    }

    fn cases(&self) -> Vec<Case> {
        let call = |rows, heads, head_dim| Call::new(&Params { rows, heads, head_dim });
        let mut cases: Vec<Case> = [(1, 1, 1), (3, 5, 7), (5, 4, 20), (9, 8, 64), (2, 33, 128)]
            .map(|(r, heads, dim)| Case::new(format!("{r}x{heads}x{dim}"), call(r, heads, dim)))
            .into();
        cases.push(Case::bench("tinyllama_256", call(256, 32, 64)));
        cases
    }

    fn buffers(&self, call: &Call, rng: &mut SeededRng) -> Vec<CaseBuffer> {
        let p: Params = call.params();
        let rows = (p.rows * p.heads) as usize;
        let count = rows * p.head_dim as usize;
        vec![
            uniform_f32(rng, count, -1.0, 1.0),
            uniform_f32(rng, count, -1.0, 1.0),
            uniform_f32(rng, rows, -1.0, 1.0),
            CaseBuffer::Output(2 * rows),
        ]
    }

    fn work(&self, call: &Call) -> Work {
        let p: Params = call.params();
        let rows = u64::from(p.rows) * u64::from(p.heads);
        let count = rows * u64::from(p.head_dim);
        Work { bytes: 4 * (2 * count + 3 * rows), flops: 2 * count }
    }

    fn tolerance(&self, _: &Call) -> Tolerance {
        Tolerance { abs: 5e-6, rel: 1e-6, why: "f32 sums of mixed sign over head_dim" }
    }
}
