//! Fitting the learned vote: a temperature and a weight for each exit.
//!
//! `P(v) = Σ_k w_k softmax(z_k / τ_k)(v)` with weights that sum to 1. Its likelihood needs of each
//! token only the probability of what came, at every exit and a few temperatures: weights by
//! expectation maximisation (Dempster, Laird & Rubin 1977), temperatures by coordinate descent over
//! a grid.

use anyhow::{Context, Result, ensure};
use serde::{Deserialize, Serialize};

/// Temperatures that are tried, a tenth apart; 1 is among them.
pub const TEMPERATURES: [f32; 11] =
    [0.62, 0.68, 0.75, 0.83, 0.91, 1.0, 1.1, 1.21, 1.33, 1.46, 1.61];

/// Where temperature 1 is.
const NEUTRAL: usize = 5;

/// Rounds of expectation maximisation, at most.
const EM_ROUNDS: usize = 300;

/// Gain of a mean log-likelihood, nats, below which a round is the last.
const EM_GAIN: f64 = 1e-8;

/// What the learned vote is made of.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Learned {
    /// τ of each exit.
    pub temperatures: Vec<f32>,
    /// w of each exit; they sum to 1.
    pub weights: Vec<f32>,
}

impl Learned {
    /// Checks that there is one of each for `exits` exits, and that they make sense.
    ///
    /// # Errors
    /// They do not.
    pub fn check(&self, exits: usize) -> Result<()> {
        let sum: f32 = self.weights.iter().sum();
        let positive = |values: &[f32], least: f32| values.iter().all(|x| *x >= least && *x < 1e3);
        ensure!(
            self.temperatures.len() == exits
                && self.weights.len() == exits
                && positive(&self.temperatures, 1e-3)
                && positive(&self.weights, 0.0)
                && (sum - 1.0).abs() < 1e-3,
            "the learned vote does not fit {exits} exits: fit it again with eval --fit-vote"
        );
        Ok(())
    }
}

/// Log-probabilities of what came.
#[derive(Clone, Debug, Default)]
pub struct Scores {
    /// By exit, by temperature of [`TEMPERATURES`], by token.
    pub log_p: Vec<Vec<Vec<f32>>>,
}

impl Scores {
    /// Tokens.
    pub fn tokens(&self) -> usize {
        self.log_p.first().and_then(|exit| exit.first()).map_or(0, Vec::len)
    }

    /// Mean loss of an exit alone, nats.
    pub fn exit_loss(&self, exit: usize) -> f64 {
        let log_p = &self.log_p[exit][NEUTRAL];
        -log_p.iter().map(|&x| f64::from(x)).sum::<f64>() / log_p.len().max(1) as f64
    }

    /// Mean loss of a vote whose temperatures are of [`TEMPERATURES`], nats.
    ///
    /// # Errors
    /// A temperature is not, or there is another number of exits.
    pub fn vote_loss(&self, learned: &Learned) -> Result<f64> {
        learned.check(self.log_p.len())?;
        let place = |t: &f32| TEMPERATURES.iter().position(|of_grid| of_grid == t);
        let places: Option<Vec<usize>> = learned.temperatures.iter().map(place).collect();
        let places = places.context("the vote's temperatures are none that were tried")?;
        let rows: Vec<&[f32]> =
            places.iter().zip(&self.log_p).map(|(&t, exit)| &exit[t][..]).collect();
        let probability = |token: usize| -> f64 {
            let of_exits = rows.iter().zip(&learned.weights);
            of_exits.map(|(row, &w)| f64::from(w) * f64::from(row[token]).exp()).sum()
        };
        let log_p = |token| probability(token).max(f64::MIN_POSITIVE).ln();
        Ok(-(0..self.tokens()).map(log_p).sum::<f64>() / self.tokens().max(1) as f64)
    }

    /// Weights and temperatures of the largest likelihood.
    ///
    /// # Errors
    /// There are no tokens, or one of them has no number at an exit.
    pub fn fit(&self) -> Result<Learned> {
        ensure!(self.tokens() > 0, "there is no token to fit a vote on: give more validation data");
        ensure!(
            self.log_p.iter().flatten().flatten().all(|log_p| log_p.is_finite()),
            "the output of an exit is no number, on which no vote can be fitted: tune again with \
             a lower --lr, or check the model's weights"
        );
        let exits = self.log_p.len();
        let mut chosen = vec![NEUTRAL; exits];
        let mut weights = vec![1.0 / exits as f64; exits];
        let mut best = self.maximise(&chosen, &mut weights);
        loop {
            let before = best;
            for exit in 0..exits {
                for temperature in 0..TEMPERATURES.len() {
                    let mut tried = chosen.clone();
                    tried[exit] = temperature;
                    // From weights that a bad temperature has not pushed to 0.
                    let mut from: Vec<f64> =
                        weights.iter().map(|w| 0.9 * w + 0.1 / exits as f64).collect();
                    let loss = self.maximise(&tried, &mut from);
                    if loss < best {
                        (best, chosen, weights) = (loss, tried, from);
                    }
                }
            }
            if before - best < 1e-6 {
                break;
            }
        }
        Ok(Learned {
            temperatures: chosen.iter().map(|&index| TEMPERATURES[index]).collect(),
            weights: weights.iter().map(|&w| w as f32).collect(),
        })
    }

