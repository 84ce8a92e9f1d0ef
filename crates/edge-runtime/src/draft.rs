//! Self-speculative greedy decoding: an early exit drafts, the whole model verifies (Draft &
//! Verify, arXiv 2309.08168; LayerSkip, arXiv 2404.16710).
//!
//! A round begins with a token that is certain and not run yet. The blocks below the draft's exit
//! run it and the guesses behind it one by one, keeping keys, values and the residual stream at
//! the exit; the blocks above then run all rows in one pass. Guesses are accepted up to the first
//! one that the model itself would not have made, in whose place its own choice goes. Keys and
//! values behind that are overwritten by the next round, and no query sees them before.
//!
//! Sums over several rows may be added in another order than over one, so the probabilities of
//! a verified row differ from plain decoding's in their last bits. Where the best two tokens are
//! closer than [`Drafting::margin`], the positions since the last such place are run again one by
//! one, as plain decoding does, and their outcome decides.

use anyhow::{Result, ensure};
use edge_kernels::ops::memory::copy;
use edge_scheduler::Window;
use serde::Serialize;

use crate::exits::Vote;
use crate::generate::check_finite;
use crate::model::Model;
use crate::model::block::Geometry;

/// Difference of log-probabilities, nats, below which the best token of a verified row may depend
/// on the order of sums: a hundred times what f32 sums in another order do to one.
pub const MARGIN: f64 = 1e-3;

/// Tokens that a round makes, at most.
pub const MAX_ROUND_TOKENS: u32 = 16;

/// How tokens are drafted.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Drafting {
    /// The exit that drafts, counted from 1.
    pub exit: usize,
    /// Tokens that a round makes, at most: guesses, and one of the whole model's.
    pub tokens: u32,
    /// Lead of the best token, nats, below which plain decoding decides: [`MARGIN`].
    pub margin: f64,
}

impl Drafting {
    /// Checks that a model with these windows can draft so.
    ///
    /// # Errors
    /// It cannot; the sentence names the flag.
    pub fn check(&self, windows: &[Window], isolated: bool) -> Result<()> {
        let exits = windows.len();
        ensure!(
            exits > 1,
            "--draft-exit needs a run with several exits: give --run one of tune --method edge"
        );
        ensure!(
            !isolated,
            "--draft-exit does not go with a run of --semantics isolated, whose windows do not \
             stand on one another: leave it out, or tune with --semantics stacked"
        );
        ensure!(
            (1..exits).contains(&self.exit),
            "--draft-exit is {}: give an exit from 1 to {}, below the last",
            self.exit,
            exits - 1
        );
        ensure!(
            (2..=MAX_ROUND_TOKENS).contains(&self.tokens),
            "--draft-tokens is {}: give 2 to {MAX_ROUND_TOKENS}",
            self.tokens
        );
        Ok(())
    }
}

/// What became of drafts.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub struct DraftCounts {
    /// Rounds.
    pub rounds: u64,
    /// Tokens that were guessed.
    pub drafted: u64,
    /// Guesses that the whole model made too, with all before them.
    pub accepted: u64,
    /// Positions that were run again, because two tokens were nearly equal.
    pub replayed: u64,
    /// The most by which the best token's log-probability changed when it was run again, nats.
    pub largest_change: f64,
}

impl DraftCounts {
    /// Share of the guesses that were accepted.
    pub fn acceptance(&self) -> f64 {
        self.accepted as f64 / self.drafted.max(1) as f64
    }
}

/// The most probable token, the first of equals, and its lead in nats.
struct Greedy {
    token: u32,
    margin: f64,
}

fn greedy(probabilities: &[f32]) -> Result<Greedy> {
    check_finite(probabilities)?;
    let (mut token, mut first, mut second) = (0, f32::MIN, f32::MIN);
    for (index, &p) in probabilities.iter().enumerate() {
        if p > first {
            (token, second, first) = (index as u32, first, p);
        } else {
            second = second.max(p);
        }
    }
    let margin = match second > 0.0 {
        true => (f64::from(first) / f64::from(second)).ln(),
        false => f64::INFINITY,
    };
    Ok(Greedy { token, margin })
}

