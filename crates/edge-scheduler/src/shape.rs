//! Shapes of a model: projections, windows, exits, shards.

use edge_kernels::Format;

/// The linear layers of a block, in the order in which a forward pass meets them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Projection {
    /// `self_attn.q_proj`
    Q,
    /// `self_attn.k_proj`
    K,
    /// `self_attn.v_proj`
    V,
    /// `self_attn.o_proj`
    O,
    /// `mlp.gate_proj`
    Gate,
    /// `mlp.up_proj`
    Up,
    /// `mlp.down_proj`
    Down,
}

impl Projection {
    /// All projections of a block.
    pub const ALL: [Self; 7] =
        [Self::Q, Self::K, Self::V, Self::O, Self::Gate, Self::Up, Self::Down];

    /// The last part of the module name, as in PEFT's `target_modules`.
    pub fn name(self) -> &'static str {
        match self {
            Self::Q => "q_proj",
            Self::K => "k_proj",
            Self::V => "v_proj",
            Self::O => "o_proj",
            Self::Gate => "gate_proj",
            Self::Up => "up_proj",
            Self::Down => "down_proj",
        }
    }

    /// The module path inside a block: `self_attn.q_proj`.
    pub fn path(self) -> &'static str {
        match self {
            Self::Q => "self_attn.q_proj",
            Self::K => "self_attn.k_proj",
            Self::V => "self_attn.v_proj",
            Self::O => "self_attn.o_proj",
            Self::Gate => "mlp.gate_proj",
            Self::Up => "mlp.up_proj",
            Self::Down => "mlp.down_proj",
        }
    }

    /// The projection of this [`Projection::name`].
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|projection| projection.name() == name)
    }

    /// Position in [`Projection::ALL`].
    pub fn index(self) -> usize {
        self as usize
    }

    /// What it reads.
    pub fn input(self) -> LinearInput {
        match self {
            Self::Q | Self::K | Self::V => LinearInput::Attention,
            Self::O => LinearInput::AttentionOutput,
            Self::Gate | Self::Up => LinearInput::Mlp,
            Self::Down => LinearInput::Hidden,
        }
    }
}

/// What the linear layers of a block read. Those that read the same share its statistics.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum LinearInput {
    /// The normed residual stream before attention: q, k and v.
    Attention,
    /// The output of attention: o.
    AttentionOutput,
    /// The normed residual stream before the MLP: gate and up.
    Mlp,
    /// `act(gate) · up`: down.
    Hidden,
}

impl LinearInput {
    /// All inputs, in the order in which a forward pass makes them.
    pub const ALL: [Self; 4] = [Self::Attention, Self::AttentionOutput, Self::Mlp, Self::Hidden];

    /// The projections that read it.
    pub fn projections(self) -> impl Iterator<Item = Projection> {
        Projection::ALL.into_iter().filter(move |projection| projection.input() == self)
    }
}

/// Formats of a block's projections, by [`Projection::index`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct BlockFormats(pub [Format; 7]);

impl BlockFormats {
    /// The same format for all projections.
    pub const fn uniform(format: Format) -> Self {
        Self([format; 7])
    }

    /// The format of a projection.
    pub fn get(&self, projection: Projection) -> Format {
        self.0[projection.index()]
    }

    /// Changes the format of a projection.
    pub fn set(&mut self, projection: Projection, format: Format) {
        self.0[projection.index()] = format;
    }
}

/// A vector of a block: a norm's weight or a bias.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum BlockVector {
    /// Norm of what attention reads, `[d]`.
    InputNorm,
    /// Norm of what attention puts out, `[d]`.
    AttentionOutNorm,
    /// Norm of what the MLP reads, `[d]`.
    MlpNorm,
    /// Norm of what the MLP puts out, `[d]`.
    MlpOutNorm,
    /// Norm of each head of the queries, `[head_dim]`.
    QNorm,
    /// Norm of each head of the keys, `[head_dim]`.
    KNorm,
    /// Bias of the queries, `[q_dim]`.
    QBias,
    /// Bias of the keys, `[kv_dim]`.
    KBias,
    /// Bias of the values, `[kv_dim]`.
    VBias,
}

impl BlockVector {
    /// All of them, in the order in which they lie in files of this program.
    pub const ALL: [Self; 9] = [
        Self::InputNorm,
        Self::AttentionOutNorm,
        Self::MlpNorm,
        Self::MlpOutNorm,
        Self::QNorm,
        Self::KNorm,
        Self::QBias,
        Self::KBias,
        Self::VBias,
    ];

