//! Causal attention with grouped queries, backward to the queries.
//!
//! dq\[i,h,:\] = scale · Σ_j ds\[i,j\] · k\[j,g,:\]
//! ds\[i,j\] = p\[i,j\] · (d_out\[i,h,:\]·v\[j,g,:\] − delta\[i,h\])
//! p\[i,j\] = exp(scale · q\[i,h,:\]·k\[j,g,:\] − lse\[i,h\])
//!
//! | tensor | shape                                    | dtype | role                    |
//! |--------|------------------------------------------|-------|-------------------------|
//! | q      | [batch · q_len, heads · head_dim]        | f32   | in                      |
//! | k      | [batch · kv_stride, kv_heads · head_dim] | f32   | in                      |
//! | v      | [batch · kv_stride, kv_heads · head_dim] | f32   | in                      |
//! | segments | [batch · q_len, 2]                     | u32   | in, as [`Params`] says  |
//! | stats  | [batch · q_len, heads, 2]                | f32   | in, of attention_delta  |
//! | d_out  | [batch · q_len, heads · head_dim]        | f32   | in                      |
//! | dq     | [batch · q_len, heads · head_dim]        | f32   | out                     |
//!
//! How: as the forward pass, with the probabilities formed again from the log-sum-exp.
//! On GPUs in two ways as well (`lib/attention_shared.wgsl`).
//! Accuracy: f32.
//! Cost: bound by loads of k and v.

use rayon::prelude::*;

use super::bodies::Shared;
use super::shape::{Mask, inputs, training_cases};
use crate::op::{
    Binding, Call, Case, CaseBuffer, Dispatch, Field, HostBuffer, Op, Tolerance, Variant, Work,
    read, read_write,
};
use crate::ops::attention::attention_forward::AttentionForward;
use crate::ops::product::{Layout, product_alone};
use crate::util::{SeededRng, uniform_vec};

pub use super::shape::Params;

/// Place of `segments` among the bindings.
pub(super) const SEGMENTS: usize = 3;

/// Queries that a task of the reference treats.
const BLOCK: usize = 32;

/// See the module.
pub struct AttentionBackwardQ;

/// Takes `d_out` back to the queries.
///
/// # Panics
/// As [`attention_forward::dispatch`](super::attention_forward::dispatch).
pub fn dispatch<B>(
    params: Params,
    q: B,
    k: B,
    v: B,
    segments: B,
    stats: B,
    d_out: B,
    dq: B,
) -> Dispatch<B> {
    params.check();
    let bindings = vec![q, k, v, segments, stats, d_out, dq];
    Dispatch::new(&AttentionBackwardQ, Call::new(&params), bindings)
}

/// The body for GPUs.
const SHARED: Shared = Shared {
    body: ["lib/attention_backward_q_own.wgsl", "lib/attention_backward_q_shared.wgsl"],
    held: 8,
    products: 2,
    handed: 1,
};

fn tiling(p: &Params) -> (Variant, [u32; 3]) {
    p.tiling("TQ", p.tile(3, p.query_rows()), p.query_rows())
}

impl Op for AttentionBackwardQ {
    fn name(&self) -> &'static str {
        "attention_backward_q"
    }

    fn shader(&self) -> &'static str {
        "attention/attention_backward_q.wgsl"
    }

    fn bindings(&self, _: &Call) -> Vec<Binding> {
        ["q", "k", "v", "segments", "stats", "d_out"]
            .map(read)
            .into_iter()
            .chain([read_write("dq")])
            .collect()
    }

    fn fields(&self) -> &'static [Field] {
        Params::FIELDS
    }

    fn variants(&self, call: &Call) -> Vec<Variant> {
        let p: Params = call.params();
        SHARED.variant(&p, p.query_rows()).into_iter().chain([tiling(&p).0]).collect()
    }

    fn grid(&self, call: &Call, variant: &Variant) -> [u32; 3] {
        let p: Params = call.params();
        match variant.name {
            "shared" => SHARED.grid(&p, p.query_rows()),
            _ => tiling(&p).1,
        }
    }

    fn reference(&self, call: &Call, buffers: &mut [HostBuffer<'_>]) {
        let p: Params = call.params();
        let [inputs @ .., dq] = buffers else { unreachable!("seven bindings") };
        let segments = inputs[SEGMENTS].u32();
        let inputs: Vec<&[f32]> = inputs.iter().map(HostBuffer::f32).collect();
        let width = p.q_width();
        let sequences = dq.f32_mut()[..p.q_count()].par_chunks_mut(p.q_len as usize * width);
        sequences.enumerate().for_each(|(sequence, dq)| {
            let mask = p.mask(segments, sequence);
            let blocks = dq.par_chunks_mut(BLOCK * width).enumerate();
            blocks.for_each_init(<[Vec<f32>; 2]>::default, |scratch, (block, dq)| {
                backward_block(&mask, sequence, block * BLOCK, &inputs, scratch, dq);
            });
        });
    }

    fn cases(&self) -> Vec<Case> {
        training_cases(&[7, 16, 20, 64, 128])
    }

    fn buffers(&self, call: &Call, rng: &mut SeededRng) -> Vec<CaseBuffer> {
        let p: Params = call.params();
        let mut buffers = backward_inputs(&p, rng);
        buffers.push(CaseBuffer::Output(p.q_count()));
        buffers
    }

    fn work(&self, call: &Call) -> Work {
        let p: Params = call.params();
        let tokens = (p.batch * p.q_len) as usize;
        let counts = 3 * p.q_count() + 2 * p.kv_count() + 2 * p.rows() + 2 * tokens;
        Work { bytes: 4 * counts as u64, flops: 6 * p.pairs() * u64::from(p.head_dim) }
    }

    fn tolerance(&self, _: &Call) -> Tolerance {
        Tolerance { abs: 1e-4, rel: 2e-5, why: "p of f32 scores up to 30; terms of mixed sign" }
    }
}

