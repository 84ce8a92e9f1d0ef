//! Policies: the format of every projection of every block, as a value; and policies by name.
//!
//! A layer is named as in a checkpoint: `model.layers.3` is a block, `model.layers.3.mlp.down_proj`
//! a projection of it, whose format comes before that of its block.

use std::fmt;

use edge_kernels::util::SeededRng;
use edge_kernels::{Format, Packing, Sparsity};
use rand::SeedableRng;
use rand::seq::SliceRandom;

use crate::plan::{MAX_SHARD_BYTES, projection_shards};
use crate::shape::{BlockFormats, ModelShape, Projection};

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

/// What formats are made of, apart from bits and whether they are sparse.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Template {
    /// Columns that share a scale: 32 or 64.
    pub group_size: u32,
    /// Whether each scale has a minimum beside it.
    pub zero_point: bool,
    /// What a sparse layer keeps.
    pub sparsity: Sparsity,
    /// How 16 bits are stored where nothing is left out: `F16` or `Bf16`.
    pub dense_16: Format,
}

impl Default for Template {
    fn default() -> Self {
        Self {
            group_size: 32,
            zero_point: false,
            sparsity: Sparsity::TwoFour,
            dense_16: Format::Bf16,
        }
    }
}

impl Template {
    /// The format of this width.
    ///
    /// # Panics
    /// When `bits` is none of [`WIDTHS`].
    pub fn format(&self, bits: u32, sparse: bool) -> Format {
        let kept = if sparse { self.sparsity } else { Sparsity::Dense };
        match (bits, kept) {
            (16, Sparsity::Dense) => self.dense_16,
            (16, kept) => Packing::new(16).sparsity(kept).format(),
            (bits, kept) => {
                let packing = Packing::new(bits).group_size(self.group_size).sparsity(kept);
                if self.zero_point { packing.zero_point().format() } else { packing.format() }
            }
        }
    }
}

/// What the policies by name aim at.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Target {
    /// Mean bits of a stored value, 2 to 16.
    pub bits: f64,
    /// Mean sparsity, 0 to 1/2.
    pub sparsity: f64,
    /// The rest of the formats.
    pub template: Template,
}

/// A target or measurement from which no policy follows.
#[derive(Clone, Debug, PartialEq)]
pub enum PolicyError {
    /// Bits outside of 2 to 16.
    Bits(f64),
    /// Bits that are no width, for the policy of the paper.
    Width(f64),
    /// A sparsity outside of 0 to 1/2.
    Sparsity(f64),
    /// An error of a block that is no number of at least 0.
    Error {
        /// The block.
        block: usize,
    },
}

impl fmt::Display for PolicyError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Bits(bits) => write!(f, "{bits} bits cannot be met: use 2 to 16"),
            Self::Width(bits) => {
                write!(f, "{bits} bits are no width that exists: use 2, 3, 4, 8 or 16")
            }
            Self::Sparsity(share) => {
                write!(f, "sparsity {share} cannot be met with 2:4: use 0 to 0.5")
            }
            Self::Error { block } => {
                write!(f, "the error of block {block} is no number of at least 0")
            }
        }
    }
}

impl std::error::Error for PolicyError {}

impl Target {
    fn check(&self) -> Result<(), PolicyError> {
        if !(2.0..=16.0).contains(&self.bits) {
            return Err(PolicyError::Bits(self.bits));
        }
        if !(0.0..=TWO_FOUR).contains(&self.sparsity) {
            return Err(PolicyError::Sparsity(self.sparsity));
        }
        Ok(())
    }

    /// Bits of each block: of the two widths around the target, the higher one spread evenly.
    fn spread_bits(&self, blocks: usize) -> Vec<u32> {
        let above = WIDTHS.iter().position(|&width| f64::from(width) >= self.bits).unwrap_or(4);
        let (low, high) = (WIDTHS[above.saturating_sub(1)], WIDTHS[above]);
        let span = f64::from(high - low).max(1.0);
        let share = (self.bits - f64::from(low)) / span;
        let wide = spread((share * blocks as f64).round() as usize, blocks);
        wide.into_iter().map(|wide| if wide { high } else { low }).collect()
    }

    /// How many of the blocks are 2:4, so that the mean sparsity is nearest to the target.
    fn sparse_blocks(&self, blocks: usize) -> usize {
        (self.sparsity / TWO_FOUR * blocks as f64).round() as usize
    }

    fn policy(&self, name: &str, bits: &[u32], sparse: &[bool]) -> Policy {
        let formats = bits.iter().zip(sparse).map(|(&b, &s)| self.template.format(b, s));
        let blocks = formats.map(BlockPolicy::uniform).collect();
        Policy { name: name.to_owned(), blocks }
    }
}

