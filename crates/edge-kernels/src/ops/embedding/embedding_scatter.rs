//! Token embeddings, backward: gradients of tokens added to the rows of the table.
//!
//! dw\[row,:\] += scale · Σ dy\[order\[s\],:\] over s in start..end, for each segment
//! (row, start, end)
//!
//! | tensor   | shape          | dtype | role                                    |
//! |----------|----------------|-------|-----------------------------------------|
//! | segments | [segments, 3]  | u32   | in: row of dw, start, end               |
//! | order    | \[tokens\]     | u32   | in: tokens, sorted by id                |
//! | dy       | [tokens, cols] | f32   | in                                      |
//! | dw       | [rows, cols]   | f32   | accumulates; rows of other ids stay     |
//!
//! How: the host sorts the tokens by id ([`segments`]); one invocation then owns a column, or four,
//! of a row, so that no atomics are needed and repeated runs are equal bit by bit.
//! Accuracy: f32 sums over the tokens of one id.
//! Cost: bound by bandwidth.

use rand::RngExt;
use rayon::prelude::*;

use crate::lanes;
use crate::op::{
    Binding, Call, Case, CaseBuffer, Dispatch, Field, HostBuffer, Op, Tolerance, Variant, Work,
    read, read_write,
};
use crate::util::{SeededRng, uniform_f32};

/// See the module.
pub struct EmbeddingScatter;

crate::params! {
    /// Parameters of `embedding_scatter`.
    pub struct Params {
        /// Distinct ids among the tokens.
        segments: u32,
        /// Columns (hidden size).
        cols: u32,
        /// Tokens.
        tokens: u32,
        /// Rows of `dw`.
        rows: u32,
        /// Factor of the embeddings.
        scale: f32,
    }
}

/// Adds the gradients of tokens to the rows of their ids.
pub fn dispatch<B>(params: Params, segments: B, order: B, dy: B, dw: B) -> Dispatch<B> {
    Dispatch::new(&EmbeddingScatter, Call::new(&params), vec![segments, order, dy, dw])
}

/// `(segments, order)` for the ids in `row0..row0 + rows`: tokens of equal ids lie together in
/// `order`, in their own order, and `segments` holds `(id - row0, start, end)` for each id.
pub fn segments(ids: &[u32], row0: u32, rows: u32) -> (Vec<u32>, Vec<u32>) {
    let row = |token: u32| ids[token as usize].wrapping_sub(row0);
    let mut order: Vec<u32> = (0..ids.len() as u32).filter(|token| row(*token) < rows).collect();
    order.sort_by_key(|token| row(*token));
    let mut segments = Vec::new();
    let mut start = 0;
    for same in order.chunk_by(|a, b| row(*a) == row(*b)) {
        let end = start + same.len() as u32;
        segments.extend([row(same[0]), start, end]);
        start = end;
    }
    (segments, order)
}

