//! The shape of an attention call, which its forward and backward ops share.

use std::ops::Range;

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

    /// The keys that a query attends.
    pub(super) fn keys(&self, query: usize) -> Range<usize> {
        let position = self.position0 as usize + query;
        let first =
            if self.window == 0 { 0 } else { (position + 1).saturating_sub(self.window as usize) };
        first..(position + 1).min(self.kv_len as usize)
    }

    /// The queries that attend a key.
    pub(super) fn queries(&self, key: usize) -> Range<usize> {
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

    /// Pairs of a query and a key that it attends, over all sequences and heads.
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
        ("37_tokens", Params::causal(1, 37, 2, 2, 64)),
        ("37_tokens_window_5", Params { window: 5, ..Params::causal(2, 37, 8, 1, 64) }),
        ("70_tokens_group_3", Params { window: 33, ..Params::causal(1, 70, 3, 1, 80) }),
        ("long_head", Params::causal(1, 19, 3, 1, 256)),
        ("many_workgroups", Params::causal(9, 20, 20, 20, 64)),
    ] {
        cases.push(Case::new(name, Call::new(&params)));
    }
    let params = Params::causal(1, 256, 32, 4, 64);
    cases.push(Case::bench("tinyllama_256", Call::new(&params)));
    cases
}