/// `count` of `of` places, evenly apart.
fn spread(count: usize, of: usize) -> Vec<bool> {
    (0..of).map(|i| (i + 1) * count / of > i * count / of).collect()
}

impl Policy {
    /// Every block alike as far as the target allows: where its bits lie between two widths that
    /// exist, blocks of the higher one are spread evenly among those of the lower, and so are 2:4
    /// blocks among dense ones. The means are the nearest to the target that whole blocks give.
    ///
    /// # Errors
    /// The target lies outside of what exists.
    pub fn uniform(blocks: usize, target: &Target) -> Result<Self, PolicyError> {
        target.check()?;
        let sparse = spread(target.sparse_blocks(blocks), blocks);
        Ok(target.policy("uniform", &target.spread_bits(blocks), &sparse))
    }

    /// The formats of [`Policy::uniform`], bits and sparsity each in an order drawn at random.
    ///
    /// # Errors
    /// As [`Policy::uniform`].
    pub fn random(blocks: usize, target: &Target, seed: u64) -> Result<Self, PolicyError> {
        target.check()?;
        let mut rng = SeededRng::seed_from_u64(seed);
        let mut bits = target.spread_bits(blocks);
        let mut sparse = spread(target.sparse_blocks(blocks), blocks);
        bits.shuffle(&mut rng);
        sparse.shuffle(&mut rng);
        Ok(target.policy("random", &bits, &sparse))
    }