    /// The best weights for these temperatures, and their mean loss.
    fn maximise(&self, temperatures: &[usize], weights: &mut [f64]) -> f64 {
        let exits = temperatures.len();
        let rows: Vec<&[f32]> =
            temperatures.iter().zip(&self.log_p).map(|(&t, exit)| &exit[t][..]).collect();
        let tokens = self.tokens();
        // Probabilities relative to the largest of a token, whose logarithms are summed apart.
        let (mut shares, mut top_sum) = (Vec::with_capacity(tokens * exits), 0.0);
        for token in 0..tokens {
            let top = rows.iter().map(|row| row[token]).fold(f32::NEG_INFINITY, f32::max);
            shares.extend(rows.iter().map(|row| f64::from(row[token] - top).exp()));
            top_sum += f64::from(top);
        }
        let mut last = f64::INFINITY;
        for _ in 0..EM_ROUNDS {
            let mut sums = vec![0.0; exits];
            let mut loss = -top_sum;
            for shares in shares.chunks(exits) {
                let parts = shares.iter().zip(&*weights).map(|(share, w)| w * share);
                let total = parts.clone().sum::<f64>().max(f64::MIN_POSITIVE);
                loss -= total.ln();
                sums.iter_mut().zip(parts).for_each(|(sum, part)| *sum += part / total);
            }
            loss /= tokens as f64;
            if last - loss < EM_GAIN {
                return loss;
            }
            last = loss;
            weights.iter_mut().zip(sums).for_each(|(w, sum)| *w = sum / tokens as f64);
        }
        last
    }
}

#[cfg(test)]
mod tests {
    use edge_kernels::util::SeededRng;
    use rand::{RngExt, SeedableRng};

    use super::*;
    use crate::testing::message;

    /// Tokens of 3 values drawn from a mixture of two distributions of logits.
    fn scores(weight: f64, sharpness: f32) -> Scores {
        let mut rng = SeededRng::seed_from_u64(4);
        let mut log_p = vec![vec![Vec::new(); TEMPERATURES.len()]; 2];
        for _ in 0..20_000 {
            let mut draw = || -> [f32; 3] {
                std::array::from_fn(|_| rng.random_range(-3.0f32..3.0) * sharpness)
            };
            let logits = [draw(), draw()];
            let softmax = |logits: &[f32; 3], temperature: f32| {
                let exp = logits.map(|z| (f64::from(z) / f64::from(temperature)).exp());
                exp.map(|e| e / exp.iter().sum::<f64>())
            };
            // The truth: the first exit at the temperature that undoes the sharpness.
            let source = usize::from(rng.random_range(0.0..1.0) >= weight);
            let p = softmax(&logits[source], sharpness);
            let mut draw: f64 = rng.random_range(0.0..1.0);
            let mut came = 2;
            for (value, p) in p.iter().enumerate().take(2) {
                draw -= p;
                if draw < 0.0 {
                    came = value;
                    break;
                }
            }
            for (exit, logits) in logits.iter().enumerate() {
                for (index, &temperature) in TEMPERATURES.iter().enumerate() {
                    log_p[exit][index].push(softmax(logits, temperature)[came].ln() as f32);
                }
            }
        }
        Scores { log_p }
    }

    #[test]
    fn the_mixture_that_made_the_data_is_found() {
        for (weight, sharpness) in [(0.7, 1.0), (0.3, 1.33), (1.0, 0.75)] {
            let learned = scores(weight, sharpness).fit().expect("a fit");
            learned.check(2).expect("sensible");
            let got = f64::from(learned.weights[0]);
            assert!((got - weight).abs() < 0.05, "{weight}: {learned:?}");
            let used = if weight > 0.5 { 0 } else { 1 };
            let near = learned.temperatures[used] / sharpness;
            assert!((0.85..1.18).contains(&near), "{sharpness}: {learned:?}");
        }
    }

    #[test]
    fn a_fit_is_never_worse_than_the_best_exit() {
        let scores = scores(0.6, 1.2);
        let learned = scores.fit().expect("a fit");
        let chosen: Vec<usize> = learned
            .temperatures
            .iter()
            .map(|t| TEMPERATURES.iter().position(|x| x == t).expect("of the grid"))
            .collect();
        let mut weights: Vec<f64> = learned.weights.iter().map(|&w| f64::from(w)).collect();
        let loss = scores.maximise(&chosen, &mut weights);
        assert!(loss < scores.exit_loss(0).min(scores.exit_loss(1)) - 0.01);
        assert!((scores.vote_loss(&learned).expect("of the grid") - loss).abs() < 1e-5);
        let between = Learned { temperatures: vec![1.05; 2], ..learned };
        assert!(message(scores.vote_loss(&between)).contains("none that were tried"));
        assert!(message(Scores::default().fit()).contains("no token"));
        for no_number in [f32::NAN, f32::NEG_INFINITY] {
            let mut broken = scores.clone();
            broken.log_p[1][NEUTRAL][7] = no_number;
            assert!(message(broken.fit()).contains("no number"));
        }
        let wrong = Learned { temperatures: vec![1.0], weights: vec![0.5] };
        assert!(message(wrong.check(1)).contains("--fit-vote"));
    }
}
