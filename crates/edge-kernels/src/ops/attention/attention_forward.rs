//! Causal attention with grouped queries, forward.
//!
//! out\[i,h,:\] = Σ_j p\[i,j\] · v\[j,g,:\],
//! p\[i,j\] = exp(scale · q\[i,h,:\]·k\[j,g,:\] − lse\[i,h\])
//! lse\[i,h\] = ln Σ_j exp(scale · q\[i,h,:\]·k\[j,g,:\]),  g = h / (heads / kv_heads)
//!
//! | tensor | shape                                   | dtype | role                      |
//! |--------|-----------------------------------------|-------|---------------------------|
//! | q      | [batch · q_len, heads · head_dim]       | f32   | in                        |
//! | k      | [batch · kv_stride, kv_heads · head_dim]| f32   | in                        |
//! | v      | [batch · kv_stride, kv_heads · head_dim]| f32   | in                        |
//! | segments | [batch · q_len, 2]                    | u32   | in, as [`Params`] says    |
//! | out    | [batch · q_len, heads · head_dim]       | f32   | out                       |
//! | lse    | [batch · q_len, heads]                  | f32   | out, for the backward pass|
//!
//! How: softmax online over the keys that are attended, from the window's lower edge to the
//! diagonal, so no score reaches memory. An invocation treats up to four query rows (heads of a
//! group, then queries) that share a key-value head, and with it all loads of k and v.
//! On GPUs a workgroup holds eight query rows and streams the keys past them, several lanes a key
//! (`lib/attention_shared.wgsl`), since rows are too few to give each an invocation.
//! Accuracy: f32; the running maximum keeps every exponent at 0 or below.
//! Cost: bound by loads of k and v.
//! Source: Milakov and Gimelshein 2018, "Online normalizer calculation for softmax".

use rayon::prelude::*;

use super::bodies::Shared;
use super::shape::{Mask, inputs, training_cases};
use crate::op::{
    Binding, Call, Case, CaseBuffer, Dispatch, Field, HostBuffer, Op, Tolerance, Variant, Work,
    read, read_write,
};
use crate::ops::product::{Layout, product_alone};
use crate::util::SeededRng;

pub use super::shape::Params;

/// Queries that a task of the reference treats.
const BLOCK: usize = 32;

/// See the module.
pub struct AttentionForward;

/// Attends `k` and `v` from `q`, within `segments`.
///
/// # Panics
/// When `heads` is no multiple of `kv_heads`, or a query has no key of its own.
pub fn dispatch<B>(params: Params, q: B, k: B, v: B, segments: B, out: B, lse: B) -> Dispatch<B> {
    params.check();
    Dispatch::new(&AttentionForward, Call::new(&params), vec![q, k, v, segments, out, lse])
}

/// The body for GPUs.
const SHARED: Shared = Shared {
    body: ["lib/attention_forward_own.wgsl", "lib/attention_forward_shared.wgsl"],
    held: 8,
    products: 1,
    handed: 2,
};

fn tiling(p: &Params) -> (Variant, [u32; 3]) {
    p.tiling("TQ", p.tile(2, p.query_rows()), p.query_rows())
}