    /// The policy of Edge-LLM (DAC 2024), Eq. 1 and 2, from the errors of each block when it alone
    /// is quantised and when it alone is pruned.
    ///
    /// Eq. 1, `b_j = B + 1[s_j >= mean(s)]`: a sensitive block gets the next width that exists, at
    /// most 16. Eq. 2, `p_j = P L (1 - n_j) / sum(1 - n)` with `n` the min-max-normalised pruning
    /// errors (as the paper's code has it; as printed it would prune the most sensitive block
    /// most). Shares above 1/2 do not exist in 2:4: the blocks with the largest shares are 2:4, as
    /// many as bring the mean nearest to `P`; of equal shares the lower block.
    ///
    /// # Errors
    /// The target lies outside of what exists, its bits are no width, or an error is no number of
    /// at least 0.
    ///
    /// # Panics
    /// When there are not as many errors of one kind as of the other.
    pub fn paper(quant: &[f64], prune: &[f64], target: &Target) -> Result<Self, PolicyError> {
        assert_eq!(quant.len(), prune.len(), "errors of each block");
        target.check()?;
        for errors in [quant, prune] {
            let wrong = errors.iter().position(|e| !e.is_finite() || *e < 0.0);
            if let Some(block) = wrong {
                return Err(PolicyError::Error { block });
            }
        }
        let width = WIDTHS.iter().position(|&width| f64::from(width) == target.bits);
        let width = width.ok_or(PolicyError::Width(target.bits))?;
        let higher = WIDTHS[(width + 1).min(WIDTHS.len() - 1)];
        let mean = quant.iter().sum::<f64>() / quant.len().max(1) as f64;
        let bits = quant.iter().map(|&s| if s >= mean { higher } else { WIDTHS[width] });
        let bits: Vec<u32> = bits.collect();

        let shares = shares(prune, target.sparsity);
        let mut order: Vec<usize> = (0..shares.len()).collect();
        order.sort_by(|&a, &b| shares[b].total_cmp(&shares[a]));
        let mut sparse = vec![false; shares.len()];
        for &block in order.iter().take(target.sparse_blocks(shares.len())) {
            sparse[block] = true;
        }
        Ok(target.policy("paper", &bits, &sparse))
    }

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
            let complete = whole.is_some() || parts.iter().all(Option::is_some);
            assert!(complete, "block {block} has no format");
            let format = whole.unwrap_or_else(|| most(&parts));
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
fn most(formats: &[Option<Format>; 7]) -> Format {
    let count = |format| formats.iter().filter(|other| **other == format).count();
    let mut best = formats[0];
    for &format in formats {
        if count(format) > count(best) {
            best = format;
        }
    }
    best.expect("all projections have a format")
}

/// Eq. 2 of the paper over inverted, min-max-normalised errors.
fn shares(errors: &[f64], sparsity: f64) -> Vec<f64> {
    let low = errors.iter().copied().fold(f64::INFINITY, f64::min);
    let high = errors.iter().copied().fold(0.0, f64::max);
    let inverted = errors.iter().map(|error| match high > low {
        true => 1.0 - (error - low) / (high - low),
        false => 1.0,
    });
    let inverted: Vec<f64> = inverted.collect();
    let sum: f64 = inverted.iter().sum();
    let factor = sparsity * errors.len() as f64 / sum.max(f64::MIN_POSITIVE);
    inverted.into_iter().map(|share| share * factor).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shape(num_blocks: u32) -> ModelShape {
        ModelShape {
            vocab_size: 139,
            hidden_size: 48,
            intermediate_size: 100,
            num_blocks,
            num_heads: 6,
            num_kv_heads: 2,
            head_dim: 8,
            tied_head: false,
        }
    }

    fn target(bits: f64, sparsity: f64) -> Target {
        Target { bits, sparsity, template: Template::default() }
    }

    fn widths(policy: &Policy) -> Vec<u32> {
        policy.blocks.iter().map(|block| bits(block.format)).collect()
    }

    fn sparse(policy: &Policy) -> Vec<usize> {
        let blocks = policy.blocks.iter().enumerate();
        blocks.filter(|(_, block)| sparsity(block.format) > 0.0).map(|(i, _)| i).collect()
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
    fn uniform_meets_averages_between_widths() {
        let policy = Policy::uniform(8, &target(5.0, 0.25)).unwrap();
        assert_eq!(widths(&policy), [4, 4, 4, 8, 4, 4, 4, 8]);
        assert_eq!(sparse(&policy), [1, 3, 5, 7]);
        for blocks in [6, 22, 32] {
            for (b, s) in
                [(2.0, 0.0), (2.5, 0.5), (3.0, 0.25), (5.0, 0.5), (12.0, 0.0), (16.0, 0.0)]
            {
                for policy in [
                    Policy::uniform(blocks, &target(b, s)).unwrap(),
                    Policy::random(blocks, &target(b, s), 3).unwrap(),
                ] {
                    let averages = policy.averages(&shape(blocks as u32));
                    // Half a block's step away at most.
                    assert!((averages.bits - b).abs() <= 4.0 / blocks as f64 + 1e-9);
                    assert!((averages.sparsity - s).abs() <= 0.25 / blocks as f64 + 1e-9);
                }
            }
        }
        assert_eq!(Policy::uniform(8, &target(17.0, 0.0)), Err(PolicyError::Bits(17.0)));
        assert_eq!(Policy::uniform(8, &target(4.0, 0.6)), Err(PolicyError::Sparsity(0.6)));
        assert!(Policy::uniform(8, &target(f64::NAN, 0.0)).is_err());
    }

    #[test]
    fn random_draws_with_its_seed() {
        let of = |seed| Policy::random(32, &target(3.5, 0.25), seed).unwrap();
        assert_eq!(of(1), of(1));
        assert_ne!(of(1), of(2));
        let uniform = Policy::uniform(32, &target(3.5, 0.25)).unwrap();
        let sorted = |policy: &Policy| {
            let mut widths = widths(policy);
            widths.sort_unstable();
            (widths, sparse(policy).len())
        };
        assert_eq!(sorted(&of(1)), sorted(&uniform));
        assert_ne!(of(1).blocks, uniform.blocks);
    }

    /// Shaped like the paper's data: the last but one block is sensitive to pruning.
    #[test]
    fn the_papers_policy_spares_what_is_sensitive() {
        let quant = [0.1, 0.1, 16.0, 0.2, 0.1, 0.2, 17.7, 1.4];
        let prune = [3.3e-4, 3e-3, 8.8e-3, 2.3e-2, 5.6e-2, 0.1, 0.498, 0.0];
        let policy = Policy::paper(&quant, &prune, &target(3.0, 0.25)).unwrap();
        assert_eq!(widths(&policy), [3, 3, 4, 3, 3, 3, 4, 3]);
        assert_eq!(sparse(&policy), [0, 1, 2, 7]);
        let policy = Policy::paper(&quant, &prune, &target(4.0, 7.0 / 16.0)).unwrap();
        assert_eq!(widths(&policy)[2], 8);
        assert_eq!(sparse(&policy), [0, 1, 2, 3, 4, 5, 7]);
        let most = Policy::paper(&quant, &prune, &target(16.0, 0.0)).unwrap();
        assert_eq!(widths(&most), [16; 8]);
        // Eq. 2 with the mean of the target, the most sensitive block at 0.
        let shares = shares(&prune, 0.5);
        assert!((shares.iter().sum::<f64>() / 8.0 - 0.5).abs() < 1e-12);
        assert_eq!(shares[6], 0.0);
        let error = Policy::paper(&quant, &prune, &target(5.0, 0.0));
        assert_eq!(error, Err(PolicyError::Width(5.0)));
        let error = Policy::paper(&[f64::NAN], &[1.0], &target(4.0, 0.0));
        assert_eq!(error, Err(PolicyError::Error { block: 0 }));
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
