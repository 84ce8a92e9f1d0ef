//! Layer-wise unified compression: bits and sparsity of each layer together, from the measured
//! error of each of its candidates (Edge-LLM, DAC 2024, section 3.1, with an allocator in place of
//! the paper's rule).

use edge_kernels::Format;

use crate::allocate::{AllocateError, Allocation, Candidate, Problem, allocate};
use crate::policy::{Layer, Policy, bits, matrix_bytes, sparsity};
use crate::shape::{ModelShape, Projection};

/// A way to store a layer.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Choice {
    /// The format.
    pub format: Format,
    /// What it does to the model's output, in any unit that adds up over layers.
    pub error: f64,
    /// Predicted time of the layer in a step; only looked at with [`Budget::StepMs`].
    pub step_ms: f64,
}

/// What the layers may cost together.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Budget {
    /// Mean bits of a stored value, as [`crate::policy::Averages::bits`].
    AverageBits(f64),
    /// Bytes with scales, minima and positions, as [`crate::policy::Averages::bytes`].
    Bytes(u64),
    /// Predicted time of a step.
    StepMs(f64),
}

/// A layer with the ways to store it.
pub type Choices = (Layer, Vec<Choice>);

/// What is to be decided: the layers' choices as candidates of an allocation, in their order. The
/// layers are blocks or projections, each weight of the model in exactly one; `min_sparsity` is a
/// mean over weights, as [`crate::policy::Averages::sparsity`].
pub fn problem(
    shape: &ModelShape,
    layers: &[Choices],
    budget: Budget,
    min_sparsity: Option<f64>,
) -> Problem {
    let total: f64 = layers.iter().map(|(layer, _)| weights(shape, *layer)).sum();
    let candidate = |layer: Layer, choice: &Choice| {
        let share = weights(shape, layer) / total.max(1.0);
        Candidate {
            error: choice.error,
            cost: match budget {
                Budget::AverageBits(_) => share * f64::from(bits(choice.format)),
                Budget::Bytes(_) => bytes(shape, layer, choice.format) as f64,
                Budget::StepMs(_) => choice.step_ms,
            },
            sparsity: share * sparsity(choice.format),
        }
    };
    let candidates = layers
        .iter()
        .map(|(layer, choices)| choices.iter().map(|choice| candidate(*layer, choice)).collect());
    Problem {
        layers: candidates.collect(),
        budget: match budget {
            Budget::AverageBits(bits) => bits,
            Budget::Bytes(bytes) => bytes as f64,
            Budget::StepMs(step_ms) => step_ms,
        },
        min_sparsity,
    }
}

/// The policy of an allocation.
///
/// # Panics
/// When a block is left out.
pub fn policy(layers: &[Choices], choice: &[usize]) -> Policy {
    let formats = layers.iter().map(|(layer, choices)| {
        let formats = choices.iter().map(|choice| choice.format);
        (*layer, formats.collect())
    });
    let formats: Vec<(Layer, Vec<Format>)> = formats.collect();
    Policy::chosen("luc", &formats, choice)
}

/// The policy with the least sum of errors within a budget, and how it was found. See [`problem`].
///
/// # Errors
/// Nothing fits, and then it says the least that is possible; or a number is not finite.
///
/// # Panics
/// When a block is left out.
pub fn luc(
    shape: &ModelShape,
    layers: &[Choices],
    budget: Budget,
    min_sparsity: Option<f64>,
) -> Result<(Policy, Allocation), AllocateError> {
    let found = allocate(&problem(shape, layers, budget, min_sparsity))?;
    Ok((policy(layers, &found.choice), found))
}

fn projections(layer: Layer) -> impl Iterator<Item = Projection> {
    let own = move |projection: &Projection| layer.projection.is_none_or(|own| own == *projection);
    Projection::ALL.into_iter().filter(own)
}

fn weights(shape: &ModelShape, layer: Layer) -> f64 {
    let count = |projection| {
        let (n, k) = shape.projection(projection);
        f64::from(n) * f64::from(k)
    };
    projections(layer).map(count).sum()
}

fn bytes(shape: &ModelShape, layer: Layer, format: Format) -> u64 {
    let bytes = |projection| {
        let (n, k) = shape.projection(projection);
        matrix_bytes(n, k, format)
    };
    projections(layer).map(bytes).sum()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::shape::Extras;

    fn shape() -> ModelShape {
        ModelShape {
            vocab_size: 512,
            hidden_size: 128,
            intermediate_size: 352,
            num_blocks: 4,
            num_heads: 4,
            num_kv_heads: 2,
            head_dim: 32,
            tied_head: true,
            extras: Extras::NONE,
        }
    }

    /// Errors that fall fourfold a bit; block 2 is a hundred times as sensitive.
    fn layers(by_projection: bool) -> Vec<(Layer, Vec<Choice>)> {
        let formats = [2, 3, 4, 8].map(|bits| edge_kernels::Packing::new(bits).format());
        let sparse = [Format::two_four(4), Format::two_four(8)];
        let mut layers = Vec::new();
        for block in 0..4 {
            let sensitivity = if block == 2 { 100.0 } else { 1.0 };
            let choice = |format: Format| Choice {
                format,
                error: sensitivity * (0.25f64.powi(bits(format) as i32) + 0.1 * sparsity(format)),
                step_ms: f64::from(bits(format)) * (1.0 - sparsity(format)),
            };
            let choices: Vec<_> = formats.into_iter().chain(sparse).map(choice).collect();
            let parts: Vec<_> = match by_projection {
                true => Projection::ALL.map(Some).into(),
                false => vec![None],
            };
            layers.extend(
                parts.into_iter().map(|p| (Layer { block, projection: p }, choices.clone())),
            );
        }
        layers
    }

    #[test]
    #[cfg_attr(miri, ignore = "minutes of arithmetic")]
    fn policies_meet_their_budgets() {
        let shape = shape();
        for by_projection in [false, true] {
            let layers = layers(by_projection);
            let of = |budget, least| luc(&shape, &layers, budget, least).unwrap();
            let (policy, found) = of(Budget::AverageBits(4.0), None);
            let averages = policy.averages(&shape);
            assert!(found.exact && averages.bits <= 4.0 + 1e-9, "{averages:?}");
            assert!((found.cost - averages.bits).abs() < 1e-9);
            let most = |block: usize| bits(policy.blocks[block].format);
            assert!(most(2) >= most(0) && most(2) >= 4, "{policy:?}");
            let (policy, found) = of(Budget::AverageBits(6.0), Some(0.25));
            let averages = policy.averages(&shape);
            assert!(averages.bits <= 6.0 + 1e-9 && averages.sparsity >= 0.25 - 1e-9);
            assert!((found.sparsity - averages.sparsity).abs() < 1e-9);
            assert_eq!(sparsity(policy.blocks[2].format), 0.0);
            let (policy, found) = of(Budget::Bytes(400_000), None);
            assert!(policy.averages(&shape).bytes <= 400_000);
            assert_eq!(found.cost, policy.averages(&shape).bytes as f64);
        }
        let (_, found) = luc(&shape, &layers(false), Budget::StepMs(16.0), Some(0.5)).unwrap();
        // All are sparse, in 8 bits of 4 ms each.
        assert_eq!((found.cost, found.sparsity), (16.0, 0.5));
    }

    #[test]
    fn an_impossible_budget_says_what_is_possible() {
        let error = luc(&shape(), &layers(true), Budget::AverageBits(1.5), None).unwrap_err();
        let text = error.to_string();
        assert!(text.contains("1.5") && text.contains("least possible is 2"), "{text}");
    }
}
