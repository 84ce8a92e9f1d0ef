//! Weight formats: how a matrix `W [rows, cols]` of a linear layer or embedding is stored.
//!
//! `rows` are output channels (`N`), `cols` input channels (`K`).
//!
//! * Dense formats are row-major, as in a checkpoint: `F32` one word an element; `F16` and `Bf16`
//!   two elements a word, the even column in the low half, each row padded to a whole word.
//! * `Q8`, `Q4`, `Q3` and `Q2` are symmetric, group-wise along `K`, with f16 scales:
//!   `W = q * scale`, and `W = (q + 1/2) * scale` in `Q2`, whose four levels would not be symmetric
//!   with a zero.
//!   `K` is cut into blocks of 32 (the last one padded with zeros), block-major with the output
//!   channel fastest: values `[K/32][N][words]`, so that neighbouring lanes that own neighbouring
//!   channels read neighbouring 16-byte words, in forward, GEMV and `dX = dY·W` alike.
//!   * `Q8`: 8 words a block, four consecutive columns a word, signed bytes.
//!   * `Q4`: 4 words a block; word `w` holds columns `8w..8w+4` in the low nibbles of its bytes
//!     0..4 and columns `8w+4..8w+8` in the high nibbles, each stored plus 8.
//!   * `Q3`: 3 words a block in two planes, so that no value straddles words: the two low bits of
//!     `q + 4` as in `Q2`, `[K/32][N][2]`, and behind all of them the highest bits `[K/32][N]`,
//!     column `4i + j` in bit `i` of byte `j`. An odd count is padded to a pair of words.
//!   * `Q2`: 2 words a block, `q + 2`; column `16w + 4i + j` in bits `2i..2i + 2` of byte `j` of
//!     word `w`, so that one mask gives four consecutive columns.
//!   * scales `[K/group][N]` f16, two channels a word (`N` rounded up to even).

/// Columns in a block of packed values.
pub const BLOCK: u32 = 32;

/// Storage of a weight matrix.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Format {
    /// 32-bit float.
    F32,
    /// 16-bit float.
    F16,
    /// bfloat16.
    Bf16,
    /// Signed 8-bit with one f16 scale per `group` columns of a row (32 or 64).
    Q8 {
        /// Columns that share a scale.
        group: u32,
    },
    /// 4-bit with one f16 scale per `group` columns of a row (32 or 64).
    Q4 {
        /// Columns that share a scale.
        group: u32,
    },
    /// 3-bit with one f16 scale per `group` columns of a row (32 or 64).
    Q3 {
        /// Columns that share a scale.
        group: u32,
    },
    /// 2-bit with one f16 scale per `group` columns of a row (32 or 64).
    Q2 {
        /// Columns that share a scale.
        group: u32,
    },
}

impl Format {
    /// Every format, for tests and benches.
    pub const ALL: [Self; 11] = [
        Self::F32,
        Self::F16,
        Self::Bf16,
        Self::Q8 { group: 32 },
        Self::Q8 { group: 64 },
        Self::Q4 { group: 32 },
        Self::Q4 { group: 64 },
        Self::Q3 { group: 32 },
        Self::Q3 { group: 64 },
        Self::Q2 { group: 32 },
        Self::Q2 { group: 64 },
    ];

