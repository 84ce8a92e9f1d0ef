//! The shape of an attention call, which its forward and backward ops share.

use std::ops::Range;

use rand::RngExt;

use crate::lanes;
use crate::op::{Call, Case, Variant};
use crate::util::{SeededRng, fold_grid, uniform_vec};

crate::params! {
    /// Parameters of `attention_forward`, `attention_backward_q` and `attention_backward_kv`.
    ///
    /// Query `i` of a sequence stands at position `position0 + i` and attends the keys `j` with
    /// `j <= position`, `j < kv_len` and, with a window, `j > position - window`. Each query has
    /// to attend at least itself: `position0 + q_len <= kv_len`. Head `h` reads the keys and
    /// values of head `h / (heads / kv_heads)`.
    ///
    /// Sequences may hold several samples, which do not see each other: `segments
    /// [batch · q_len, 2]` has, for each query, the first key of its segment, at or in front of
    /// its own position, and the query behind the segment's last one. Segments follow each other
    /// without a gap, so that both never fall along a sequence. A sequence of one sample has
    /// `[0, q_len]` everywhere; the forward pass reads the first of the two alone.
    pub struct Params {
        /// Sequences.
        batch: u32,
        /// Queries of a sequence.
        q_len: u32,
        /// Keys of a sequence.
        kv_len: u32,
        /// Rows between the keys of one sequence and the next: the capacity of a cache.
        kv_stride: u32,
        /// Position of the first query; 0 in training.
        position0: u32,
        /// Query heads.
        heads: u32,
        /// Key and value heads, a divisor of `heads`.
        kv_heads: u32,
        /// Elements of a head.
        head_dim: u32,
        /// Keys that a query attends at most; 0: all up to its own.
        window: u32,
        /// Factor of the scores, usually `1 / sqrt(head_dim)`.
        scale: f32,
    }
}

impl Params {
    /// Whole sequences, as in training: as many keys as queries, from position 0, the usual scale.
    pub fn causal(batch: u32, seq_len: u32, heads: u32, kv_heads: u32, head_dim: u32) -> Self {
        Self {
            batch,
            q_len: seq_len,
            kv_len: seq_len,
            kv_stride: seq_len,
            position0: 0,
            heads,
            kv_heads,
            head_dim,
            window: 0,
            scale: 1.0 / (head_dim as f32).sqrt(),
        }
    }

    /// # Panics
    /// When the fields contradict each other: a mistake of the caller.
    pub(super) fn check(&self) {
        assert!(
            self.kv_heads > 0 && self.heads.is_multiple_of(self.kv_heads),
            "{} heads cannot share {} key-value heads",
            self.heads,
            self.kv_heads
        );
        assert!(
            self.position0 + self.q_len <= self.kv_len && self.kv_len <= self.kv_stride,
            "queries up to position {} need as many keys, but there are {} of {}",
            self.position0 + self.q_len,
            self.kv_len,
            self.kv_stride
        );
    }

    /// Query heads that share a key-value head.
    pub(super) fn group(&self) -> u32 {
        self.heads / self.kv_heads
    }

    /// Query rows of a sequence that share a key-value head.
    pub(super) fn query_rows(&self) -> u32 {
        self.q_len * self.group()
    }

    /// Elements of a row of queries.
    pub(super) fn q_width(&self) -> usize {
        (self.heads * self.head_dim) as usize
    }

    /// Elements of a row of keys or values.
    pub(super) fn kv_width(&self) -> usize {
        (self.kv_heads * self.head_dim) as usize
    }

    /// Elements of the queries.
    pub(super) fn q_count(&self) -> usize {
        (self.batch * self.q_len) as usize * self.q_width()
    }

    /// Elements of the keys or the values.
    pub(super) fn kv_count(&self) -> usize {
        (self.batch * self.kv_stride) as usize * self.kv_width()
    }

    /// Elements of the log-sum-exp.
    pub(super) fn rows(&self) -> usize {
        (self.batch * self.q_len * self.heads) as usize
    }

    /// The keys that a query attends where its segment begins with the first key.
    fn keys(&self, query: usize) -> Range<usize> {
        let position = self.position0 as usize + query;
        let first =
            if self.window == 0 { 0 } else { (position + 1).saturating_sub(self.window as usize) };
        first..(position + 1).min(self.kv_len as usize)
    }

    /// The queries that attend a key where all are of one segment.
    fn queries(&self, key: usize) -> Range<usize> {
        let first = key.saturating_sub(self.position0 as usize);
        let end = if self.window == 0 {
            self.q_len as usize
        } else {
            (key + self.window as usize)
                .saturating_sub(self.position0 as usize)
                .min(self.q_len as usize)
        };
        first..end.max(first)
    }

    /// Who sees whom in a sequence; `segments` as bound.
    pub(super) fn mask<'a>(&'a self, segments: &'a [u32], sequence: usize) -> Mask<'a> {
        let len = self.q_len as usize;
        let segments = &segments.as_chunks::<2>().0[sequence * len..(sequence + 1) * len];
        Mask { p: self, segments }
    }

    /// Segments of sequences of one sample each.
    #[cfg(test)]
    pub(super) fn whole(&self) -> Vec<u32> {
        [0, self.q_len].repeat((self.batch * self.q_len) as usize)
    }

