//! Policies: the format of every projection of every block, as a value; and policies by name.
//!
//! A layer is named as in a checkpoint: `model.layers.3` is a block, `model.layers.3.mlp.down_proj`
//! a projection of it, whose format comes before that of its block.

use std::fmt;

use edge_kernels::Format;

use crate::plan::{MAX_SHARD_BYTES, projection_shards};
use crate::shape::{BlockFormats, ModelShape, Projection};

mod named;

pub use named::{PolicyError, Target, Template};

/// Bits that a stored value can have.
pub const WIDTHS: [u32; 5] = [2, 3, 4, 8, 16];

/// Sparsity of 2:4, the only one beside 0.
pub const TWO_FOUR: f64 = 0.5;

/// A block, or a projection of one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Layer {
    /// The block.
    pub block: u32,
    /// The projection; `None`: all of the block.
    pub projection: Option<Projection>,
}

impl Layer {
    /// The layer of a name such as `model.layers.3` or `model.layers.3.mlp.down_proj`.
    pub fn from_name(name: &str) -> Option<Self> {
        let rest = name.strip_prefix("model.layers.")?;
        let (number, path) = match rest.split_once('.') {
            Some((number, path)) => (number, Some(path)),
            None => (rest, None),
        };
        let block: u32 = number.parse().ok()?;
        let projection = match path {
            Some(path) => Some(Projection::ALL.into_iter().find(|p| p.path() == path)?),
            None => None,
        };
        let layer = Self { block, projection };
        // No second spelling, such as model.layers.03.
        (layer.to_string() == name).then_some(layer)
    }
}

impl fmt::Display for Layer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "model.layers.{}", self.block)?;
        match self.projection {
            Some(projection) => write!(f, ".{}", projection.path()),
            None => Ok(()),
        }
    }
}

/// What a policy says of a block.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BlockPolicy {
    /// Format of the block's projections.
    pub format: Format,
    /// Projections with a format of their own, by [`Projection::index`].
    pub overrides: [Option<Format>; 7],
}

impl BlockPolicy {
    /// The same format for all projections.
    pub fn uniform(format: Format) -> Self {
        Self { format, overrides: [None; 7] }
    }

    /// A format for each projection, by [`Projection::index`]: the block's is the most frequent
    /// one, of equally frequent ones the first.
    pub fn of(formats: [Format; 7]) -> Self {
        let format = most(&formats);
        let overrides = formats.map(|own| Some(own).filter(|own| *own != format));
        Self { format, overrides }
    }

    /// The format of a projection.
    pub fn get(&self, projection: Projection) -> Format {
        self.overrides[projection.index()].unwrap_or(self.format)
    }

    /// The formats of all projections.
    pub fn formats(&self) -> BlockFormats {
        BlockFormats(Projection::ALL.map(|projection| self.get(projection)))
    }
}

/// How the blocks of a model are stored.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Policy {
    /// What chose it: `uniform`, `random`, `paper`, `luc`, or a person's own word.
    pub name: String,
    /// The blocks, from the bottom up.
    pub blocks: Vec<BlockPolicy>,
}

/// Means over the weights of all projections.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Averages {
    /// Bits of a stored value; positions and scales apart.
    pub bits: f64,
    /// Share of the weights that are not stored.
    pub sparsity: f64,
    /// Bytes of all projections, with scales, minima and positions.
    pub bytes: u64,
}

/// Bits of a stored value of a format.
pub fn bits(format: Format) -> u32 {
    match format {
        Format::F32 => 32,
        Format::F16 | Format::Bf16 => 16,
        Format::Packed(packing) => packing.bits(),
    }
}

/// Share of the weights that a format does not store.
pub fn sparsity(format: Format) -> f64 {
    match format.packing() {
        Some(packing) if packing.is_sparse() => TWO_FOUR,
        _ => 0.0,
    }
}

/// Bytes of a matrix `[n, k]` in shards, as the plan and the compressed checkpoint have it.
pub fn matrix_bytes(n: u32, k: u32, format: Format) -> u64 {
    let shards = projection_shards(n, k, format, MAX_SHARD_BYTES);
    shards.into_iter().map(|shard| format.bytes(shard.rows, k)).sum()
}

/// Bytes of a block's projections.
pub fn block_bytes(shape: &ModelShape, formats: &BlockFormats) -> u64 {
    let bytes = |projection| {
        let (n, k) = shape.projection(projection);
        matrix_bytes(n, k, formats.get(projection))
    };
    Projection::ALL.into_iter().map(bytes).sum()
}