/// q, k, v, segments, stats and d_out in the middle of a model: a random upstream gradient, and
/// what the forward pass and `attention_delta` make of the rest.
pub(super) fn backward_inputs(p: &Params, rng: &mut SeededRng) -> Vec<CaseBuffer> {
    let [q, k, v] = inputs(p, rng);
    let segments = p.segments(rng);
    let d_out = uniform_vec(rng, p.q_count(), -1.0, 1.0);
    let (mut out, mut lse) = (vec![0.0_f32; p.q_count()], vec![0.0_f32; p.rows()]);
    AttentionForward.reference(
        &Call::new(p),
        &mut [
            HostBuffer::Read(bytemuck::cast_slice(&q)),
            HostBuffer::Read(bytemuck::cast_slice(&k)),
            HostBuffer::Read(bytemuck::cast_slice(&v)),
            HostBuffer::Read(&segments),
            HostBuffer::ReadWrite(bytemuck::cast_slice_mut(&mut out)),
            HostBuffer::ReadWrite(bytemuck::cast_slice_mut(&mut lse)),
        ],
    );
    let dim = p.head_dim as usize;
    let heads = out.chunks(dim).zip(d_out.chunks(dim));
    let delta = heads.map(|(out, d_out)| out.iter().zip(d_out).map(|(a, b)| a * b).sum());
    let stats = lse.into_iter().zip(delta).flat_map(|(lse, delta): (f32, f32)| [lse, delta]);
    let stats = CaseBuffer::F32(stats.collect());
    let [q, k, v, d_out] = [q, k, v, d_out].map(CaseBuffer::F32);
    vec![q, k, v, CaseBuffer::U32(segments), stats, d_out]
}

/// Queries `first..` of a sequence, as many as `dq` has rows.
fn backward_block(
    mask: &Mask<'_>,
    sequence: usize,
    first: usize,
    inputs: &[&[f32]],
    [scores, dp]: &mut [Vec<f32>; 2],
    dq: &mut [f32],
) {
    let [q, k, v, _, stats, d_out] = inputs else { unreachable!("six inputs") };
    let p = mask.p;
    let (width, kv_width, dim) = (p.q_width(), p.kv_width(), p.head_dim as usize);
    let (heads, count) = (p.heads as usize, dq.len() / width);
    let keys = mask.keys(first).start..mask.keys(first + count - 1).end;
    scores.resize(count * keys.len(), 0.0);
    dp.resize(count * keys.len(), 0.0);
    let at_scores = Layout::rows(0, keys.len());
    let key_row = sequence * p.kv_stride as usize + keys.start;
    let token = sequence * p.q_len as usize + first;
    for head in 0..heads {
        let kv_head = head / p.group() as usize;
        let at_q = Layout::rows(token * width + head * dim, width);
        let at_keys = Layout::rows(key_row * kv_width + kv_head * dim, kv_width);
        let shape = [count, keys.len(), dim];
        let transposed = at_keys.transposed();
        product_alone(shape, p.scale, false, (q, at_q), (k, transposed), (scores, at_scores));
        product_alone(shape, 1.0, false, (d_out, at_q), (v, transposed), (dp, at_scores));
        for i in 0..count {
            let seen = mask.keys(first + i);
            let row = (token + i) * heads + head;
            let (lse, delta) = (stats[2 * row], stats[2 * row + 1]);
            let range = i * keys.len()..(i + 1) * keys.len();
            let pairs = scores[range.clone()].iter_mut().zip(&dp[range]);
            for (key, (score, dp)) in keys.clone().zip(pairs) {
                *score =
                    if seen.contains(&key) { (*score - lse).exp() * (dp - delta) } else { 0.0 };
            }
        }
        let at_dq = Layout::rows(head * dim, width);
        let shape = [count, dim, keys.len()];
        product_alone(shape, p.scale, false, (scores, at_scores), (k, at_keys), (dq, at_dq));
    }
}