/// A text in the making.
struct Run<'a> {
    model: &'a Model,
    vote: Vote,
    drafting: Drafting,
    /// Prompt and certain tokens; the last one is not run yet.
    tokens: Vec<u32>,
    /// Positions whose keys and values are what plain decoding would have made.
    exact: usize,
    counts: DraftCounts,
}

impl Run<'_> {
    /// Runs the last token and guesses behind it below the draft's exit, `rows` in all, leaving
    /// the residual streams at all exits up to it; returns the guesses, one less.
    fn draft(&self, rows: u32) -> Result<Vec<u32>> {
        let (model, d) = (self.model, self.model.shape.hidden_size);
        let exit = &model.exits[self.drafting.exit - 1];
        let first = self.tokens.len() as u32 - 1;
        let mut token = self.tokens[first as usize];
        let mut guesses = Vec::new();
        for row in 0..rows {
            let g = Geometry { position0: first + row, ..Geometry::sequences(1, 1) };
            model.set_ids(&[token])?;
            let mut recorder = model.device.recorder();
            model.trunk(&mut recorder, exit.after, g, |recorder, exit, x| {
                let kept = model.workspace.exits[exit].clone();
                let params = copy::Params { count: d, src_offset: 0, dst_offset: row * d };
                recorder.push(copy::dispatch(params, x.clone(), kept));
            });
            recorder.submit()?;
            if row + 1 < rows {
                // Softmax keeps the order of logits.
                let logits = model.read_logits(exit, model.stream(), g)?;
                token = greedy_logit(&logits)?;
                guesses.push(token);
            }
        }
        Ok(guesses)
    }

    /// Takes the rows of [`Run::draft`] from its exit to the last one.
    fn verify(&self, g: Geometry) -> Result<()> {
        let (model, rows) = (self.model, g.rows());
        let (from, exits) = (self.drafting.exit - 1, &model.workspace.exits);
        let blocks = model.exits[from].after..model.shape.num_blocks;
        let mut recorder = model.device.recorder();
        model.copy_rows(&mut recorder, rows, &exits[from], model.stream());
        model.climb(&mut recorder, blocks, g, &mut |recorder, exit, x| {
            model.copy_rows(recorder, rows, x, &exits[exit]);
        });
        Ok(recorder.submit()?)
    }

    /// Runs positions up to that of the last of `more`, which follow the certain tokens, as plain
    /// decoding does; the probabilities behind it.
    fn replay(&mut self, more: &[u32]) -> Result<Vec<f32>> {
        let end = self.tokens.len() + more.len();
        let mut g = Geometry::sequences(1, 1);
        for position in self.exact..end {
            g.position0 = position as u32;
            let token = self.tokens.iter().chain(more).nth(position);
            self.model.set_ids(&[*token.expect("a position of the text")])?;
            self.model.run_to_exits(g)?;
            self.counts.replayed += 1;
        }
        self.exact = end;
        self.model.next_token(self.vote, 0, g)
    }

    /// One to `rows` tokens that follow, of which the last is not run yet.
    fn round(&mut self, rows: u32) -> Result<Vec<u32>> {
        let guesses = self.draft(rows)?;
        let position0 = self.tokens.len() as u32 - 1;
        let g = Geometry { position0, ..Geometry::sequences(1, rows) };
        self.verify(g)?;
        let probabilities = self.model.next_tokens(self.vote, 0..rows, g)?;
        self.counts.rounds += 1;
        self.counts.drafted += guesses.len() as u64;
        let mut certain = Vec::new();
        for row in probabilities.chunks(self.model.shape.vocab_size as usize) {
            let best = greedy(row)?;
            let mut token = best.token;
            if best.margin < self.drafting.margin {
                let exact = self.replay(&certain)?;
                let [was, is] = [row, &exact[..]].map(|all| f64::from(all[token as usize]).ln());
                self.counts.largest_change = self.counts.largest_change.max((is - was).abs());
                token = greedy(&exact)?.token;
            }
            let guess = guesses.get(certain.len());
            certain.push(token);
            if guess != Some(&token) {
                break;
            }
            self.counts.accepted += 1;
        }
        Ok(certain)
    }
}

