//! Where trained parameters live.
//!
//! The tensors that one step updates together form a [`Group`]: one window's adapters and exit
//! norm, or with method `full` every weight. A group lies in arenas (buffers below the binding
//! limit), each tensor at an aligned offset, so that zeroing, gradient norm and AdamW take one
//! dispatch per arena. Values, gradients and moments use the same offsets; the gradient arenas
//! are shared by all groups, since only one group is active in a step.

use crate::shape::{BlockVector, ModelShape, Projection, Shard, Window};
use edge_kernels::Format;

/// Offsets in an arena are multiples of this many words (256 bytes, the strictest alignment).
pub const ALIGN_WORDS: u64 = 64;

/// Which tensor an entry is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Owner {
    /// `lora_A [rank, K]` of a projection, and of those that are parts of one layer with it.
    LoraA(u32, Projection),
    /// `lora_B [N, rank]` of a projection.
    LoraB(u32, Projection),
    /// Rows of a projection's weight (method `full`).
    Weight(u32, Projection, Shard),
    /// A norm or a bias of a block (method `full`).
    Vector(u32, BlockVector),
    /// Norm of an exit, `[d]`; the last exit's is the model's final norm with method `full`.
    ExitNorm(u32),
    /// `lora_A [rank, d]` of an exit's low-rank term.
    ExitA(u32),
    /// `lora_B [vocab_size, rank]` of an exit's low-rank term.
    ExitB(u32),
    /// Rows of the embedding table (method `full`).
    Embedding(Shard),
    /// Rows of an untied head (method `full`).
    Head(Shard),
}

/// A tensor in an arena.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Entry {
    /// Which tensor.
    pub owner: Owner,
    /// Rows.
    pub rows: u32,
    /// Columns.
    pub cols: u32,
    /// Arena of the group.
    pub arena: usize,
    /// First word in the arena.
    pub offset: u64,
}

impl Entry {
    /// Words of the tensor.
    pub fn words(&self) -> u64 {
        u64::from(self.rows) * u64::from(self.cols)
    }
}

/// What an exit adds to a group: its norm and its low-rank term.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ExitTensors {
    /// Which exit.
    pub exit: u32,
    /// Rank of the low-rank term; 0: none.
    pub rank: u32,
    /// Whether they lie in arenas of their own, the group's last, instead of behind the adapters.
    pub apart: bool,
}

impl ExitTensors {
    fn list(self, shape: &ModelShape) -> Vec<(Owner, u32, u32)> {
        let mut tensors = vec![(Owner::ExitNorm(self.exit), 1, shape.hidden_size)];
        if self.rank > 0 {
            tensors.push((Owner::ExitA(self.exit), self.rank, shape.hidden_size));
            tensors.push((Owner::ExitB(self.exit), shape.vocab_size, self.rank));
        }
        tensors
    }
}

/// Tensors that are updated together.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Group {
    /// The tensors.
    pub entries: Vec<Entry>,
    /// Words of each arena.
    pub arenas: Vec<u64>,
    /// How many of the arenas, the last ones, hold what is the exit's.
    pub apart: usize,
}

impl Group {
    /// Lays tensors `(owner, rows, cols)` out in arenas of at most `max_words`.
    fn lay_out(tensors: Vec<(Owner, u32, u32)>, max_words: u64) -> Self {
        let mut group = Self::default();
        for (owner, rows, cols) in tensors {
            let words = (u64::from(rows) * u64::from(cols)).next_multiple_of(ALIGN_WORDS);
            let fits = group.arenas.last().is_some_and(|used| used + words <= max_words);
            if !fits {
                group.arenas.push(0);
            }
            let arena = group.arenas.len() - 1;
            let offset = group.arenas[arena];
            group.arenas[arena] += words;
            group.entries.push(Entry { owner, rows, cols, arena, offset });
        }
        group
    }

    /// The adapters of a window, and what of its exit is trained.
    pub fn lora(
        shape: &ModelShape,
        window: Window,
        exit: Option<ExitTensors>,
        rank: u32,
        targets: &[Projection],
        max_words: u64,
    ) -> Self {
        let mut tensors = Vec::new();
        for block in window.first..window.end {
            for &projection in targets {
                let (n, k) = shape.projection(projection);
                if shape.adapter_of(projection) == projection {
                    tensors.push((Owner::LoraA(block, projection), rank, k));
                }
                tensors.push((Owner::LoraB(block, projection), n, rank));
            }
        }
        let own = exit.map(|exit| exit.list(shape)).unwrap_or_default();
        if !exit.is_some_and(|exit| exit.apart) {
            tensors.extend(own);
            return Self::lay_out(tensors, max_words);
        }
        let mut group = Self::lay_out(tensors, max_words);
        let own = Self::lay_out(own, max_words);
        let first = group.arenas.len();
        let entries = own.entries.into_iter();
        group.entries.extend(entries.map(|e| Entry { arena: first + e.arena, ..e }));
        group.apart = own.arenas.len();
        group.arenas.extend(own.arenas);
        group
    }

