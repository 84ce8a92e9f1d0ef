//! The references against the definition in f64, and the backward passes against its finite
//! differences.

use super::attention_backward_kv::AttentionBackwardKv;
use super::attention_backward_q::{AttentionBackwardQ, backward_inputs};
use super::attention_delta::{self, AttentionDelta};
use super::attention_forward::AttentionForward;
use super::shape::inputs;
use super::*;
use crate::op::{Call, CaseBuffer, HostBuffer, Op};
use crate::util::SeededRng;
use rand::SeedableRng;

fn wide(x: &[f32]) -> Vec<f64> {
    x.iter().map(|&x| f64::from(x)).collect()
}

/// The definition, one score at a time: `(out, lse)`.
fn naive(p: &Params, segments: &[u32], [q, k, v]: [&[f64]; 3]) -> (Vec<f64>, Vec<f64>) {
    let [batch, q_len, stride, heads, kv_heads, dim] =
        [p.batch, p.q_len, p.kv_stride, p.heads, p.kv_heads, p.head_dim].map(|x| x as usize);
    let (mut out, mut lse) = (Vec::new(), Vec::new());
    for row in 0..batch * q_len {
        let (sequence, position) = (row / q_len, p.position0 as usize + row % q_len);
        for head in 0..heads {
            let q = &q[(row * heads + head) * dim..][..dim];
            let kv_head = head * kv_heads / heads;
            let (mut total, mut sum) = (0.0, vec![0.0; dim]);
            for j in 0..p.kv_len as usize {
                let seen = j <= position && (p.window == 0 || j + p.window as usize > position);
                if !seen || j < segments[2 * row] as usize {
                    continue;
                }
                let at = ((sequence * stride + j) * kv_heads + kv_head) * dim;
                let score: f64 = (0..dim).map(|c| q[c] * k[at + c]).sum();
                let weight = (score * f64::from(p.scale)).exp();
                total += weight;
                (0..dim).for_each(|c| sum[c] += weight * v[at + c]);
            }
            out.extend(sum.iter().map(|x| x / total));
            lse.push(total.ln());
        }
    }
    (out, lse)
}

fn shapes() -> Vec<Params> {
    let mut shapes = Vec::new();
    for (heads, kv_heads) in [(1, 1), (4, 4), (4, 2), (4, 1), (8, 1)] {
        for window in [0, 1, 3, 50] {
            // More than one block of 32 queries.
            shapes.push(Params { window, ..Params::causal(2, 37, heads, kv_heads, 5) });
            let cache = Params { kv_len: 44, kv_stride: 47, position0: 40, window, ..shapes[0] };
            shapes.push(Params { q_len: 4, heads, kv_heads, ..cache });
            let one = Params { q_len: 1, kv_len: 41, heads, kv_heads, ..cache };
            shapes.push(Params { batch: 1, ..one });
        }
    }
    shapes.push(Params::causal(1, 70, 2, 1, 64));
    shapes
}

fn close(got: &[f32], want: &[f64], tolerance: f64, what: &str) {
    assert_eq!(got.len(), want.len(), "{what}");
    for (i, (got, want)) in got.iter().zip(want).enumerate() {
        let difference = (f64::from(*got) - want).abs();
        assert!(difference <= tolerance, "{what}, element {i}: {got} {want}");
    }
}

/// Every shape with one sample a sequence, and with several.
fn segmented() -> Vec<(Params, Vec<u32>)> {
    let mut rng = SeededRng::seed_from_u64(12);
    let both = |p: Params| [(p, p.whole()), (p, p.segments(&mut rng))];
    shapes().into_iter().flat_map(both).collect()
}

#[test]
fn the_forward_reference_is_the_definition() {
    for (p, segments) in segmented() {
        let [q, k, v] = inputs(&p, &mut SeededRng::seed_from_u64(9));
        let mut out = vec![f32::NAN; p.q_count()];
        let mut lse = vec![f32::NAN; p.rows()];
        AttentionForward.reference(
            &Call::new(&p),
            &mut [
                HostBuffer::Read(bytemuck::cast_slice(&q)),
                HostBuffer::Read(bytemuck::cast_slice(&k)),
                HostBuffer::Read(bytemuck::cast_slice(&v)),
                HostBuffer::Read(&segments),
                HostBuffer::ReadWrite(bytemuck::cast_slice_mut(&mut out)),
                HostBuffer::ReadWrite(bytemuck::cast_slice_mut(&mut lse)),
            ],
        );
        let (want_out, want_lse) = naive(&p, &segments, [&wide(&q), &wide(&k), &wide(&v)]);
        close(&out, &want_out, 1e-5, &format!("out of {p:?}"));
        close(&lse, &want_lse, 1e-5, &format!("lse of {p:?}"));
    }
}

