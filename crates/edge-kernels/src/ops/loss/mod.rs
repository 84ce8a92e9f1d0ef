//! Cross entropy over chunks of the vocabulary, and the vote of several exits.
//!
//! Logits are never held whole: a chunk of `cols` vocabulary ids is computed, swept and dropped.
//! What remains of a token is its row of statistics `(max, sum, target)`, from which
//! [`cross_entropy_loss`] takes the loss `log(sum) + max - target`.
//!
//! | step | ops |
//! |------|-----|
//! | loss | `cross_entropy_forward` per chunk, then `cross_entropy_loss` |
//! | gradient | the chunks again, `cross_entropy_backward` in place on each |
//! | divergence | the chunks of both, `cross_entropy_forward`; again, `kl_divergence` |
//! | vote | per chunk: `vote_combine` per exit, then `vote_reduce`; then `cross_entropy_loss` |

pub mod cross_entropy_backward;
pub mod cross_entropy_forward;
pub mod cross_entropy_loss;
pub mod kl_divergence;
#[cfg(test)]
pub(crate) mod testing;
pub mod vote_combine;
pub mod vote_reduce;

use rand::RngExt;

use crate::lanes::by_four;
use crate::op::{Hardware, Needs, Variant};
use crate::util::{SeededRng, row_workgroup, uniform_vec};

/// The target id of a row that counts neither in the loss nor in the gradient.
pub const IGNORE: u32 = u32::MAX;

/// Least probability mass that a vote's logarithm sees. A target that every exit gives a
/// probability below this costs `log(sum) + 85.2` nats instead of infinity; the value is above
/// the smallest normal number, so that flushing denormals changes nothing.
pub const PROBABILITY_FLOOR: f32 = 1.0e-37;

/// Lanes of a workgroup that drivers on the CPU run as one vector: there a row gains nothing from
/// more of them, which wait for each other.
const SMALL: u32 = 8;

/// Variants of an op that reduces rows of `len` elements with one workgroup.
pub(crate) fn reduce_variants(len: u32) -> Vec<Variant> {
    let width = row_workgroup(len);
    vec![
        Variant::named("small").spec("WG", SMALL).suits(Hardware::Software),
        Variant::named("subgroup")
            .fragment("lib/reduce.wgsl", "lib/reduce_subgroup.wgsl")
            .spec("WG", width)
            .needs(Needs { subgroups: true, ..Needs::default() }),
        Variant::plain().spec("WG", width),
    ]
}

/// `variants`, for rows of these sizes and distances in `lib/scalar.wgsl`'s `Element`.
pub(crate) fn by_lanes(variants: Vec<Variant>, sizes: &[u32]) -> Vec<Variant> {
    let instead = if by_four(sizes) { "lib/vec4.wgsl" } else { "lib/scalar.wgsl" };
    variants.into_iter().map(|variant| variant.fragment("lib/scalar.wgsl", instead)).collect()
}

/// Variants of an op that maps rows of `cols` elements without reducing them.
fn map_variants(cols: u32) -> Vec<Variant> {
    vec![
        Variant::named("small").spec("WG", SMALL).suits(Hardware::Software),
        Variant::plain().spec("WG", row_workgroup(cols)),
    ]
}

/// `rows` rows of logits at a distance of `ld`: ordinary ones, and every fifth row each huge, all
/// equal, or one-hot, which a softmax without its maximum would not survive.
fn case_logits(rng: &mut SeededRng, rows: u32, cols: u32, ld: u32) -> Vec<f32> {
    let (cols, ld) = (cols as usize, ld as usize);
    let mut logits = uniform_vec(rng, rows as usize * ld, -6.0, 6.0);
    for (r, row) in logits.chunks_mut(ld).enumerate() {
        match r % 5 {
            1 => row[..cols].iter_mut().for_each(|z| *z = 1e4 * z.signum()),
            2 => row[..cols].fill(-7.25),
            3 => {
                row[..cols].fill(-30.0);
                row[r % cols] = 60.0;
            }
            _ => {}
        }
    }
    logits
}

/// Targets of `tokens` tokens in `0..vocabulary`, about a quarter ignored, the first never.
fn case_targets(rng: &mut SeededRng, tokens: u32, vocabulary: u32) -> Vec<u32> {
    (0..tokens)
        .map(|token| {
            let id = rng.random_range(0..vocabulary);
            if token > 0 && rng.random_range(0..4_u32) == 0 { IGNORE } else { id }
        })
        .collect()
}

/// Statistics of `tokens` tokens that are right for rows `row0..` of `logits`, and plausible for
/// the tokens outside.
fn case_stats(logits: &[f32], cols: u32, ld: u32, row0: u32, tokens: u32) -> Vec<f32> {
    let mut stats = [0.5, 2.0, -0.25].repeat(tokens as usize);
    let rows = logits.chunks(ld as usize).map(|row| &row[..cols as usize]);
    for (stats, row) in stats.chunks_mut(3).skip(row0 as usize).zip(rows) {
        let max = row.iter().copied().fold(f32::MIN, f32::max);
        let sum: f64 = row.iter().map(|&z| f64::from(z - max).exp()).sum();
        stats.copy_from_slice(&[max, sum as f32, row[0]]);
    }
    stats
}