impl Policy {
    /// The policy that gives each layer one of its candidates, as [`crate::allocate::allocate`]
    /// chose. A layer that is a projection overrides its block; a block that is no layer itself
    /// has the format of most of its projections, as many as there are.
    ///
    /// # Panics
    /// When blocks are left out, or a choice is no candidate.
    pub fn chosen(name: &str, layers: &[(Layer, Vec<Format>)], choice: &[usize]) -> Self {
        assert_eq!(layers.len(), choice.len(), "a choice for each layer");
        let count = layers.iter().map(|(layer, _)| layer.block as usize + 1).max().unwrap_or(0);
        let mut whole: Vec<Option<Format>> = vec![None; count];
        let mut parts = vec![[None; 7]; count];
        for ((layer, candidates), &index) in layers.iter().zip(choice) {
            let block = layer.block as usize;
            match layer.projection {
                Some(projection) => parts[block][projection.index()] = Some(candidates[index]),
                None => whole[block] = Some(candidates[index]),
            }
        }
        let blocks = whole.into_iter().zip(parts).enumerate().map(|(block, (whole, parts))| {
            let Some(format) = whole else {
                let own = |part: Option<Format>| part.unwrap_or_else(|| panic!("block {block}"));
                return BlockPolicy::of(parts.map(own));
            };
            let overrides = parts.map(|part| part.filter(|part| *part != format));
            BlockPolicy { format, overrides }
        });
        Self { name: name.to_owned(), blocks: blocks.collect() }
    }

    /// The formats of all blocks, for a [`crate::Job`].
    pub fn formats(&self) -> Vec<BlockFormats> {
        self.blocks.iter().map(BlockPolicy::formats).collect()
    }

    /// Means over the weights of the projections, and bytes.
    pub fn averages(&self, shape: &ModelShape) -> Averages {
        let (mut weights, mut all_bits, mut left_out, mut bytes) = (0.0, 0.0, 0.0, 0);
        for block in &self.blocks {
            let formats = block.formats();
            bytes += block_bytes(shape, &formats);
            for projection in Projection::ALL {
                let (n, k) = shape.projection(projection);
                let (count, format) = (f64::from(n) * f64::from(k), formats.get(projection));
                weights += count;
                all_bits += count * f64::from(bits(format));
                left_out += count * sparsity(format);
            }
        }
        let weights = f64::max(weights, 1.0);
        Averages { bits: all_bits / weights, sparsity: left_out / weights, bytes }
    }
}

/// The most frequent format; of equally frequent ones the first.
fn most(formats: &[Format; 7]) -> Format {
    let count = |format| formats.iter().filter(|other| **other == format).count();
    let mut best = formats[0];
    for &format in formats {
        if count(format) > count(best) {
            best = format;
        }
    }
    best
}

#[cfg(test)]
mod tests {
    use edge_kernels::Packing;

    use super::*;
    use crate::shape::Extras;

    pub(super) fn shape(num_blocks: u32) -> ModelShape {
        ModelShape {
            vocab_size: 139,
            hidden_size: 48,
            intermediate_size: 100,
            num_blocks,
            num_heads: 6,
            num_kv_heads: 2,
            head_dim: 8,
            tied_head: false,
            extras: Extras::NONE,
        }
    }

    #[test]
    fn layers_have_the_names_of_the_checkpoint() {
        for block in [0, 7, 31] {
            for projection in std::iter::once(None).chain(Projection::ALL.map(Some)) {
                let layer = Layer { block, projection };
                assert_eq!(Layer::from_name(&layer.to_string()), Some(layer));
            }
        }
        let down = Layer { block: 3, projection: Some(Projection::Down) };
        assert_eq!(down.to_string(), "model.layers.3.mlp.down_proj");
        for name in ["model.layers.03", "model.layers.", "model.layers.3.", "layers.3", "lm_head"] {
            assert_eq!(Layer::from_name(name), None, "{name}");
        }
        assert_eq!(Layer::from_name("model.layers.3.self_attn.down_proj"), None);
    }

    #[test]
    fn averages_are_those_of_the_definition() {
        let mut block = BlockPolicy::uniform(Format::Q4);
        block.overrides[Projection::Down.index()] = Some(Format::two_four(8));
        let policy = Policy { name: "own".into(), blocks: vec![block; 3] };
        let shape = shape(3);
        let weights = 48.0 * (48.0 + 16.0 + 16.0 + 48.0 + 300.0);
        let down = 4800.0;
        let averages = policy.averages(&shape);
        assert!((averages.bits - (4.0 + 4.0 * down / weights)).abs() < 1e-12);
        assert!((averages.sparsity - 0.5 * down / weights).abs() < 1e-12);
        // K = 48 is two blocks: 32 bytes and two scales a row; 100 is four.
        let rows = 48 + 16 + 16 + 48 + 200;
        assert_eq!(averages.bytes, 3 * (rows * (32 + 4) + 48 * 4 * (16 + 2 + 4)));
        let odd = Format::Packed(Packing::new(3));
        assert_eq!(matrix_bytes(65, 33, odd), odd.bytes(65, 33));
    }

    #[test]
    fn chosen_formats_fold_into_blocks() {
        let candidates = vec![Format::Q4, Format::Q8];
        let layer = |block, projection| (Layer { block, projection }, candidates.clone());
        let mut layers = vec![layer(0, None)];
        layers.extend(Projection::ALL.map(|projection| layer(1, Some(projection))));
        let policy = Policy::chosen("luc", &layers, &[1, 0, 0, 0, 0, 0, 0, 1]);
        assert_eq!(policy.blocks[0], BlockPolicy::uniform(Format::Q8));
        assert_eq!(policy.blocks[1].format, Format::Q4);
        let mut overrides = [None; 7];
        overrides[6] = Some(Format::Q8);
        assert_eq!(policy.blocks[1].overrides, overrides);
        assert_eq!(policy.formats()[1].get(Projection::Down), Format::Q8);
    }
}
