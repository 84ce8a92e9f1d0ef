//! Causal attention with grouped queries, backward to keys and values.
//!
//! dv\[j,g,:\] = Σ_{i,h} p\[i,j\] · d_out\[i,h,:\],
//! dk\[j,g,:\] = scale · Σ_{i,h} ds\[i,j\] · q\[i,h,:\]
//! ds\[i,j\] = p\[i,j\] · (d_out\[i,h,:\]·v\[j,g,:\] − delta\[i,h\])
//! p\[i,j\] = exp(scale · q\[i,h,:\]·k\[j,g,:\] − lse\[i,h\])
//! over the queries i that attend key j and the heads h of the group of g
//!
//! | tensor | shape                                    | dtype | role                      |
//! |--------|------------------------------------------|-------|---------------------------|
//! | q      | [batch · q_len, heads · head_dim]        | f32   | in                        |
//! | k      | [batch · kv_stride, kv_heads · head_dim] | f32   | in                        |
//! | v      | [batch · kv_stride, kv_heads · head_dim] | f32   | in                        |
//! | segments | [batch · q_len, 2]                     | u32   | in, as [`Params`] says    |
//! | stats  | [batch · q_len, heads, 2]                | f32   | in, of attention_delta    |
//! | d_out  | [batch · q_len, heads · head_dim]        | f32   | in                        |
//! | dk     | as k                                     | f32   | out, rows before `kv_len` |
//! | dv     | as v                                     | f32   | out, rows before `kv_len` |
//!
//! How: an invocation owns a key, or up to four, of a key-value head and loops over the queries
//! that attend it and the heads of the group, so no atomics are needed.
//! On GPUs a workgroup holds four keys and streams query rows past them
//! (`lib/attention_shared.wgsl`).
//! Accuracy: f32.
//! Cost: bound by loads of q and d_out.

use rayon::prelude::*;

use super::attention_backward_q::{SEGMENTS, backward_inputs};
use super::bodies::Shared;
use super::shape::{Mask, training_cases};
use crate::op::{
    Binding, Call, Case, CaseBuffer, Dispatch, Field, HostBuffer, Op, Tolerance, Variant, Work,
    read, read_write,
};
use crate::ops::product::{Layout, product_alone};
use crate::util::SeededRng;

pub use super::shape::Params;

/// Keys that a task of the reference treats.
const BLOCK: usize = 32;

/// See the module.
pub struct AttentionBackwardKv;

/// Takes `d_out` back to keys and values.
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
    dk: B,
    dv: B,
) -> Dispatch<B> {
    params.check();
    let bindings = vec![q, k, v, segments, stats, d_out, dk, dv];
    Dispatch::new(&AttentionBackwardKv, Call::new(&params), bindings)
}

/// The body for GPUs.
const SHARED: Shared = Shared {
    body: ["lib/attention_backward_kv_own.wgsl", "lib/attention_backward_kv_shared.wgsl"],
    held: 4,
    products: 2,
    handed: 2,
};

fn tiling(p: &Params) -> (Variant, [u32; 3]) {
    p.tiling("TK", p.tile(4, p.kv_len), p.kv_len)
}

