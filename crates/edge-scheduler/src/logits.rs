//! How the logits of a pass are cut into chunks, so that they never exist as a whole.

use crate::job::Job;
use crate::shape::ModelShape;

/// Rows of the vocabulary in a shard of the head, at most.
pub const VOCAB_CHUNK: u32 = 8192;

/// Bytes of a chunk of logits that has a buffer of its own.
pub const LOGITS_BYTES: u64 = 2 << 20;

/// Tokens in a chunk of votes, at most. Only evaluation votes, so that a run of training should not
/// keep much memory for it.
pub const VOTE_TOKENS: u32 = 64;

/// Rows of chunks are counted in this many, which keeps the offsets of shards and rows aligned.
const ROWS: u64 = 64;

/// Rows of the vocabulary that a buffer for a shard's logits has room for.
pub(crate) fn widest_shard(shape: &ModelShape) -> u32 {
    VOCAB_CHUNK.min(shape.vocab_size.next_multiple_of(64))
}

/// A chunk of logits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LogitsChunk {
    /// Its tokens.
    pub tokens: u32,
    /// Whether it holds the logits of all shards of the head, `tokens` rows of one behind the
    /// other's; otherwise one shard at a time, whose logits are made again when they are needed
    /// again.
    pub whole: bool,
    /// Whether it lies in the buffer `hidden`, which no block needs while an exit is worked on.
    pub in_hidden: bool,
    /// Words of its own buffer; 0 where it needs none.
    pub words: u64,
}

impl LogitsChunk {
    /// The chunk for passes of `rows` tokens: in the buffer `hidden`, of `hidden_words`, where that
    /// has room for as much as the job wants to spend, else in one of that size.
    pub(crate) fn new(shape: &ModelShape, job: &Job, rows: u64, hidden_words: u64) -> Self {
        let width = u64::from(widest_shard(shape));
        let vocab = u64::from(shape.vocab_size.next_multiple_of(64));
        let fitting = |words: u64, width: u64| words / width / ROWS * ROWS;
        let all = rows.next_multiple_of(ROWS);
        let wanted = fitting(job.logits_bytes / 4, width).clamp(ROWS, all);
        // A second distribution has a buffer beside this one, which would grow with it.
        let in_hidden = job.calibration.is_none() && fitting(hidden_words, width) >= wanted;
        let words = if in_hidden { hidden_words } else { wanted * width };
        let whole = fitting(words, vocab) >= ROWS;
        let most = fitting(words, if whole { vocab } else { width });
        // As many chunks as that makes, but all of about the same size.
        let tokens = rows.div_ceil(rows.div_ceil(most)).next_multiple_of(ROWS).min(rows);
        let own = tokens * if whole { vocab } else { width };
        let words = if in_hidden { 0 } else { own };
        Self { tokens: tokens as u32, whole, in_hidden, words }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::job::Trained;
    use crate::shape::{BlockFormats, Extras};
    use edge_kernels::Format;

    fn shape(vocab_size: u32, intermediate_size: u32) -> ModelShape {
        ModelShape {
            vocab_size,
            hidden_size: 64,
            intermediate_size,
            num_blocks: 2,
            num_heads: 8,
            num_kv_heads: 4,
            head_dim: 8,
            tied_head: true,
            extras: Extras::NONE,
        }
    }

    fn chunk(shape: &ModelShape, rows: u32, logits_bytes: u64) -> LogitsChunk {
        let blocks = vec![BlockFormats::uniform(Format::F32); 2];
        let job = Job::new(blocks, [Format::F32; 2], 1, rows);
        let job = Job { logits_bytes, trained: Trained::Full, ..job };
        LogitsChunk::new(shape, &job, rows.into(), u64::from(rows * shape.intermediate_size))
    }

    #[test]
    fn chunks_fit_where_they_lie_and_cover_all_rows() {
        for vocab in [40, 512, 8192, 8193, 32_000, 151_936] {
            for inner in [64, 512, 5632] {
                let shape = shape(vocab, inner);
                for rows in [1, 7, 64, 100, 512, 2048, 2050] {
                    for bytes in [LOGITS_BYTES, LOGITS_BYTES / 4, 0] {
                        let found = chunk(&shape, rows, bytes);
                        let columns = if found.whole { vocab } else { widest_shard(&shape) };
                        let columns = u64::from(columns.next_multiple_of(64));
                        let words = u64::from(found.tokens) * columns;
                        let hidden = u64::from(rows * inner);
                        let room = if found.in_hidden { hidden } else { found.words };
                        let what = format!("{vocab} {inner} {rows} {bytes}: {found:?}");
                        assert!(0 < words && words <= room, "{what}");
                        assert!(found.tokens.is_multiple_of(64) || found.tokens == rows, "{what}");
                        assert!(!found.in_hidden || found.words == 0, "{what}");
                        // Never more than what was wanted, or 64 tokens.
                        let least = 64 * u64::from(widest_shard(&shape));
                        assert!(found.words <= (bytes / 4).max(least), "{what}");
                    }
                }
            }
        }
    }

    #[test]
    fn large_passes_keep_whole_rows_where_blocks_keep_their_widest_activation() {
        // TinyLlama, 4 sequences of 512 tokens: 7 chunks of about 293 tokens.
        let found = chunk(&shape(32_000, 5632), 2048, LOGITS_BYTES);
        assert_eq!(found, LogitsChunk { tokens: 320, whole: true, in_hidden: true, words: 0 });
        let found = chunk(&shape(32_000, 5632), 512, LOGITS_BYTES);
        assert_eq!(found, LogitsChunk { tokens: 64, whole: true, in_hidden: true, words: 0 });
        // A wider vocabulary: a shard at a time.
        let found = chunk(&shape(151_936, 4864), 1024, LOGITS_BYTES);
        assert_eq!(found, LogitsChunk { tokens: 512, whole: false, in_hidden: true, words: 0 });
        // Decoding has little room there.
        let found = chunk(&shape(32_000, 5632), 1, LOGITS_BYTES);
        assert_eq!(found, LogitsChunk { tokens: 1, whole: false, in_hidden: false, words: 8192 });
    }
}