    /// What it is called in plans.
    pub fn name(self) -> &'static str {
        match self {
            Self::InputNorm => "input_norm",
            Self::AttentionOutNorm => "attention_out_norm",
            Self::MlpNorm => "mlp_norm",
            Self::MlpOutNorm => "mlp_out_norm",
            Self::QNorm => "q_norm",
            Self::KNorm => "k_norm",
            Self::QBias => "q_bias",
            Self::KBias => "k_bias",
            Self::VBias => "v_bias",
        }
    }

    /// Whether it is the weight of a norm.
    pub fn is_norm(self) -> bool {
        !matches!(self, Self::QBias | Self::KBias | Self::VBias)
    }
}

/// What blocks have beyond those of Llama.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Extras {
    /// Biases of q, k and v.
    pub qkv_bias: bool,
    /// Norms of each head of q and k.
    pub head_norms: bool,
    /// Norms of what attention and MLP put out.
    pub branch_norms: bool,
    /// A table of rotary angles of its own for blocks with a sliding window.
    pub local_rope: bool,
    /// q, k and v are one layer of the checkpoint, and so are gate and up: an adapter on one has
    /// one `A` for all of its parts.
    pub fused: bool,
}

impl Extras {
    /// None of it.
    pub const NONE: Self = Self {
        qkv_bias: false,
        head_norms: false,
        branch_norms: false,
        local_rope: false,
        fused: false,
    };
}

/// The numbers of a model that decide sizes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ModelShape {
    /// Vocabulary size, `V`.
    pub vocab_size: u32,
    /// Hidden size, `d`.
    pub hidden_size: u32,
    /// Size between up and down projection.
    pub intermediate_size: u32,
    /// Blocks, `L`.
    pub num_blocks: u32,
    /// Query heads.
    pub num_heads: u32,
    /// Key and value heads.
    pub num_kv_heads: u32,
    /// Size of a head.
    pub head_dim: u32,
    /// Whether the head is the embedding table.
    pub tied_head: bool,
    /// What its blocks have beyond those of Llama.
    pub extras: Extras,
}

impl ModelShape {
    /// Columns of the queries and of the attention output.
    pub fn q_dim(&self) -> u32 {
        self.num_heads * self.head_dim
    }

    /// Columns of the keys and values.
    pub fn kv_dim(&self) -> u32 {
        self.num_kv_heads * self.head_dim
    }

    /// `(rows N, cols K)` of a projection's weight.
    pub fn projection(&self, projection: Projection) -> (u32, u32) {
        let (d, inner) = (self.hidden_size, self.intermediate_size);
        match projection {
            Projection::Q => (self.q_dim(), d),
            Projection::K | Projection::V => (self.kv_dim(), d),
            Projection::O => (d, self.q_dim()),
            Projection::Gate | Projection::Up => (inner, d),
            Projection::Down => (d, inner),
        }
    }

    /// The vectors of a block and their lengths, in the order of [`BlockVector::ALL`].
    pub fn vectors(&self) -> impl Iterator<Item = (BlockVector, u32)> + use<> {
        let Extras { qkv_bias, head_norms, branch_norms, .. } = self.extras;
        let (d, head_dim) = (self.hidden_size, self.head_dim);
        let (q, kv) = (self.q_dim(), self.kv_dim());
        let of = move |vector| match vector {
            BlockVector::InputNorm | BlockVector::MlpNorm => Some(d),
            BlockVector::AttentionOutNorm | BlockVector::MlpOutNorm => branch_norms.then_some(d),
            BlockVector::QNorm | BlockVector::KNorm => head_norms.then_some(head_dim),
            BlockVector::QBias => qkv_bias.then_some(q),
            BlockVector::KBias | BlockVector::VBias => qkv_bias.then_some(kv),
        };
        BlockVector::ALL.into_iter().filter_map(move |vector| Some((vector, of(vector)?)))
    }

    /// The projection whose adapter's `A` another one uses: its own, unless they are parts of one
    /// layer.
    pub fn adapter_of(&self, projection: Projection) -> Projection {
        match projection {
            Projection::K | Projection::V if self.extras.fused => Projection::Q,
            Projection::Up if self.extras.fused => Projection::Gate,
            own => own,
        }
    }

    /// Columns `K` of an input, which are those of the weights that read it.
    pub fn input_cols(&self, input: LinearInput) -> u32 {
        match input {
            LinearInput::Attention | LinearInput::Mlp => self.hidden_size,
            LinearInput::AttentionOutput => self.q_dim(),
            LinearInput::Hidden => self.intermediate_size,
        }
    }