#[test]
fn scores_of_any_size_stay_finite() {
    let p = Params { scale: 1000.0, ..Params::causal(1, 9, 2, 1, 8) };
    let [q, k, v] = inputs(&p, &mut SeededRng::seed_from_u64(10));
    let segments = p.whole();
    let (mut out, mut lse) = (vec![f32::NAN; p.q_count()], vec![f32::NAN; p.rows()]);
    AttentionForward.reference(
        &Call::new(&p),
        &mut [
            HostBuffer::Read(bytemuck::cast_slice(&q)),
            HostBuffer::Read(bytemuck::cast_slice(&k)),
            HostBuffer::Read(bytemuck::cast_slice(&v)),
            HostBuffer::Read(&segments),
            HostBuffer::ReadWrite(bytemuck::cast_slice_mut(&mut out)),
            HostBuffer::ReadWrite(bytemuck::cast_slice_mut(&mut lse)),
        ],
    );
    // Convex combinations of v, whatever the weights are.
    assert!(out.iter().all(|x| x.abs() <= 1.0));
    assert!(lse.iter().all(|x| x.is_finite()));
}

#[test]
fn keys_and_queries_are_two_views_of_one_mask() {
    for (p, segments) in segmented() {
        for sequence in 0..p.batch as usize {
            let mask = p.mask(&segments, sequence);
            for query in 0..p.q_len as usize {
                assert!(mask.keys(query).contains(&(p.position0 as usize + query)), "{p:?}");
                for key in 0..p.kv_len as usize {
                    let seen = mask.keys(query).contains(&key);
                    assert_eq!(seen, mask.queries(key).contains(&query), "{query} {key} {p:?}");
                }
            }
        }
    }
}

/// Segments of cases: whole sequences, and those of samples in every place.
#[test]
fn every_other_sequence_of_a_case_has_samples_that_follow_each_other() {
    let p = Params::causal(8, 40, 1, 1, 4);
    let segments = p.segments(&mut SeededRng::seed_from_u64(13));
    let mut lengths = Vec::new();
    for (sequence, segments) in segments.as_chunks::<2>().0.chunks_exact(40).enumerate() {
        if sequence % 2 == 0 {
            assert!(segments.iter().all(|segment| *segment == [0, 40]));
            continue;
        }
        let mut next = 0;
        for &[first, end] in segments.chunk_by(|a, b| a == b).map(|run| &run[0]) {
            assert_eq!(first, next);
            lengths.push(end - first);
            next = end;
        }
        assert_eq!(next, 40);
    }
    assert!(lengths.contains(&1) && lengths.contains(&8) && lengths.len() > 12, "{lengths:?}");
}

/// What a backward call reads.
struct Read {
    /// q, k, v.
    qkv: [Vec<f32>; 3],
    segments: Vec<u32>,
    stats: Vec<f32>,
    d_out: Vec<f32>,
}

/// What a call reads, then what the references make of it: dq, dk, dv.
fn backward(p: &Params) -> (Read, [Vec<f32>; 3]) {
    let call = Call::new(p);
    let buffers = backward_inputs(p, &mut SeededRng::seed_from_u64(11));
    let inputs: Vec<Vec<u32>> = buffers.iter().map(CaseBuffer::words).collect();
    let bound = || inputs.iter().map(|words| HostBuffer::Read(words));
    let mut dq = vec![f32::NAN; p.q_count()];
    let (mut dk, mut dv) = (vec![0.0; p.kv_count()], vec![0.0; p.kv_count()]);
    let mut all: Vec<HostBuffer<'_>> = bound().collect();
    all.push(HostBuffer::ReadWrite(bytemuck::cast_slice_mut(&mut dq)));
    AttentionBackwardQ.reference(&call, &mut all);
    let mut all: Vec<HostBuffer<'_>> = bound().collect();
    all.push(HostBuffer::ReadWrite(bytemuck::cast_slice_mut(&mut dk)));
    all.push(HostBuffer::ReadWrite(bytemuck::cast_slice_mut(&mut dv)));
    AttentionBackwardKv.reference(&call, &mut all);
    drop(all);
    let [q, k, v, segments, stats, d_out] = &inputs[..] else { panic!("six inputs") };
    let floats = |words: &Vec<u32>| bytemuck::cast_slice(words).to_vec();
    let read = Read {
        qkv: [q, k, v].map(floats),
        segments: segments.clone(),
        stats: floats(stats),
        d_out: floats(d_out),
    };
    (read, [dq, dk, dv])
}