impl Op for AttentionForward {
    fn name(&self) -> &'static str {
        "attention_forward"
    }

    fn shader(&self) -> &'static str {
        "attention/attention_forward.wgsl"
    }

    fn bindings(&self, _: &Call) -> Vec<Binding> {
        let inputs = ["q", "k", "v", "segments"].map(read);
        inputs.into_iter().chain(["out", "lse"].map(read_write)).collect()
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
        let [q, k, v, segments, out, lse] = buffers else { unreachable!("six bindings") };
        let (q, k, v, segments) = (q.f32(), k.f32(), v.f32(), segments.u32());
        let (width, heads) = (p.q_width(), p.heads as usize);
        let sequences = out.f32_mut()[..p.q_count()].par_chunks_mut(p.q_len as usize * width);
        let lses = lse.f32_mut()[..p.rows()].par_chunks_mut(p.q_len as usize * heads);
        sequences.zip(lses).enumerate().for_each(|(sequence, (out, lse))| {
            let mask = p.mask(segments, sequence);
            let blocks = out.par_chunks_mut(BLOCK * width).zip(lse.par_chunks_mut(BLOCK * heads));
            blocks.enumerate().for_each_init(Vec::new, |scores, (block, (out, lse))| {
                forward_block(&mask, sequence, block * BLOCK, [q, k, v], scores, out, lse);
            });
        });
    }

    fn cases(&self) -> Vec<Case> {
        let mut cases = training_cases(&[7, 8, 16, 20, 32, 64, 80, 128]);
        let base = Params::causal(1, 1, 4, 2, 16);
        for (name, params) in [
            ("decode", Params { kv_len: 37, kv_stride: 50, position0: 36, ..base }),
            (
                "decode_window",
                Params { kv_len: 37, kv_stride: 37, position0: 36, window: 5, ..base },
            ),
            (
                "append",
                Params { batch: 2, q_len: 5, kv_len: 12, kv_stride: 16, position0: 7, ..base },
            ),
            (
                "append_window",
                Params { q_len: 6, kv_len: 15, kv_stride: 20, position0: 7, window: 4, ..base },
            ),
        ] {
            cases.push(Case::new(name, Call::new(&params)));
        }
        let decode = Params::causal(1, 1, 32, 4, 64);
        let decode = Params { kv_len: 256, kv_stride: 512, position0: 255, ..decode };
        cases.push(Case::bench("tinyllama_decode_256", Call::new(&decode)));
        cases
    }

    fn buffers(&self, call: &Call, rng: &mut SeededRng) -> Vec<CaseBuffer> {
        let p: Params = call.params();
        let [q, k, v] = inputs(&p, rng).map(CaseBuffer::F32);
        let segments = CaseBuffer::U32(p.segments(rng));
        vec![q, k, v, segments, CaseBuffer::Output(p.q_count()), CaseBuffer::Output(p.rows())]
    }

    fn work(&self, call: &Call) -> Work {
        let p: Params = call.params();
        let keys = u64::from(p.batch) * u64::from(p.kv_len) * p.kv_width() as u64;
        let segments = 2 * u64::from(p.batch * p.q_len);
        let bytes = 4 * (2 * p.q_count() as u64 + 2 * keys + segments + p.rows() as u64);
        Work { bytes, flops: 4 * p.pairs() * u64::from(p.head_dim) }
    }

    fn tolerance(&self, _: &Call) -> Tolerance {
        Tolerance { abs: 2e-5, rel: 2e-5, why: "scores up to 30 in f32, then exp of them" }
    }
}

/// Queries `first..` of a sequence, as many as `out` has rows.
fn forward_block(
    mask: &Mask<'_>,
    sequence: usize,
    first: usize,
    [q, k, v]: [&[f32]; 3],
    scores: &mut Vec<f32>,
    out: &mut [f32],
    lse: &mut [f32],
) {
    let p = mask.p;
    let (width, kv_width, dim) = (p.q_width(), p.kv_width(), p.head_dim as usize);
    let (heads, count) = (p.heads as usize, out.len() / width);
    let keys = mask.keys(first).start..mask.keys(first + count - 1).end;
    scores.resize(count * keys.len(), 0.0);
    let at_scores = Layout::rows(0, keys.len());
    let key_row = sequence * p.kv_stride as usize + keys.start;
    for head in 0..heads {
        let kv_head = head / p.group() as usize;
        let at_q = (sequence * p.q_len as usize + first) * width + head * dim;
        let at_keys = Layout::rows(key_row * kv_width + kv_head * dim, kv_width);
        product_alone(
            [count, keys.len(), dim],
            p.scale,
            false,
            (q, Layout::rows(at_q, width)),
            (k, at_keys.transposed()),
            (scores, at_scores),
        );
        for (i, row) in scores.chunks_exact_mut(keys.len()).enumerate() {
            let seen = mask.keys(first + i);
            let seen = seen.start - keys.start..seen.end - keys.start;
            lse[i * heads + head] = softmax(row, seen);
        }
        product_alone(
            [count, dim, keys.len()],
            1.0,
            false,
            (scores, at_scores),
            (v, at_keys),
            (out, Layout::rows(head * dim, width)),
        );
    }
}

/// Turns scores into probabilities, 0 outside `seen`, and returns their log-sum-exp.
fn softmax(row: &mut [f32], seen: std::ops::Range<usize>) -> f32 {
    let peak = row[seen.clone()].iter().copied().fold(f32::MIN, f32::max);
    let mut total = 0.0_f64;
    for (j, score) in row.iter_mut().enumerate() {
        *score = if seen.contains(&j) { (*score - peak).exp() } else { 0.0 };
        total += f64::from(*score);
    }
    let factor = (1.0 / total) as f32;
    row.iter_mut().for_each(|p| *p *= factor);
    peak + total.ln() as f32
}
