//! What has to be done to a stored tensor to have its rows as f32 in the order of Hugging Face.

use std::ops::Range;

use rayon::prelude::*;

use super::dequant::dequantize;
use super::types::Type;

/// Rows above this many values are converted by all threads.
const PARALLEL: usize = 1 << 16;

/// How a tensor is stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Coding {
    /// Numbers or blocks.
    pub(crate) kind: Type,
    /// Rows of a head are interleaved for ggml's rotary embedding; the width of a head.
    pub(crate) interleaved: Option<usize>,
}

/// The stored row that is a row of Hugging Face: llama.cpp pairs neighbours (`rope_norm`) where
/// transformers pairs the halves of a head, so `convert_hf_to_gguf.py` brings the rows of query
/// and key of `llama` models into the order 0, d/2, 1, d/2 + 1 and so on.
pub(crate) fn stored_row(row: usize, head_dim: usize) -> usize {
    let (head, within) = (row / head_dim, row % head_dim);
    let half = head_dim / 2;
    head * head_dim + 2 * (within % half) + within / half
}

impl Coding {
    /// Whether bytes are elements, and rows where they belong.
    pub(crate) fn is_plain(self) -> bool {
        matches!(self.kind, Type::Plain(_)) && self.interleaved.is_none()
    }

    /// The stored rows that some rows of a tensor of `count` are among: whole heads where their
    /// rows have changed places.
    pub(crate) fn stored_rows(self, rows: &Range<usize>, count: usize) -> Range<usize> {
        let head_dim = self.interleaved.unwrap_or(1);
        let end = rows.end.next_multiple_of(head_dim).min(count);
        rows.start / head_dim * head_dim..end
    }

    /// Rows of `cols` elements, of `bytes` that begin with a head.
    ///
    /// # Panics
    /// When `rows` exceeds the tensor.
    pub(crate) fn rows_f32(self, bytes: &[u8], cols: usize, rows: Range<usize>) -> Vec<f32> {
        let stride = self.kind.row_bytes(cols);
        let mut out = vec![0.0; rows.len() * cols];
        if out.is_empty() {
            return out;
        }
        let convert = |(index, out): (usize, &mut [f32])| {
            let row = rows.start + index;
            let row = self.interleaved.map_or(row, |head_dim| stored_row(row, head_dim));
            dequantize(self.kind, &bytes[row * stride..(row + 1) * stride], out);
        };
        // A vector has rows of one element.
        if cols == 1 && self.interleaved.is_none() {
            dequantize(self.kind, &bytes[rows.start * stride..rows.end * stride], &mut out);
        } else if out.len() > PARALLEL {
            out.par_chunks_mut(cols).enumerate().for_each(convert);
        } else {
            out.chunks_mut(cols).enumerate().for_each(convert);
        }
        out
    }
}