    /// Weights in all blocks, embeddings and head: the count that a model is named after.
    pub fn parameters(&self) -> u64 {
        let block: u64 = Projection::ALL
            .into_iter()
            .map(|p| {
                let (n, k) = self.projection(p);
                u64::from(n) * u64::from(k)
            })
            .chain(self.vectors().map(|(_, len)| u64::from(len)))
            .sum();
        let table = u64::from(self.vocab_size) * u64::from(self.hidden_size);
        let tables = if self.tied_head { table } else { 2 * table };
        u64::from(self.num_blocks) * block + tables + u64::from(self.hidden_size)
    }
}

/// A range of blocks that is tuned together; its exit sits after its last block.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Window {
    /// First block, `E_{t-1}`.
    pub first: u32,
    /// One past the last block, `E_t`: the exit is behind block `end - 1`.
    pub end: u32,
}

impl Window {
    /// Blocks in the window.
    pub fn depth(self) -> u32 {
        self.end - self.first
    }

    /// Whether a block lies in the window.
    pub fn contains(self, block: u32) -> bool {
        (self.first..self.end).contains(&block)
    }

    /// Cuts `num_blocks` blocks into `count` windows whose depths differ by at most one, the
    /// deeper ones on top (they are nearer to the final exit, which matters most).
    ///
    /// # Panics
    /// When `count` is 0 or above `num_blocks`; options are checked before a plan is made.
    pub fn split(num_blocks: u32, count: u32) -> Vec<Self> {
        assert!(count >= 1 && count <= num_blocks, "{count} windows over {num_blocks} blocks");
        (0..count)
            .map(|t| Self { first: t * num_blocks / count, end: (t + 1) * num_blocks / count })
            .collect()
    }
}

/// Some rows of a matrix, in buffers of their own.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Shard {
    /// First row.
    pub row0: u32,
    /// Number of rows.
    pub rows: u32,
}

impl Shard {
    /// Cuts a matrix `[rows, cols]` into shards of nearly equal size, none above `max_bytes` or
    /// `max_rows`; all but the last have a multiple of 64 rows, so that every offset is aligned.
    pub fn split(rows: u32, cols: u32, format: Format, max_bytes: u64, max_rows: u32) -> Vec<Self> {
        let row_bytes = format.bytes(64, cols).div_ceil(64).max(1);
        let fitting = (max_bytes / row_bytes).min(u64::from(max_rows)) / 64 * 64;
        let fitting = fitting.clamp(64, u64::from(u32::MAX)) as u32;
        let count = rows.div_ceil(fitting).max(1);
        let step = rows.div_ceil(count).next_multiple_of(64);
        let starts = (0..rows).step_by(step as usize);
        starts.map(|row0| Self { row0, rows: step.min(rows - row0) }).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn windows_cover_all_blocks_once() {
        for blocks in 1..40 {
            for count in 1..=blocks {
                let windows = Window::split(blocks, count);
                assert_eq!(windows.len() as u32, count);
                assert_eq!(windows[0].first, 0);
                assert_eq!(windows[windows.len() - 1].end, blocks);
                for pair in windows.windows(2) {
                    assert_eq!(pair[0].end, pair[1].first);
                    assert!(pair[1].depth() - pair[0].depth().min(pair[1].depth()) <= 1);
                }
                assert!(windows.iter().all(|w| w.depth() >= 1));
            }
        }
    }

    #[test]
    fn inputs_have_the_columns_of_the_weights_that_read_them() {
        let shape = ModelShape {
            vocab_size: 512,
            hidden_size: 64,
            intermediate_size: 172,
            num_blocks: 5,
            num_heads: 8,
            num_kv_heads: 4,
            head_dim: 10,
            tied_head: true,
            extras: Extras::NONE,
        };
        let all = LinearInput::ALL.map(|input| {
            let projections = input.projections();
            projections.map(|p| assert_eq!(shape.projection(p).1, shape.input_cols(input))).count()
        });
        assert_eq!(all, [3, 1, 2, 1]);
    }

    #[test]
    fn shards_cover_all_rows_once_and_fit() {
        for format in Format::TESTED {
            for rows in [1, 63, 64, 65, 512, 32_000, 32_003, 128_256] {
                let shards = Shard::split(rows, 2048, format, 128 << 20, 8192);
                let mut next = 0;
                for shard in &shards {
                    assert_eq!(shard.row0, next);
                    assert_eq!(shard.row0 % 64, 0);
                    assert!(shard.rows <= 8192);
                    assert!(format.bytes(shard.rows, 2048) <= 128 << 20);
                    next += shard.rows;
                }
                assert_eq!(next, rows);
            }
        }
    }
}
