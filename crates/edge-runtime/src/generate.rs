//! Text from a model: prompt in pieces, then one token at a time over a key-value cache.

use anyhow::{Result, ensure};
use edge_kernels::util::SeededRng;
use rand::{RngExt, SeedableRng};

use crate::exits::Vote;
use crate::model::Model;
use crate::model::block::Geometry;

/// Tokens of a prompt that run at once.
pub const PREFILL_TOKENS: u32 = 64;

/// How the next token is chosen.
#[derive(Clone, Copy, Debug)]
pub struct Sampling {
    /// 0 takes the most probable token; above 0 probabilities are raised to `1 / temperature`.
    pub temperature: f32,
    /// Share of the probability from which a token is drawn, the most probable first.
    pub top_p: f32,
    /// Seed of the draws.
    pub seed: u64,
    /// How exits are combined.
    pub vote: Vote,
}

pub(crate) fn check_finite(probabilities: &[f32]) -> Result<()> {
    ensure!(
        probabilities.iter().all(|p| p.is_finite()),
        "the model's output is not a number: the checkpoint or the adapter holds damaged weights"
    );
    Ok(())
}

/// Chooses a token by temperature and nucleus (top-p) sampling.
///
/// # Errors
/// The probabilities are no numbers.
pub fn choose(probabilities: &[f32], sampling: &Sampling, rng: &mut SeededRng) -> Result<u32> {
    check_finite(probabilities)?;
    let best = |a: &(usize, f64), b: &(usize, f64)| b.1.total_cmp(&a.1).then(a.0.cmp(&b.0));
    let exponent = 1.0 / f64::from(sampling.temperature.max(1e-6));
    let mut ranked: Vec<(usize, f64)> =
        probabilities.iter().map(|&p| f64::from(p)).enumerate().collect();
    ranked.sort_by(best);
    if sampling.temperature <= 0.0 {
        return Ok(ranked[0].0 as u32);
    }
    let top = ranked[0].1.max(f64::MIN_POSITIVE);
    for (_, p) in &mut ranked {
        // Relative to the largest, so that small temperatures do not underflow all of them.
        *p = (*p / top).powf(exponent);
    }
    let total: f64 = ranked.iter().map(|(_, p)| p).sum();
    let mut kept = 0.0;
    let nucleus = f64::from(sampling.top_p) * total;
    let count = ranked.iter().take_while(|(_, p)| {
        let more = kept < nucleus;
        kept += p;
        more
    });
    let count = count.count().max(1);
    let kept: f64 = ranked[..count].iter().map(|(_, p)| p).sum();
    let mut draw = rng.random_range(0.0..1.0) * kept;
    for &(token, p) in &ranked[..count] {
        draw -= p;
        if draw < 0.0 {
            return Ok(token as u32);
        }
    }
    Ok(ranked[count - 1].0 as u32)
}

impl Model {
    /// Runs a prompt in pieces into the cache; returns the geometry of the last one.
    ///
    /// # Errors
    /// The prompt is empty or does not fit the cache, or the device fails.
    pub(crate) fn prefill(&self, prompt: &[u32]) -> Result<Geometry> {
        let positions = self.job.cache.unwrap_or(0) as usize;
        ensure!(!prompt.is_empty(), "the prompt is empty: give --prompt a text");
        ensure!(
            prompt.len() < positions,
            "the prompt has {} tokens and the cache holds {positions}: shorten --prompt",
            prompt.len()
        );
        let mut g = Geometry::sequences(1, 1);
        // A batch may have left samples of its own.
        self.set_segments(&vec![[0, 0]; self.job.seq_len as usize], g)?;
        let mut position0 = 0;
        for piece in prompt.chunks(self.job.seq_len as usize) {
            g = Geometry { position0, ..Geometry::sequences(1, piece.len() as u32) };
            self.set_ids(piece)?;
            self.run_to_exits(g)?;
            position0 += g.seq_len;
        }
        Ok(g)
    }

    /// Continues `prompt` by up to `max_new_tokens`, until `stop` says so of a token (which is
    /// then not handed out). Calls `on_token` with each new token.
    ///
    /// # Errors
    /// The prompt is empty or does not fit the cache, or the device fails.
    pub fn generate(
        &self,
        prompt: &[u32],
        max_new_tokens: usize,
        sampling: &Sampling,
        stop: impl Fn(u32) -> bool,
        mut on_token: impl FnMut(u32) -> Result<()>,
    ) -> Result<Vec<u32>> {
        let positions = self.job.cache.unwrap_or(0) as usize;
        let mut rng = SeededRng::seed_from_u64(sampling.seed);
        let mut g = self.prefill(prompt)?;
        let mut made = Vec::new();
        for position0 in (prompt.len() as u32..).take(max_new_tokens) {
            let probabilities = self.next_token(sampling.vote, g.seq_len - 1, g)?;
            let token = choose(&probabilities, sampling, &mut rng)?;
            if stop(token) {
                break;
            }
            made.push(token);
            on_token(token)?;
            if position0 as usize >= positions {
                break;
            }
            g = Geometry { position0, ..Geometry::sequences(1, 1) };
            self.set_ids(&[token])?;
            self.run_to_exits(g)?;
        }
        Ok(made)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sampling(temperature: f32, top_p: f32) -> Sampling {
        Sampling { temperature, top_p, seed: 1, vote: Vote::Last }
    }

    #[test]
    fn zero_temperature_takes_the_best_and_the_first_of_equals() {
        let mut rng = SeededRng::seed_from_u64(1);
        let token = choose(&[0.1, 0.4, 0.4, 0.1], &sampling(0.0, 1.0), &mut rng);
        assert_eq!(token.expect("finite"), 1);
    }

    #[test]
    fn a_small_nucleus_excludes_the_tail() {
        let mut rng = SeededRng::seed_from_u64(1);
        for _ in 0..200 {
            let token = choose(&[0.05, 0.5, 0.4, 0.05], &sampling(1.0, 0.8), &mut rng);
            assert!([1, 2].contains(&token.expect("finite")));
        }
    }

    #[test]
    fn draws_follow_the_probabilities() {
        let mut rng = SeededRng::seed_from_u64(1);
        let count = (0..4000)
            .filter(|_| choose(&[0.25, 0.75], &sampling(1.0, 1.0), &mut rng).expect("finite") == 0)
            .count();
        assert!((900..1100).contains(&count), "{count} of 4000 draws at p = 0.25");
    }

    #[test]
    fn damage_is_named() {
        let mut rng = SeededRng::seed_from_u64(1);
        let error = choose(&[f32::NAN, 1.0], &sampling(0.0, 1.0), &mut rng).expect_err("NaN");
        assert!(error.to_string().contains("damaged"));
    }
}