impl Op for EmbeddingScatter {
    fn name(&self) -> &'static str {
        "embedding_scatter"
    }

    fn shader(&self) -> &'static str {
        "embedding/embedding_scatter.wgsl"
    }

    fn bindings(&self, _: &Call) -> Vec<Binding> {
        vec![read("segments"), read("order"), read("dy"), read_write("dw")]
    }

    fn fields(&self) -> &'static [Field] {
        Params::FIELDS
    }

    fn variants(&self, call: &Call) -> Vec<Variant> {
        vec![lanes::variant(lanes::by_four(&[call.params::<Params>().cols]))]
    }

    fn grid(&self, call: &Call, _: &Variant) -> [u32; 3] {
        let p: Params = call.params();
        let elements = u64::from(p.segments) * u64::from(p.cols);
        lanes::grid(elements, lanes::by_four(&[p.cols]), 64)
    }

    fn reference(&self, call: &Call, buffers: &mut [HostBuffer<'_>]) {
        let p: Params = call.params();
        let [segments, order, dy, dw] = buffers else { unreachable!("four bindings") };
        let (order, dy, cols) = (order.u32(), dy.f32(), p.cols as usize);
        let mut of_row = vec![None; p.rows as usize];
        for segment in segments.u32().chunks_exact(3).take(p.segments as usize) {
            of_row[segment[0] as usize] = Some(segment[1] as usize..segment[2] as usize);
        }
        dw.f32_mut().par_chunks_mut(cols).zip(of_row).for_each(|(dw, range)| {
            let Some(range) = range else { return };
            for c in 0..cols {
                let term = |token: &u32| f64::from(dy[*token as usize * cols + c]);
                let sum: f64 = order[range.clone()].iter().map(term).sum();
                dw[c] += (sum * f64::from(p.scale)) as f32;
            }
        });
    }

    fn cases(&self) -> Vec<Case> {
        let mut cases: Vec<Case> = [(1, 1, 1, 1), (3, 5, 9, 7), (6, 36, 20, 17), (5, 4, 64, 5)]
            .map(|(segments, cols, tokens, rows)| {
                let scale = if cols == 4 { 2.5 } else { 1.0 };
                let call = Call::new(&Params { segments, cols, tokens, rows, scale });
                Case::new(format!("{tokens}x{cols}_into_{segments}_of_{rows}"), call)
            })
            .into();
        let params = Params { segments: 150, cols: 2048, tokens: 256, rows: 4000, scale: 1.0 };
        cases.push(Case::bench("tinyllama_256", Call::new(&params)));
        cases
    }

    fn buffers(&self, call: &Call, rng: &mut SeededRng) -> Vec<CaseBuffer> {
        let p: Params = call.params();
        // Ids are spread over the rows; each of them occurs, the rest of the tokens at random.
        let id = |segment: u32| segment * p.rows / p.segments;
        let ids: Vec<u32> = (0..p.tokens)
            .map(|t| id(if t < p.segments { t } else { rng.random_range(0..p.segments) }))
            .collect();
        let (list, order) = segments(&ids, 0, p.rows);
        assert_eq!(list.len(), 3 * p.segments as usize, "the case has as many distinct ids");
        vec![
            CaseBuffer::U32(list),
            CaseBuffer::U32(order),
            uniform_f32(rng, (p.tokens * p.cols) as usize, -1.0, 1.0),
            uniform_f32(rng, (p.rows * p.cols) as usize, -1.0, 1.0),
        ]
    }

    fn work(&self, call: &Call) -> Work {
        let p: Params = call.params();
        let read = u64::from(p.tokens) * u64::from(p.cols);
        let updated = u64::from(p.segments) * u64::from(p.cols);
        let lists = 3 * u64::from(p.segments) + u64::from(p.tokens);
        Work { bytes: 4 * (read + 2 * updated + lists), flops: read + updated }
    }

    fn tolerance(&self, _: &Call) -> Tolerance {
        Tolerance { abs: 1e-5, rel: 1e-6, why: "f32 sums of mixed sign over tokens of one id" }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn segments_are_sorted_stable_and_of_the_shard_only() {
        let (list, order) = segments(&[9, 5, 7, 5, u32::MAX, 4, 7, 5], 5, 4);
        assert_eq!(order, [1, 3, 7, 2, 6]);
        assert_eq!(list, [0, 0, 3, 2, 3, 5]);
        assert_eq!(segments(&[1, 2], 5, 4), (vec![], vec![]));
    }

    #[test]
    fn rows_accumulate() {
        let (list, order) = segments(&[2, 0, 2], 0, 3);
        let dy: Vec<f32> = vec![1.0, 2.0, 10.0, 20.0, 100.0, 200.0];
        let mut dw = vec![0.5_f32; 6];
        EmbeddingScatter.reference(
            &Call::new(&Params { segments: 2, cols: 2, tokens: 3, rows: 3, scale: 1.0 }),
            &mut [
                HostBuffer::Read(&list),
                HostBuffer::Read(&order),
                HostBuffer::Read(bytemuck::cast_slice(&dy)),
                HostBuffer::ReadWrite(bytemuck::cast_slice_mut(&mut dw)),
            ],
        );
        assert_eq!(dw, [10.5, 20.5, 0.5, 0.5, 101.5, 202.5]);
    }
}