#[test]
fn the_backward_references_are_the_slopes_of_the_definition() {
    for p in [
        Params::causal(1, 1, 1, 1, 3),
        Params::causal(2, 9, 4, 2, 3),
        Params { window: 3, ..Params::causal(2, 11, 2, 1, 3) },
        Params { window: 2, ..Params::causal(1, 6, 4, 1, 4) },
        Params { q_len: 3, kv_len: 7, kv_stride: 9, position0: 4, ..Params::causal(2, 1, 2, 2, 3) },
        Params {
            q_len: 3,
            kv_len: 8,
            kv_stride: 8,
            position0: 5,
            window: 3,
            ..Params::causal(1, 1, 2, 1, 3)
        },
    ] {
        let (read, gradients) = backward(&p);
        let point = read.qkv.each_ref().map(|x| wide(x));
        let d_out = wide(&read.d_out);
        let objective = |point: &[Vec<f64>; 3]| -> f64 {
            let (out, _) = naive(&p, &read.segments, point.each_ref().map(|x| &x[..]));
            out.iter().zip(&d_out).map(|(a, b)| a * b).sum()
        };
        for (which, gradient) in gradients.iter().enumerate() {
            let slopes: Vec<f64> = (0..gradient.len())
                .map(|i| {
                    let at = |h: f64| {
                        let mut point = point.clone();
                        point[which][i] += h;
                        objective(&point)
                    };
                    (at(1e-4) - at(-1e-4)) / 2e-4
                })
                .collect();
            close(gradient, &slopes, 2e-5, &format!("gradient {which} of {p:?}"));
        }
    }
}

/// Σ dq·q = Σ dk·k, since scores are bilinear, at sizes with several blocks of rows.
#[test]
fn the_backward_references_agree_across_blocks() {
    for p in
        [Params::causal(2, 75, 4, 2, 8), Params { window: 9, ..Params::causal(1, 101, 4, 1, 8) }]
    {
        let (read, [dq, dk, dv]) = backward(&p);
        let [q, k, v] = &read.qkv;
        let dot =
            |a: &[f32], b: &[f32]| -> f64 { wide(a).iter().zip(wide(b)).map(|(a, b)| a * b).sum() };
        let (by_q, by_k) = (dot(&dq, q), dot(&dk, k));
        assert!((by_q - by_k).abs() < 1e-3 && by_q.abs() > 0.1, "{by_q} {by_k}");
        // out is linear in v, and Σ delta = <out, d_out>.
        let deltas = wide(&read.stats).into_iter().skip(1).step_by(2);
        let (by_v, by_out) = (dot(&dv, v), deltas.sum::<f64>());
        assert!((by_v - by_out).abs() < 1e-3 && by_v.abs() > 0.1, "{by_v} {by_out}");
    }
}

#[test]
fn delta_is_the_product_of_each_head() {
    let (out, d_out): ([f32; 6], [f32; 6]) =
        ([1.0, 2.0, 3.0, -1.0, 0.5, 4.0], [2.0, 0.25, 1.0, 3.0, 2.0, -1.0]);
    let (lse, mut stats) = ([0.25_f32, -3.0], [f32::NAN; 4]);
    let params = attention_delta::Params { rows: 1, heads: 2, head_dim: 3 };
    AttentionDelta.reference(
        &Call::new(&params),
        &mut [
            HostBuffer::Read(bytemuck::cast_slice(&out)),
            HostBuffer::Read(bytemuck::cast_slice(&d_out)),
            HostBuffer::Read(bytemuck::cast_slice(&lse)),
            HostBuffer::ReadWrite(bytemuck::cast_slice_mut(&mut stats)),
        ],
    );
    assert_eq!(stats, [0.25, 5.5, -3.0, -6.0]);
}