    /// Random segments: every other sequence is one sample, and the others hold samples of 1 to 16
    /// tokens, so that their edges fall on those of tiles and between them.
    pub(super) fn segments(&self, rng: &mut SeededRng) -> Vec<u32> {
        let mut segments = Vec::with_capacity(2 * (self.batch * self.q_len) as usize);
        for sequence in 0..self.batch {
            let (mut first, mut end) = (0, self.q_len);
            for query in 0..self.q_len {
                let position = self.position0 + query;
                if sequence % 2 == 1 && (query == 0 || query == end) {
                    const LENGTHS: [u32; 8] = [1, 1, 2, 3, 7, 8, 11, 16];
                    let len = LENGTHS[rng.random_range(0..LENGTHS.len())];
                    // That of the first query may have begun in front of it.
                    let before = rng.random_range(0..len).min(position);
                    (first, end) =
                        if query == 0 { (position - before, len) } else { (position, query + len) };
                    end = end.min(self.q_len);
                }
                segments.extend([first, end]);
            }
        }
        segments
    }

    /// Pairs of a query and a key that it attends, over all sequences and heads, where sequences
    /// are one sample.
    pub(super) fn pairs(&self) -> u64 {
        let pairs: usize = (0..self.q_len as usize).map(|query| self.keys(query).len()).sum();
        pairs as u64 * u64::from(self.batch) * u64::from(self.heads)
    }

    /// Rows that an invocation treats: as many as keep `held` arrays of `head_dim` f32 a row
    /// within 256 values, at most 4, and no more than there are.
    pub(super) fn tile(&self, held: u32, rows: u32) -> u32 {
        let fit = (256 / (held * self.head_dim)).clamp(1, 4).min(rows.max(1));
        // 3 would be one more shader to compile.
        if fit == 3 { 2 } else { fit }
    }

    /// The variant that treats `tile` rows (the shader's constant `name`) of `rows` a key-value
    /// head, and its grid.
    pub(super) fn tiling(&self, name: &'static str, tile: u32, rows: u32) -> (Variant, [u32; 3]) {
        let invocations = self.batch * self.kv_heads * rows.div_ceil(tile);
        // A call with few rows, such as decoding, spreads over more workgroups.
        let width = if invocations <= 1024 { 8 } else { 64 };
        let variant = lanes::variant(lanes::by_four(&[self.head_dim]))
            .spec("WG", width)
            .spec("HEAD_DIM", self.head_dim)
            .spec(name, tile);
        (variant, fold_grid(invocations.div_ceil(width)))
    }
}

/// Who sees whom in a sequence.
pub(super) struct Mask<'a> {
    /// The call.
    pub p: &'a Params,
    /// Of each query.
    segments: &'a [[u32; 2]],
}

impl Mask<'_> {
    /// The keys that a query attends.
    pub(super) fn keys(&self, query: usize) -> Range<usize> {
        let keys = self.p.keys(query);
        keys.start.max(self.segments[query][0] as usize)..keys.end
    }

    /// The queries that attend a key.
    pub(super) fn queries(&self, key: usize) -> Range<usize> {
        let queries = self.p.queries(key);
        // The first query that stands at the key or behind it tells whose segment the key is in.
        let [first, end] = self.segments[queries.start.min(self.segments.len() - 1)];
        let end = if key >= first as usize { queries.end.min(end as usize) } else { 0 };
        queries.start..end.max(queries.start)
    }
}

/// Random queries, keys and values, of a size that makes the softmax neither flat nor one-hot.
pub(super) fn inputs(p: &Params, rng: &mut SeededRng) -> [Vec<f32>; 3] {
    // Scores are sums of head_dim products.
    let size = 2.5;
    [
        uniform_vec(rng, p.q_count(), -size, size),
        uniform_vec(rng, p.kv_count(), -size, size),
        uniform_vec(rng, p.kv_count(), -1.0, 1.0),
    ]
}

/// Cases of training: every ratio of heads, windows, and the given sizes of a head.
pub(super) fn training_cases(head_dims: &[u32]) -> Vec<Case> {
    let mut cases: Vec<Case> = head_dims
        .iter()
        .map(|dim| {
            Case::new(format!("head_dim_{dim}"), Call::new(&Params::causal(2, 7, 4, 2, *dim)))
        })
        .collect();
    for (batch, len, heads, kv_heads, window) in
        [(1, 1, 1, 1, 0), (1, 13, 3, 3, 0), (2, 9, 4, 1, 3), (1, 17, 8, 1, 1), (3, 5, 2, 2, 100)]
    {
        let params = Params { window, ..Params::causal(batch, len, heads, kv_heads, 16) };
        let name = format!("{batch}x{len}_heads_{heads}_of_{kv_heads}_window_{window}");
        cases.push(Case::new(name, Call::new(&params)));
    }
    // More than one tile of rows and of keys, for bodies through workgroup memory: those hold up to
    // 8 rows and stream 4 to 128 at a time, fewer of longer heads.
    for (name, params) in [
        ("37_tokens", Params::causal(2, 37, 2, 2, 64)),
        ("37_tokens_window_5", Params { window: 5, ..Params::causal(2, 37, 8, 1, 64) }),
        ("70_tokens_group_3", Params { window: 33, ..Params::causal(2, 70, 3, 1, 80) }),
        ("long_head", Params::causal(1, 19, 3, 1, 256)),
        ("many_workgroups", Params::causal(9, 20, 20, 20, 64)),
    ] {
        cases.push(Case::new(name, Call::new(&params)));
    }
    let params = Params::causal(1, 256, 32, 4, 64);
    cases.push(Case::bench("tinyllama_256", Call::new(&params)));
    cases
}
