//! Loss over a text: at every exit, and by the exits' vote.

use std::time::Instant;

use anyhow::{Context, Result};
use edge_gpu::Recorder;
use edge_kernels::ops::memory::{copy, fill};

use serde::Serialize;

use crate::batch::Batch;
use crate::exits::Vote;
use crate::model::Model;
use crate::model::block::Geometry;
use crate::model::counted::Counted;
use crate::vote::{Scores, TEMPERATURES};

/// Mean losses over the predicted tokens of a text, nats.
#[derive(Clone, Debug, PartialEq)]
pub struct Evaluation {
    /// Predicted tokens.
    pub tokens: u64,
    /// Loss at each exit, from the bottom up.
    pub exits: Vec<f64>,
    /// Loss of the vote; of the only exit where there is one.
    pub vote: f64,
    /// All votes that were asked for.
    pub votes: Vec<Voted>,
}

/// A rule's loss and cost.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Voted {
    /// The rule.
    pub rule: Vote,
    /// Mean over predicted tokens, nats.
    pub val_loss: f64,
    /// Time of the vote behind the blocks, exits' logits included, ms.
    pub ms_per_token: f64,
}

impl Evaluation {
    /// Losses over another text as well, with the vote alone that both say.
    #[must_use]
    pub fn with(&self, other: &Self) -> Self {
        // The mean over no tokens is no number.
        if other.tokens == 0 {
            return Self { votes: Vec::new(), ..self.clone() };
        }
        let tokens = self.tokens + other.tokens;
        let weighted =
            |a: f64, b: f64| (a * self.tokens as f64 + b * other.tokens as f64) / tokens as f64;
        let exits = self.exits.iter().zip(&other.exits).map(|(&a, &b)| weighted(a, b)).collect();
        Self { tokens, exits, vote: weighted(self.vote, other.vote), votes: Vec::new() }
    }

    /// As this, with `vote` of this rule, where it was asked for.
    #[must_use]
    pub fn by(&self, rule: Vote) -> Option<Self> {
        let voted = self.votes.iter().find(|voted| voted.rule == rule)?;
        Some(Self { vote: voted.val_loss, ..self.clone() })
    }

    /// Loss at the last exit: the full model.
    pub fn last(&self) -> f64 {
        *self.exits.last().unwrap_or(&f64::NAN)
    }
}

#[derive(Default)]
struct Sum {
    loss: f64,
    tokens: f64,
    ms: f64,
}

/// Log-probabilities of sequences, in the order of their batches.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct SequenceScores {
    /// By exit, by sequence.
    pub exits: Vec<Vec<f64>>,
    /// By vote, by sequence.
    pub votes: Vec<Vec<f64>>,
}

impl Model {
    /// Evaluates batches at every exit and by vote.
    ///
    /// # Errors
    /// A batch is larger than the plan, or the device fails.
    pub fn evaluate(
        &self,
        batches: impl Iterator<Item = Batch>,
        vote: Vote,
        progress: impl FnMut(u64),
    ) -> Result<Evaluation> {
        self.evaluate_all(batches, &[vote], progress)
    }

    /// Evaluates batches at every exit and by these votes, [`Vote::Learned`] last among them.
    ///
    /// # Errors
    /// As [`Model::evaluate`].
    pub fn evaluate_all(
        &self,
        batches: impl Iterator<Item = Batch>,
        votes: &[Vote],
        mut progress: impl FnMut(u64),
    ) -> Result<Evaluation> {
        let mut exits: Vec<Sum> = self.exits.iter().map(|_| Sum::default()).collect();
        let mut voted: Vec<Sum> = votes.iter().map(|_| Sum::default()).collect();
        for batch in batches.filter(|batch| batch.trained_tokens > 0) {
            let counted = self.run_to_counted(&batch)?;
            let g = counted.head;
            for (index, sum) in exits.iter_mut().enumerate() {
                self.measure(sum, |recorder| {
                    let x = self.exit_stream(index);
                    let stats = self.exit_stats(index);
                    self.exit_loss(recorder, &self.exits[index], x, stats, g);
                    Ok(())
                })?;
            }
            for (&vote, sum) in votes.iter().zip(&mut voted).filter(|_| self.job.vote) {
                self.measure(sum, |recorder| self.vote_loss(recorder, vote, g))?;
            }
            progress((batch.sequences * batch.seq_len) as u64);
        }
        let mean = |sum: &Sum| sum.loss / sum.tokens;
        let losses: Vec<f64> = exits.iter().map(mean).collect();
        let last = *losses.last().unwrap_or(&f64::NAN);
        // What these read of the exits was made for the exits' losses; `learned` makes its own.
        let made_ms = |rule: Vote| match rule {
            Vote::Learned => 0.0,
            Vote::Last => exits.last().map_or(0.0, |sum| sum.ms),
            Vote::Max | Vote::Mean => exits.iter().map(|sum| sum.ms).sum(),
        };
        let votes: Vec<Voted> = votes
            .iter()
            .zip(&voted)
            .filter(|_| self.job.vote)
            .map(|(&rule, sum)| Voted {
                rule,
                val_loss: mean(sum),
                ms_per_token: (sum.ms + made_ms(rule)) / sum.tokens.max(1.0),
            })
            .collect();
        Ok(Evaluation {
            tokens: exits[0].tokens as u64,
            exits: losses,
            vote: votes.first().map_or(last, |voted| voted.val_loss),
            votes,
        })
    }

