//! Policies by name: what Edge-LLM compares (DAC 2024, Table 2), and its own rule.

use std::fmt;

use edge_kernels::util::SeededRng;
use edge_kernels::{Format, Packing, Sparsity};
use rand::SeedableRng;
use rand::seq::SliceRandom;

use super::{BlockPolicy, Policy, TWO_FOUR, WIDTHS};
use crate::shape::{ModelShape, Projection};

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

    /// The two widths around the target, and the share of the weights that have the higher one.
    pub fn widths(&self) -> (u32, u32, f64) {
        let above = WIDTHS.iter().position(|&width| f64::from(width) >= self.bits).unwrap_or(4);
        let (low, high) = (WIDTHS[above.saturating_sub(1)], WIDTHS[above]);
        let span = f64::from(high - low).max(1.0);
        (low, high, (self.bits - f64::from(low)) / span)
    }

    /// Bits of each block: of the two widths around the target, the higher one spread evenly.
    fn spread_bits(&self, blocks: usize) -> Vec<u32> {
        let (low, high, share) = self.widths();
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

    /// Projections drawn at random have the higher of the two widths around the target, and others
    /// are 2:4, as many of each as bring the means nearest to the target. Where the target is a
    /// width and a sparsity that exist, nothing is left to chance: it is [`Policy::uniform`].
    ///
    /// # Errors
    /// As [`Policy::uniform`].
    pub fn random(shape: &ModelShape, target: &Target, seed: u64) -> Result<Self, PolicyError> {
        target.check()?;
        let mut rng = SeededRng::seed_from_u64(seed);
        let (low, high, share) = target.widths();
        let wide = drawn(shape, share, &mut rng);
        let sparse = drawn(shape, target.sparsity / TWO_FOUR, &mut rng);
        let blocks = wide.into_iter().zip(sparse).map(|(wide, sparse)| {
            let format =
                |i: usize| target.template.format(if wide[i] { high } else { low }, sparse[i]);
            BlockPolicy::of([0, 1, 2, 3, 4, 5, 6].map(format))
        });
        Ok(Self { name: "random".to_owned(), blocks: blocks.collect() })
    }

    /// The policy of Edge-LLM (DAC 2024), Eq. 1 and 2, from the errors of each block when it alone
    /// is quantised and when it alone is pruned.
    ///
    /// Eq. 1, `b_j = B + 1[s_j >= mean(s)]`: a sensitive block gets the next width that exists, at
    /// most 16. Where `B` is no width, blocks begin with those of [`Policy::uniform`]. Eq. 2,
    /// `p_j = P L (1 - n_j) / sum(1 - n)` with `n` the min-max-normalised pruning errors (as the
    /// paper's code has it; as printed it would prune the most sensitive block most). Shares above
    /// 1/2 do not exist in 2:4: the blocks with the largest shares are 2:4, as many as bring the
    /// mean nearest to `P`; of equal shares the lower block.
    ///
    /// # Errors
    /// The target lies outside of what exists, or an error is no number of at least 0.
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
        let mean = quant.iter().sum::<f64>() / quant.len().max(1) as f64;
        let raised = |(&error, width): (&f64, u32)| match error >= mean {
            true => WIDTHS.into_iter().find(|next| *next > width).unwrap_or(width),
            false => width,
        };
        let bits: Vec<u32> =
            quant.iter().zip(target.spread_bits(quant.len())).map(raised).collect();

        let shares = shares(prune, target.sparsity);
        let mut order: Vec<usize> = (0..shares.len()).collect();
        order.sort_by(|&a, &b| shares[b].total_cmp(&shares[a]));
        let mut sparse = vec![false; shares.len()];
        for &block in order.iter().take(target.sparse_blocks(shares.len())) {
            sparse[block] = true;
        }
        Ok(target.policy("paper", &bits, &sparse))
    }
}

/// `count` of `of` places, evenly apart.
fn spread(count: usize, of: usize) -> Vec<bool> {
    (0..of).map(|i| (i + 1) * count / of > i * count / of).collect()
}

/// Projections, by block, in an order drawn at random, each taken if that brings the share of the
/// weights that are taken nearer to `share`.
fn drawn(shape: &ModelShape, share: f64, rng: &mut SeededRng) -> Vec<[bool; 7]> {
    let weights = |projection| {
        let (n, k) = shape.projection(projection);
        f64::from(n) * f64::from(k)
    };
    let blocks = shape.num_blocks as usize;
    let block: f64 = Projection::ALL.into_iter().map(weights).sum();
    let mut left = share * block * blocks as f64;
    let mut order: Vec<_> = (0..blocks)
        .flat_map(|block| Projection::ALL.map(|projection| (block, projection)))
        .collect();
    order.shuffle(rng);
    let mut taken = vec![[false; 7]; blocks];
    for (block, projection) in order {
        let weights = weights(projection);
        if weights <= 2.0 * left {
            taken[block][projection.index()] = true;
            left -= weights;
        }
    }
    taken
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
    use super::super::tests::shape;
    use super::super::{bits, sparsity};
    use super::*;

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
                    Policy::random(&shape(blocks as u32), &target(b, s), 3).unwrap(),
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
        let of = |seed| Policy::random(&shape(32), &target(3.5, 0.25), seed).unwrap();
        assert_eq!(of(1), of(1));
        assert_ne!(of(1), of(2));
        let averages = of(1).averages(&shape(32));
        assert!((averages.bits - 3.5).abs() < 0.01 && (averages.sparsity - 0.25).abs() < 0.01);
        let overrides = |policy: &Policy| policy.blocks.iter().any(|b| b.overrides != [None; 7]);
        assert!(overrides(&of(1)));
        // Nothing to draw.
        let even = Policy::random(&shape(32), &target(3.0, 0.5), 1).unwrap();
        assert_eq!(even.blocks, Policy::uniform(32, &target(3.0, 0.5)).unwrap().blocks);
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
        let between = Policy::paper(&quant, &prune, &target(5.0, 0.0)).unwrap();
        assert_eq!(widths(&between), [4, 4, 8, 8, 4, 4, 8, 8]);
        let error = Policy::paper(&[f64::NAN], &[1.0], &target(4.0, 0.0));
        assert_eq!(error, Err(PolicyError::Error { block: 0 }));
    }
}
