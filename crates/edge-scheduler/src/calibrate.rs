//! What calibration allocates beside a forward pass: room for compressed weights, second moments
//! of the inputs of linear layers, and a second distribution to compare with.

use edge_kernels::Format;

use crate::shape::{LinearInput, ModelShape};

/// Calibration, as far as memory is concerned.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Calibration {
    /// Formats that a projection's matrix is replaced by; its buffers have room for each.
    pub candidates: Vec<Format>,
    /// Buffers for parts of second moments, at least 1. With one for each part all inputs are
    /// summed in one pass over the text; with fewer there are more passes.
    pub moment_buffers: u32,
    /// How embedding and head are stored in what is made, where that is otherwise than in the
    /// job. The head, or a tied table, lies beside the checkpoint's own, since the distributions
    /// of both are compared; an embedding that is no head is never on the device.
    pub tables: Option<[Format; 2]>,
}

/// Rows of the second moments `xᵀx [k, k]` of an input.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MomentPart {
    /// Which input.
    pub input: LinearInput,
    /// First row.
    pub row0: u32,
    /// Number of rows.
    pub rows: u32,
    /// Columns, `k`.
    pub cols: u32,
}

impl MomentPart {
    /// Words of the sums.
    pub fn words(&self) -> u64 {
        u64::from(self.rows) * u64::from(self.cols)
    }
}

/// The second moments of an input `[tokens, k]`, cut into parts of whole rows of at most
/// `max_bytes`; all but the last have a multiple of 8 rows (8 at least).
pub fn moment_parts(shape: &ModelShape, input: LinearInput, max_bytes: u64) -> Vec<MomentPart> {
    let cols = shape.input_cols(input);
    let fitting = (max_bytes / (4 * u64::from(cols))) / 8 * 8;
    let step = fitting.clamp(8, u64::from(cols.next_multiple_of(8))) as u32;
    let starts = (0..cols).step_by(step as usize);
    starts.map(|row0| MomentPart { input, row0, rows: step.min(cols - row0), cols }).collect()
}

/// The second moments of all inputs in parts.
pub fn all_moment_parts(shape: &ModelShape, max_bytes: u64) -> Vec<MomentPart> {
    let parts = |input| moment_parts(shape, input, max_bytes);
    LinearInput::ALL.into_iter().flat_map(parts).collect()
}

/// Words of each of `count` buffers: those of each part where that is one for each, else those of
/// the largest part.
pub(crate) fn moment_buffers(shape: &ModelShape, count: u32, max_bytes: u64) -> Vec<u64> {
    let parts = all_moment_parts(shape, max_bytes);
    let words: Vec<u64> = parts.iter().map(MomentPart::words).collect();
    match count as usize {
        count if count >= words.len() => words,
        count => vec![words.into_iter().max().unwrap_or(0); count.max(1)],
    }
}

/// The one of several formats that takes the most room in a matrix of `cols` columns: what the
/// shards of a matrix that may be in any of them are cut for.
pub fn widest(formats: impl Iterator<Item = Format>, cols: u32) -> Format {
    formats.max_by_key(|format| format.bytes(64, cols)).unwrap_or(Format::F32)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::shape::Extras;

    fn shape() -> ModelShape {
        ModelShape {
            vocab_size: 512,
            hidden_size: 200,
            intermediate_size: 344,
            num_blocks: 5,
            num_heads: 8,
            num_kv_heads: 4,
            head_dim: 32,
            tied_head: true,
            extras: Extras::NONE,
        }
    }

    #[test]
    fn parts_cover_all_rows_once_and_fit() {
        for max_bytes in [1 << 12, 100 << 10, 1 << 20] {
            for input in LinearInput::ALL {
                let cols = shape().input_cols(input);
                let mut next = 0;
                for part in moment_parts(&shape(), input, max_bytes) {
                    assert_eq!((part.row0, part.row0 % 8, part.cols), (next, 0, cols));
                    assert!(4 * part.words() <= max_bytes.max(4 * 8 * u64::from(cols)));
                    next += part.rows;
                }
                assert_eq!(next, cols);
            }
        }
        assert_eq!(shape().input_cols(LinearInput::AttentionOutput), 256);
        let words = |count| moment_buffers(&shape(), count, 1 << 20);
        assert_eq!(words(9), [200 * 200, 256 * 256, 200 * 200, 344 * 344]);
        assert_eq!(words(4), words(9));
        assert_eq!((words(2), words(0)), (vec![344 * 344; 2], vec![344 * 344]));
    }

    #[test]
    fn the_widest_format_is_that_of_most_bytes() {
        let formats = [Format::Q4, Format::F16, Format::Q8];
        assert_eq!(widest(formats.into_iter(), 1024), Format::F16);
    }
}