impl Op for AttentionBackwardKv {
    fn name(&self) -> &'static str {
        "attention_backward_kv"
    }

    fn shader(&self) -> &'static str {
        "attention/attention_backward_kv.wgsl"
    }

    fn bindings(&self, _: &Call) -> Vec<Binding> {
        let inputs = ["q", "k", "v", "segments", "stats", "d_out"].map(read);
        inputs.into_iter().chain(["dk", "dv"].map(read_write)).collect()
    }

    fn fields(&self) -> &'static [Field] {
        Params::FIELDS
    }

    fn variants(&self, call: &Call) -> Vec<Variant> {
        let p: Params = call.params();
        SHARED.variant(&p, p.kv_len).into_iter().chain([tiling(&p).0]).collect()
    }

    fn grid(&self, call: &Call, variant: &Variant) -> [u32; 3] {
        let p: Params = call.params();
        match variant.name {
            "shared" => SHARED.grid(&p, p.kv_len),
            _ => tiling(&p).1,
        }
    }

    fn reference(&self, call: &Call, buffers: &mut [HostBuffer<'_>]) {
        let p: Params = call.params();
        let [inputs @ .., dk, dv] = buffers else { unreachable!("eight bindings") };
        let segments = inputs[SEGMENTS].u32();
        let inputs: Vec<&[f32]> = inputs.iter().map(HostBuffer::f32).collect();
        let width = p.kv_width();
        let (stride, len) = (p.kv_stride as usize * width, p.kv_len as usize * width);
        let sequences = dk.f32_mut()[..p.kv_count()]
            .par_chunks_mut(stride)
            .zip(dv.f32_mut()[..p.kv_count()].par_chunks_mut(stride));
        sequences.enumerate().for_each(|(sequence, (dk, dv))| {
            let mask = p.mask(segments, sequence);
            let blocks = dk[..len]
                .par_chunks_mut(BLOCK * width)
                .zip(dv[..len].par_chunks_mut(BLOCK * width));
            blocks.enumerate().for_each_init(
                <[Vec<f32>; 2]>::default,
                |scratch, (block, (dk, dv))| {
                    backward_block(&mask, sequence, block * BLOCK, &inputs, scratch, dk, dv);
                },
            );
        });
    }

    fn cases(&self) -> Vec<Case> {
        training_cases(&[7, 16, 20, 64, 128])
    }

    fn buffers(&self, call: &Call, rng: &mut SeededRng) -> Vec<CaseBuffer> {
        let p: Params = call.params();
        let mut buffers = backward_inputs(&p, rng);
        buffers.extend([CaseBuffer::Output(p.kv_count()), CaseBuffer::Output(p.kv_count())]);
        buffers
    }

    fn work(&self, call: &Call) -> Work {
        let p: Params = call.params();
        let tokens = (p.batch * p.q_len) as usize;
        let counts = 2 * p.q_count() + 4 * p.kv_count() + 2 * p.rows() + 2 * tokens;
        Work { bytes: 4 * counts as u64, flops: 8 * p.pairs() * u64::from(p.head_dim) }
    }

    fn tolerance(&self, _: &Call) -> Tolerance {
        Tolerance { abs: 2e-4, rel: 2e-5, why: "p of f32 scores up to 30; sums over a group" }
    }
}

/// Keys `first..` of a sequence, as many as `dk` and `dv` have rows.
fn backward_block(
    mask: &Mask<'_>,
    sequence: usize,
    first: usize,
    inputs: &[&[f32]],
    [scores, dp]: &mut [Vec<f32>; 2],
    dk: &mut [f32],
    dv: &mut [f32],
) {
    let [q, k, v, _, stats, d_out] = inputs else { unreachable!("six inputs") };
    let p = mask.p;
    let (width, kv_width, dim) = (p.q_width(), p.kv_width(), p.head_dim as usize);
    let (heads, count) = (p.heads as usize, dk.len() / kv_width);
    dk.fill(0.0);
    dv.fill(0.0);
    let queries = mask.queries(first).start..mask.queries(first + count - 1).end;
    if queries.is_empty() {
        return;
    }
    scores.resize(count * queries.len(), 0.0);
    dp.resize(count * queries.len(), 0.0);
    let at_scores = Layout::rows(0, queries.len());
    let key_row = sequence * p.kv_stride as usize + first;
    let token = sequence * p.q_len as usize;
    for head in 0..heads {
        let kv_head = head / p.group() as usize;
        let at_q = Layout::rows((token + queries.start) * width + head * dim, width);
        let at_keys = Layout::rows(key_row * kv_width + kv_head * dim, kv_width);
        let shape = [count, queries.len(), dim];
        let transposed = at_q.transposed();
        product_alone(shape, p.scale, false, (k, at_keys), (q, transposed), (scores, at_scores));
        product_alone(shape, 1.0, false, (v, at_keys), (d_out, transposed), (dp, at_scores));
        for i in 0..count {
            let seen = mask.queries(first + i);
            let range = i * queries.len()..(i + 1) * queries.len();
            let pairs = scores[range.clone()].iter_mut().zip(&mut dp[range]);
            for (query, (score, dp)) in queries.clone().zip(pairs) {
                let row = (token + query) * heads + head;
                let (lse, delta) = (stats[2 * row], stats[2 * row + 1]);
                let p = if seen.contains(&query) { (*score - lse).exp() } else { 0.0 };
                *score = p;
                *dp = p * (*dp - delta);
            }
        }
        let at_out = Layout::rows(kv_head * dim, kv_width);
        let shape = [count, dim, queries.len()];
        product_alone(shape, 1.0, true, (scores, at_scores), (d_out, at_q), (dv, at_out));
        product_alone(shape, p.scale, true, (dp, at_scores), (q, at_q), (dk, at_out));
    }
}