    /// Every weight of the model.
    pub fn full(shape: &ModelShape, max_bytes: u64, vocab_chunk: u32) -> Self {
        let d = shape.hidden_size;
        let mut tensors = Vec::new();
        let table = Shard::split(shape.vocab_size, d, Format::F32, max_bytes, vocab_chunk);
        tensors.extend(table.iter().map(|&s| (Owner::Embedding(s), s.rows, d)));
        for block in 0..shape.num_blocks {
            tensors.extend(shape.vectors().map(|(v, len)| (Owner::Vector(block, v), 1, len)));
            for projection in Projection::ALL {
                let (n, k) = shape.projection(projection);
                let shards = Shard::split(n, k, Format::F32, max_bytes, u32::MAX);
                let rows = shards.into_iter();
                tensors.extend(rows.map(|s| (Owner::Weight(block, projection, s), s.rows, k)));
            }
        }
        tensors.push((Owner::ExitNorm(0), 1, d));
        if !shape.tied_head {
            tensors.extend(table.iter().map(|&s| (Owner::Head(s), s.rows, d)));
        }
        Self::lay_out(tensors, max_bytes / 4)
    }

    /// Whether the values of an arena share a buffer with those of other groups, where adapters
    /// take turns on the device ([`Job::in_turns`](crate::Job::in_turns)): all but the exit's.
    pub fn is_shared(&self, arena: usize, in_turns: bool) -> bool {
        in_turns && arena < self.shared_arenas()
    }

    /// How many arenas, the first ones, hold adapters where the exit's tensors lie apart.
    pub fn shared_arenas(&self) -> usize {
        self.arenas.len() - self.apart
    }

    /// The entry of a tensor.
    pub fn find(&self, owner: Owner) -> Option<&Entry> {
        self.entries.iter().find(|entry| entry.owner == owner)
    }

    /// Trained numbers, padding not counted.
    pub fn parameters(&self) -> u64 {
        self.entries.iter().map(Entry::words).sum()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::shape::Extras;

    fn shape() -> ModelShape {
        ModelShape {
            vocab_size: 512,
            hidden_size: 64,
            intermediate_size: 172,
            num_blocks: 5,
            num_heads: 8,
            num_kv_heads: 4,
            head_dim: 8,
            tied_head: true,
            extras: Extras::NONE,
        }
    }

    #[test]
    fn entries_do_not_overlap_and_stay_inside() {
        let max_bytes = 64 << 10;
        let full = Group::full(&shape(), max_bytes, 256);
        let window = Window { first: 1, end: 4 };
        let lora = |rank, apart| {
            let exit = ExitTensors { exit: 1, rank, apart };
            Group::lora(&shape(), window, Some(exit), 8, &Projection::ALL, max_bytes / 4)
        };
        assert_eq!(lora(0, true).entries.last().map(|norm| norm.offset), Some(0));
        // 1 + 4 rows of 64 words, then 512 of 4 words, in an arena of their own.
        let term = lora(4, true);
        assert_eq!(term.apart, 1);
        assert_eq!(term.find(Owner::ExitB(1)).map(|b| (b.offset, b.words())), Some((320, 2048)));
        assert_eq!(term.find(Owner::ExitA(1)).map(|a| a.arena), Some(term.shared_arenas()));
        for group in [full, lora(0, false), lora(0, true), lora(4, false), term] {
            for (index, entry) in group.entries.iter().enumerate() {
                assert_eq!(entry.offset % ALIGN_WORDS, 0);
                assert!(entry.offset + entry.words() <= group.arenas[entry.arena]);
                assert!(group.arenas[entry.arena] <= max_bytes / 4);
                for other in &group.entries[..index] {
                    let apart = other.arena != entry.arena
                        || other.offset + other.words() <= entry.offset
                        || entry.offset + entry.words() <= other.offset;
                    assert!(apart, "{entry:?} overlaps {other:?}");
                }
            }
        }
    }

    #[test]
    fn full_counts_every_parameter() {
        let more = Extras { qkv_bias: true, head_norms: true, branch_norms: true, ..Extras::NONE };
        for (extras, vectors) in [(Extras::NONE, 2), (more, 9)] {
            let shape = ModelShape { extras, ..shape() };
            assert_eq!(shape.vectors().count(), vectors);
            let group = Group::full(&shape, 1 << 30, 8192);
            assert_eq!(group.parameters(), shape.parameters());
        }
    }

    #[test]
    fn parts_of_one_layer_share_an_a() {
        let extras = Extras { fused: true, ..Extras::NONE };
        let window = Window { first: 0, end: 1 };
        let of = |extras| {
            let shape = ModelShape { extras, ..shape() };
            Group::lora(&shape, window, None, 8, &Projection::ALL, 1 << 20)
        };
        assert_eq!((of(Extras::NONE).entries.len(), of(extras).entries.len()), (14, 11));
        let shared = of(extras);
        assert!(shared.find(Owner::LoraA(0, Projection::Q)).is_some());
        assert!(shared.find(Owner::LoraA(0, Projection::V)).is_none());
        assert!(shared.find(Owner::LoraB(0, Projection::V)).is_some());
    }
}