    /// Name in tables and keys.
    pub fn name(self) -> &'static str {
        match self {
            Self::F32 => "f32",
            Self::F16 => "f16",
            Self::Bf16 => "bf16",
            Self::Q8 { group: 64 } => "q8g64",
            Self::Q8 { .. } => "q8",
            Self::Q4 { group: 64 } => "q4g64",
            Self::Q4 { .. } => "q4",
            Self::Q3 { group: 64 } => "q3g64",
            Self::Q3 { .. } => "q3",
            Self::Q2 { group: 64 } => "q2g64",
            Self::Q2 { .. } => "q2",
        }
    }

    /// The format of this name.
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|format| format.name() == name)
    }

    /// Columns that share a scale; `None` for dense formats.
    pub fn group(self) -> Option<u32> {
        match self {
            Self::F32 | Self::F16 | Self::Bf16 => None,
            Self::Q8 { group } | Self::Q4 { group } | Self::Q3 { group } | Self::Q2 { group } => {
                Some(group)
            }
        }
    }

    /// Whether the matrix is block-major with scales.
    pub fn is_packed(self) -> bool {
        self.group().is_some()
    }

    /// Words of the values of a matrix `[rows, cols]`.
    pub fn value_words(self, rows: u32, cols: u32) -> u64 {
        let (rows, blocks) = (u64::from(rows), u64::from(cols.div_ceil(BLOCK)));
        match self {
            Self::F32 => rows * u64::from(cols),
            Self::F16 | Self::Bf16 => rows * u64::from(cols.div_ceil(2)),
            Self::Q8 { .. } => rows * blocks * 8,
            Self::Q4 { .. } => rows * blocks * 4,
            Self::Q3 { .. } => rows * blocks * 2 + (rows * blocks).next_multiple_of(2),
            Self::Q2 { .. } => rows * blocks * 2,
        }
    }

    /// Words of the scales of a matrix `[rows, cols]`; 0 for dense formats.
    pub fn scale_words(self, rows: u32, cols: u32) -> u64 {
        match self.group() {
            None => 0,
            Some(group) => u64::from(rows.div_ceil(2)) * u64::from(cols.div_ceil(group)),
        }
    }

    /// Bytes of values and scales of a matrix `[rows, cols]`.
    pub fn bytes(self, rows: u32, cols: u32) -> u64 {
        4 * (self.value_words(rows, cols) + self.scale_words(rows, cols))
    }

    /// The fragment under `shaders/` that loads this format.
    pub fn fragment(self) -> &'static str {
        match self {
            Self::F32 => "weights/f32.wgsl",
            Self::F16 => "weights/f16.wgsl",
            Self::Bf16 => "weights/bf16.wgsl",
            Self::Q8 { .. } => "weights/q8.wgsl",
            Self::Q4 { .. } => "weights/q4.wgsl",
            Self::Q3 { .. } => "weights/q3.wgsl",
            Self::Q2 { .. } => "weights/q2.wgsl",
        }
    }
}

/// The device buffers of a weight matrix, or of one shard of it (some of its rows).
#[derive(Clone, Debug)]
pub struct WeightBuffers<B> {
    /// How the values are stored.
    pub format: Format,
    /// Values.
    pub values: B,
    /// Scales of the packed formats.
    pub scales: Option<B>,
}

impl<B> WeightBuffers<B> {
    /// A dense matrix.
    pub fn dense(format: Format, values: B) -> Self {
        Self { format, values, scales: None }
    }

    /// The bindings that the fragments under `shaders/weights/` declare, in their order.
    pub fn bindings(self) -> impl Iterator<Item = B> {
        std::iter::once(self.values).chain(self.scales)
    }
}

/// What device memory is used for; every buffer is charged to one of these.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Category {
    /// Frozen base weights (and, with method `full`, the weights being trained).
    Weights,
    /// LoRA matrices and exit parameters.
    Adapters,
    /// Gradients of trained parameters.
    Gradients,
    /// Optimizer moments.
    Optimizer,
    /// Activations, kept or scratch, the key-value cache included.
    Activations,
    /// Chunks of logits and the loss's row statistics.
    Logits,
    /// Uploads, read-backs, parameters of dispatches.
    Staging,
}

impl Category {
    /// All categories, in the order of reports.
    pub const ALL: [Self; 7] = [
        Self::Weights,
        Self::Adapters,
        Self::Gradients,
        Self::Optimizer,
        Self::Activations,
        Self::Logits,
        Self::Staging,
    ];

    /// Key in JSON reports.
    pub fn name(self) -> &'static str {
        match self {
            Self::Weights => "weights",
            Self::Adapters => "adapters",
            Self::Gradients => "gradients",
            Self::Optimizer => "optimizer",
            Self::Activations => "activations",
            Self::Logits => "logits",
            Self::Staging => "staging",
        }
    }

    /// Position in [`Category::ALL`].
    pub fn index(self) -> usize {
        self as usize
    }
}