/// The place of the largest logit, the first of equals.
fn greedy_logit(logits: &[f32]) -> Result<u32> {
    check_finite(logits)?;
    let best = logits.iter().enumerate().rev().max_by(|a, b| a.1.total_cmp(b.1));
    Ok(best.map_or(0, |(index, _)| index as u32))
}

impl Model {
    /// As [`Model::generate`] at temperature 0, with drafts: the same tokens in fewer passes
    /// through the upper blocks.
    ///
    /// # Errors
    /// As [`Model::generate`]; the model cannot draft so.
    pub fn generate_drafted(
        &self,
        prompt: &[u32],
        max_new_tokens: usize,
        vote: Vote,
        drafting: Drafting,
        stop: impl Fn(u32) -> bool,
        mut on_token: impl FnMut(u32) -> Result<()>,
    ) -> Result<(Vec<u32>, DraftCounts)> {
        drafting.check(&self.job.windows, self.job.isolated)?;
        let g = self.prefill(prompt)?;
        // A token behind the last position can be chosen and not run.
        let room = self.job.cache.unwrap_or(0) as usize + 1 - prompt.len();
        let limit = max_new_tokens.min(room);
        let (tokens, exact) = (prompt.to_vec(), prompt.len());
        let counts = DraftCounts::default();
        let mut run = Run { model: self, vote, drafting, tokens, exact, counts };
        let mut made = Vec::new();
        if limit == 0 {
            return Ok((made, run.counts));
        }
        let mut certain = vec![greedy(&self.next_token(vote, g.seq_len - 1, g)?)?.token];
        loop {
            for token in certain {
                if stop(token) {
                    return Ok((made, run.counts));
                }
                made.push(token);
                run.tokens.push(token);
                on_token(token)?;
            }
            let left = limit - made.len();
            if left == 0 {
                return Ok((made, run.counts));
            }
            certain = run.round(drafting.tokens.min(self.job.seq_len).min(left as u32))?;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_of_equals_leads_by_nothing() {
        let best = greedy(&[0.1, 0.4, 0.4, 0.1]).expect("finite");
        assert_eq!((best.token, best.margin), (1, 0.0));
        let best = greedy(&[0.0, 0.0, 1.0]).expect("finite");
        assert_eq!((best.token, best.margin), (2, f64::INFINITY));
        let best = greedy(&[0.2, 0.8]).expect("finite");
        assert!(best.token == 1 && (best.margin - 4.0_f64.ln()).abs() < 1e-6);
        assert!(greedy(&[f32::NAN]).is_err());
        assert_eq!(greedy_logit(&[-3.0, 2.0, 2.0, -9.0]).expect("finite"), 1);
    }

    #[test]
    fn drafts_that_cannot_be_are_refused() {
        let drafting = Drafting { exit: 1, tokens: 4, margin: MARGIN };
        let windows = Window::split(4, 2);
        assert!(drafting.check(&windows, false).is_ok());
        for (drafting, windows, isolated, part) in [
            (drafting, Window::split(4, 1), false, "several exits"),
            (drafting, windows.clone(), true, "isolated"),
            (Drafting { exit: 2, ..drafting }, windows.clone(), false, "from 1 to 1"),
            (Drafting { exit: 0, ..drafting }, windows.clone(), false, "from 1 to 1"),
            (Drafting { tokens: 1, ..drafting }, windows.clone(), false, "--draft-tokens is 1"),
            (Drafting { tokens: 17, ..drafting }, windows, false, "--draft-tokens is 17"),
        ] {
            let error = drafting.check(&windows, isolated).expect_err("refused");
            assert!(error.to_string().contains(part), "{error}");
        }
    }
}
