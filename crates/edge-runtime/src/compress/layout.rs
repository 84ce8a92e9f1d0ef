//! What is where in `compressed.safetensors`.
//!
//! One safetensors file. The header is padded with spaces so that the data begin at a multiple of
//! [`ALIGN`] bytes of the file. The data are sections without gaps: the tables (final norm,
//! embedding, untied head), then each block (norms and biases, projections), every section at a
//! multiple of [`ALIGN`]; tensors `padding.I` of zero bytes fill up the one before, because
//! safetensors allows no holes.
//!
//! A packed matrix is `NAME.values.S` and `NAME.scales.S` for shard `S` of
//! [`projection_shards`] or [`table_shards`] at [`MAX_SHARD_BYTES`]: `U32` words, in the layout of
//! [`edge_kernels::packing`]. Projections of 16 bits are `NAME.values.S` as well, row-major. Those
//! that are one layer in other checkpoints are matrices of their own here. Norms and biases are
//! F32, as the checkpoint holds them; tables of 16 bits are tensors as in any checkpoint.

use edge_kernels::Format;
use edge_scheduler::plan::{MAX_SHARD_BYTES, projection_shards, table_shards};
use edge_scheduler::{Layer, ModelShape, Policy, Projection, Shard};
use safetensors::tensor::Dtype;

use crate::config::ModelConfig;
use crate::family::names::{EMBEDDING, HEAD, NORM, weight_name};

/// Sections begin at multiples of this many bytes of the file.
pub const ALIGN: u64 = 4096;

/// Formats in which tables can be stored.
pub const TABLE_FORMATS: [Format; 3] = [Format::F16, Format::Bf16, Format::Q8];

/// A tensor of the file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tensor {
    /// Name.
    pub name: String,
    /// Number format.
    pub dtype: Dtype,
    /// Sizes, slowest first.
    pub shape: Vec<usize>,
    /// First byte, from the start of the data.
    pub start: u64,
    /// One past the last byte.
    pub end: u64,
}

/// Some tensors that are loaded together and have a checksum.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Section {
    /// `tables`, or the name of a block.
    pub name: String,
    /// First byte, from the start of the data; a multiple of [`ALIGN`].
    pub start: u64,
    /// One past the last byte, padding included.
    pub end: u64,
}

/// The whole file but its header.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Layout {
    /// The tensors, in the order of their bytes.
    pub tensors: Vec<Tensor>,
    /// Tables, then a section a block.
    pub sections: Vec<Section>,
}

/// Name of a shard's values.
pub fn values_name(name: &str, shard: usize) -> String {
    format!("{name}.values.{shard}")
}

/// Name of a shard's scales, minima and positions.
pub fn scales_name(name: &str, shard: usize) -> String {
    format!("{name}.scales.{shard}")
}

/// The shards of a table in the file.
pub fn table_shards_of(shape: &ModelShape, format: Format) -> Vec<Shard> {
    table_shards(shape, format, MAX_SHARD_BYTES)
}

/// The shards of a projection in the file.
pub fn shards_of(n: u32, k: u32, format: Format) -> Vec<Shard> {
    projection_shards(n, k, format, MAX_SHARD_BYTES)
}

impl Layout {
    /// The layout of a model.
    ///
    /// # Panics
    /// When a table's format is none of [`TABLE_FORMATS`].
    pub fn new(config: &ModelConfig, policy: &Policy, [embedding, head]: [Format; 2]) -> Self {
        let shape = &config.shape();
        let mut layout = Self { tensors: Vec::new(), sections: Vec::new() };
        let d = shape.hidden_size as usize;
        layout.add(NORM.to_owned(), Dtype::F32, vec![d]);
        layout.table(EMBEDDING, shape, embedding);
        if !shape.tied_head {
            layout.table(HEAD, shape, head);
        }
        layout.close("tables".to_owned(), policy.blocks.is_empty());
        for (block, rule) in (0..).zip(&policy.blocks) {
            for (vector, len) in shape.vectors() {
                let name = config.vector_name(block as usize, vector);
                layout.add(name, Dtype::F32, vec![len as usize]);
            }
            for projection in Projection::ALL {
                let (n, k) = shape.projection(projection);
                let format = rule.get(projection);
                let shards = shards_of(n, k, format);
                layout.matrix(&weight_name(block as usize, projection), k, format, &shards);
            }
            let last = block as usize + 1 == policy.blocks.len();
            layout.close(Layer { block, projection: None }.to_string(), last);
        }
        layout
    }

    /// Bytes of the data.
    pub fn bytes(&self) -> u64 {
        self.tensors.last().map_or(0, |tensor| tensor.end)
    }

    fn add(&mut self, name: String, dtype: Dtype, shape: Vec<usize>) {
        let start = self.bytes();
        let elements: u64 = shape.iter().map(|size| *size as u64).product();
        let end = start + elements * (dtype.bitsize() as u64 / 8);
        self.tensors.push(Tensor { name, dtype, shape, start, end });
    }

    fn table(&mut self, name: &str, shape: &ModelShape, format: Format) {
        let size = vec![shape.vocab_size as usize, shape.hidden_size as usize];
        match format {
            Format::F16 => self.add(name.to_owned(), Dtype::F16, size),
            Format::Bf16 => self.add(name.to_owned(), Dtype::BF16, size),
            format => {
                assert!(TABLE_FORMATS.contains(&format), "the format of table {name}");
                let shards = table_shards_of(shape, format);
                self.matrix(name, shape.hidden_size, format, &shards);
            }
        }
    }

    fn matrix(&mut self, name: &str, k: u32, format: Format, shards: &[Shard]) {
        for (index, shard) in shards.iter().enumerate() {
            let words = format.value_words(shard.rows, k) as usize;
            self.add(values_name(name, index), Dtype::U32, vec![words]);
            if format.is_packed() {
                let words = format.scale_words(shard.rows, k) as usize;
                self.add(scales_name(name, index), Dtype::U32, vec![words]);
            }
        }
    }

    /// Ends a section; what follows begins aligned.
    fn close(&mut self, name: String, last: bool) {
        let start = self.sections.last().map_or(0, |section| section.end);
        let gap = self.bytes().next_multiple_of(ALIGN) - self.bytes();
        if gap > 0 && !last {
            let padding = format!("padding.{}", self.sections.len());
            self.add(padding, Dtype::U8, vec![gap as usize]);
        }
        self.sections.push(Section { name, start, end: self.bytes() });
    }
}