    /// Log-probabilities of what came, at every exit and temperature: what a vote is fitted on.
    ///
    /// # Errors
    /// As [`Model::evaluate`].
    pub fn score_exits(
        &self,
        batches: impl Iterator<Item = Batch>,
        mut progress: impl FnMut(),
    ) -> Result<Scores> {
        let mut log_p = vec![vec![Vec::new(); TEMPERATURES.len()]; self.exits.len()];
        for batch in batches.filter(|batch| batch.trained_tokens > 0) {
            let counted = self.run_to_counted(&batch)?;
            for (index, log_p) in log_p.iter_mut().enumerate() {
                self.score_exit(index, &counted.targets, counted.head, log_p)?;
            }
            progress();
        }
        Ok(Scores { log_p })
    }

    /// The log-probability of each sequence's targets that count, at every exit and by these votes.
    ///
    /// # Errors
    /// As [`Model::evaluate`].
    pub fn score_sequences(
        &self,
        batches: impl Iterator<Item = Batch>,
        votes: &[Vote],
        mut progress: impl FnMut(),
    ) -> Result<SequenceScores> {
        let votes: Vec<Vote> = votes.iter().copied().filter(|_| self.job.vote).collect();
        let mut scores = SequenceScores {
            exits: vec![Vec::new(); self.exits.len()],
            votes: vec![Vec::new(); votes.len()],
        };
        for batch in batches.filter(|batch| batch.trained_tokens > 0) {
            let counted = self.run_to_counted(&batch)?;
            let g = counted.head;
            let owners = counted.sequences(&batch);
            let sums = |stats: &edge_gpu::Slice| -> Result<Vec<f64>> {
                let rows = stats.buffer().slice(stats.offset_words(), 3 * u64::from(g.rows()));
                let rows = self.device.read_f32(&rows)?;
                let mut sums = vec![0.0; batch.sequences];
                for ([max, sum, z], owner) in rows.as_chunks::<3>().0.iter().zip(&owners) {
                    if let Some(owner) = owner {
                        sums[*owner] += f64::from(z - max - sum.ln());
                    }
                }
                Ok(sums)
            };
            for (index, log_p) in scores.exits.iter_mut().enumerate() {
                let (x, stats) = (self.exit_stream(index), self.exit_stats(index));
                let mut recorder = self.device.recorder();
                self.exit_loss(&mut recorder, &self.exits[index], x, stats, g);
                recorder.submit()?;
                log_p.extend(sums(stats)?);
            }
            for (&vote, log_p) in votes.iter().zip(&mut scores.votes) {
                let mut recorder = self.device.recorder();
                self.vote_loss(&mut recorder, vote, g)?;
                recorder.submit()?;
                let stats = self.workspace.votes.as_ref().context("the model votes")?;
                log_p.extend(sums(&stats.1)?);
            }
            progress();
        }
        Ok(scores)
    }

    /// Runs a batch through all blocks, leaving the rows that count of the residual stream of every
    /// exit behind.
    fn run_to_counted(&self, batch: &Batch) -> Result<Counted> {
        let g = self.set_batch(batch)?;
        let counted = self.set_counted(batch, g)?;
        self.run_to_exits(g)?;
        let mut recorder = self.device.recorder();
        for index in 0..self.workspace.exits.len().max(1) {
            self.gather_counted(&mut recorder, self.exit_stream(index), &counted);
        }
        recorder.submit()?;
        Ok(counted)
    }

    /// Runs the current ids through all blocks, leaving the residual stream of every exit behind.
    pub(crate) fn run_to_exits(&self, g: Geometry) -> Result<()> {
        self.expect_blocks(&self.blocks_to_exits());
        let mut recorder = self.device.recorder();
        if self.job.isolated {
            self.run_both_streams(&mut recorder, g)?;
            return Ok(recorder.submit()?);
        }
        self.trunk(&mut recorder, self.shape.num_blocks, g, |recorder, exit, x| {
            let Some(kept) = self.workspace.exits.get(exit) else { return };
            let count = g.rows() * self.shape.hidden_size;
            let params = copy::Params { count, src_offset: 0, dst_offset: 0 };
            recorder.push(copy::dispatch(params, x.clone(), kept.clone()));
        });
        Ok(recorder.submit()?)
    }

