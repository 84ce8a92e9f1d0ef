//! Weight formats: how a matrix `W [rows, cols]` of a linear layer or embedding is stored.
//!
//! `rows` are output channels (`N`), `cols` input channels (`K`).
//!
//! * Dense formats are row-major, as in a checkpoint: `F32` one word an element; `F16` and `Bf16`
//!   two elements a word, the even column in the low half, each row padded to a whole word.
//! * Packed formats store blocks of 32 columns of quantised, of sparse, or of both kinds of
//!   weights: [`packing`](mod@crate::packing) has the layout.

pub use crate::packing::{BLOCK, Packing, ROW_GROUP, Sparsity};

/// Storage of a weight matrix.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Format {
    /// 32-bit float.
    F32,
    /// 16-bit float.
    F16,
    /// bfloat16.
    Bf16,
    /// Blocks of quantised or sparse values.
    Packed(Packing),
}

impl Format {
    /// 8 bits a weight, symmetric, a scale for 32 columns.
    pub const Q8: Self = Packing::new(8).format();
    /// 4 bits a weight, symmetric, a scale for 32 columns.
    pub const Q4: Self = Packing::new(4).format();
    /// 3 bits a weight, symmetric, a scale for 32 columns.
    pub const Q3: Self = Packing::new(3).format();
    /// 2 bits a weight, symmetric, a scale for 32 columns.
    pub const Q2: Self = Packing::new(2).format();

    /// What kernels are tested with: every bits with every sparsity in symmetric groups of 32,
    /// then groups of 64 and zero points, each with every way to lay out values at least once.
    pub const TESTED: [Self; 24] = [
        Self::F32,
        Self::F16,
        Self::Bf16,
        Self::Q8,
        Self::Q4,
        Self::Q3,
        Self::Q2,
        Self::two_four(16),
        Self::two_four(8),
        Self::two_four(4),
        Self::two_four(3),
        Self::two_four(2),
        Self::row_grouped(16),
        Self::row_grouped(8),
        Self::row_grouped(4),
        Self::row_grouped(3),
        Self::row_grouped(2),
        Packing::new(8).group_size(64).format(),
        Packing::new(4).group_size(64).format(),
        Packing::new(4).zero_point().format(),
        Packing::new(2).group_size(64).zero_point().format(),
        Packing::new(4).zero_point().sparsity(Sparsity::TwoFour).format(),
        Packing::new(8).group_size(64).sparsity(Sparsity::RowGrouped).format(),
        Packing::new(3).group_size(64).zero_point().sparsity(Sparsity::RowGrouped).format(),
    ];

    /// What kernels are timed with.
    pub const TIMED: [Self; 15] = [
        Self::F32,
        Self::F16,
        Self::Bf16,
        Self::Q8,
        Self::Q4,
        Self::Q3,
        Self::Q2,
        Packing::new(4).group_size(64).format(),
        Packing::new(4).zero_point().format(),
        Self::two_four(16),
        Self::two_four(4),
        Self::row_grouped(16),
        Self::row_grouped(8),
        Self::row_grouped(4),
        Self::row_grouped(2),
    ];

    /// 2:4, each row its own positions, symmetric, a scale for 32 columns.
    pub const fn two_four(bits: u32) -> Self {
        Packing::new(bits).sparsity(Sparsity::TwoFour).format()
    }

    /// 2:4, positions shared by [`ROW_GROUP`] rows, symmetric, a scale for 32 columns.
    pub const fn row_grouped(bits: u32) -> Self {
        Packing::new(bits).sparsity(Sparsity::RowGrouped).format()
    }

    /// Name in tables and keys.
    pub fn name(self) -> &'static str {
        match self {
            Self::F32 => "f32",
            Self::F16 => "f16",
            Self::Bf16 => "bf16",
            Self::Packed(packing) => packing.name(),
        }
    }

    /// The format of this name.
    pub fn from_name(name: &str) -> Option<Self> {
        let packed = Packing::all().map(Packing::format);
        let mut all = [Self::F32, Self::F16, Self::Bf16].into_iter().chain(packed);
        all.find(|format| format.name() == name)
    }

    /// How it is packed; `None` for row-major formats.
    pub fn packing(self) -> Option<Packing> {
        match self {
            Self::F32 | Self::F16 | Self::Bf16 => None,
            Self::Packed(packing) => Some(packing),
        }
    }

    /// Columns that share a scale; `None` without scales.
    pub fn group(self) -> Option<u32> {
        self.packing().and_then(Packing::group)
    }

    /// Whether the matrix is block-major, with a second buffer.
    pub fn is_packed(self) -> bool {
        self.packing().is_some()
    }

    /// Words of the values of a matrix `[rows, cols]`.
    pub fn value_words(self, rows: u32, cols: u32) -> u64 {
        match self {
            Self::F32 => u64::from(rows) * u64::from(cols),
            Self::F16 | Self::Bf16 => u64::from(rows) * u64::from(cols.div_ceil(2)),
            Self::Packed(packing) => packing.value_words(rows, cols),
        }
    }

    /// Words of the second buffer of a matrix `[rows, cols]`: scales, minima and positions; 0 for
    /// row-major formats.
    pub fn scale_words(self, rows: u32, cols: u32) -> u64 {
        self.packing().map_or(0, |packing| {
            packing.position_offset(rows, cols) + packing.position_words(rows, cols)
        })
    }

    /// Bytes of all buffers of a matrix `[rows, cols]`.
    pub fn bytes(self, rows: u32, cols: u32) -> u64 {
        4 * (self.value_words(rows, cols) + self.scale_words(rows, cols))
    }

    /// The fragment under `shaders/` that loads this format.
    pub fn fragment(self) -> &'static str {
        match self {
            Self::F32 => "weights/f32.wgsl",
            Self::F16 => "weights/f16.wgsl",
            Self::Bf16 => "weights/bf16.wgsl",
            Self::Packed(_) => "weights/packed.wgsl",
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
    /// Scales, minima and positions of the packed formats.
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