    /// The blocks of [`Model::run_to_exits`] in their order.
    fn blocks_to_exits(&self) -> Vec<u32> {
        if !self.job.isolated {
            return (0..self.shape.num_blocks).collect();
        }
        let windows = self.job.windows.iter();
        let twice = windows.flat_map(|w| (w.first..w.end).chain(w.first..w.end));
        let top = self.job.windows.last().map_or(0, |top| top.depth()) as usize;
        let mut blocks: Vec<u32> = twice.collect();
        // Nothing needs the base's stream above the last window.
        blocks.truncate(blocks.len() - top);
        blocks
    }

    /// With isolated windows: from the base's stream at a window's lower edge one stream goes
    /// through the window with its adapters to the exit, and the base's own goes on without.
    fn run_both_streams(&self, recorder: &mut Recorder, g: Geometry) -> Result<()> {
        let (rows, stream) = (g.rows(), self.stream());
        self.embed(recorder, rows, stream);
        let last = self.job.windows.len() - 1;
        for (index, window) in self.job.windows.iter().enumerate() {
            let (at_exit, spare) = (&self.workspace.exits[index], &self.workspace.normed);
            let blocks = window.first..window.end;
            if self.job.in_turns() {
                recorder.submit()?;
                self.bring(index)?;
            }
            self.copy_rows(recorder, rows, stream, at_exit);
            self.run_blocks(recorder, blocks.clone(), g);
            // The adapted stream to its exit, the base's back into place.
            self.copy_rows(recorder, rows, stream, spare);
            self.copy_rows(recorder, rows, at_exit, stream);
            self.copy_rows(recorder, rows, spare, at_exit);
            if index < last {
                self.run_blocks(recorder, blocks, g.of_base());
            }
        }
        Ok(())
    }

    /// The residual stream at an exit after [`Model::run_to_exits`].
    pub(crate) fn exit_stream(&self, index: usize) -> &edge_gpu::Slice {
        self.workspace.exits.get(index).unwrap_or(&self.workspace.slots[0].x)
    }

    pub(crate) fn exit_stats(&self, index: usize) -> &edge_gpu::Slice {
        self.workspace.stats.get(index).unwrap_or(&self.workspace.stats[0])
    }

    fn measure(
        &self,
        sum: &mut Sum,
        record: impl FnOnce(&mut edge_gpu::Recorder) -> Result<()>,
    ) -> Result<()> {
        let started = Instant::now();
        let loss = &self.workspace.loss;
        let mut recorder = self.device.recorder();
        recorder.push(fill::dispatch(2, 0.0, loss.clone()));
        record(&mut recorder)?;
        recorder.submit()?;
        let values = self.device.read_f32(loss)?;
        sum.loss += f64::from(values[0]);
        sum.tokens += f64::from(values[1]);
        sum.ms += started.elapsed().as_secs_f64() * 1e3;
        Ok(())
    }

    /// Logits of all rows of a batch at the last exit, `[rows, vocab]`: for comparison with
    /// other implementations, not for use in a run.
    ///
    /// # Errors
    /// A batch is larger than the plan, or the device fails.
    pub fn all_logits(&self, batch: &Batch) -> Result<Vec<f32>> {
        let g = self.set_batch(batch)?;
        self.run_to_exits(g)?;
        let last = self.exits.len() - 1;
        self.read_logits(&self.exits[last], self.exit_stream(last), g)
    }
    /// As [`Model::all_logits`], of every exit.
    ///
    /// # Errors
    /// As [`Model::all_logits`].
    pub fn exit_logits(&self, batch: &Batch) -> Result<Vec<Vec<f32>>> {
        let g = self.set_batch(batch)?;
        self.run_to_exits(g)?;
        let read = |index| self.read_logits(&self.exits[index], self.exit_stream(index), g);
        (0..self.exits.len()).map(read).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn losses_over_two_texts_weigh_their_tokens() {
        let text = |tokens, loss: f64| Evaluation {
            tokens,
            exits: vec![2.0 * loss, loss],
            vote: loss,
            votes: Vec::new(),
        };
        assert_eq!(text(1, 4.0).with(&text(3, 2.0)), text(4, 2.5));
        assert_eq!(text(3, 2.0).with(&text(0, f64::NAN)), text(3, 2.0));
    }
}
