//! How far compression moves the distribution of the next token.

use std::ops::AddAssign;

use anyhow::{Result, ensure};
use serde::{Deserialize, Serialize};

use super::forward::unseen;
use super::runner::Runner;
use super::states::States;
use super::text::CalibrationSet;
use crate::batch::IGNORE;

/// A distribution against another one, over the tokens of a set.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Divergence {
    /// `KL(p ‖ q)` in nats, p of the reference: mean over all positions.
    pub kl: f64,
    /// Cross-entropy of q in nats: mean over predicted tokens, as `eval` counts them.
    pub loss: f64,
    /// Cross-entropy of p.
    pub reference_loss: f64,
    /// Positions.
    pub positions: u64,
    /// Predicted tokens.
    pub predicted: u64,
}

impl Divergence {
    /// `exp(loss)`.
    pub fn perplexity(&self) -> f64 {
        self.loss.exp()
    }

    /// `exp(reference_loss)`.
    pub fn reference_perplexity(&self) -> f64 {
        self.reference_loss.exp()
    }
}

/// Sums that become a [`Divergence`].
#[derive(Clone, Copy, Default)]
struct Sums {
    kl: f64,
    losses: [f64; 2],
    positions: u64,
    predicted: u64,
}

impl AddAssign for Sums {
    fn add_assign(&mut self, other: Self) {
        self.kl += other.kl;
        self.losses[0] += other.losses[0];
        self.losses[1] += other.losses[1];
        self.positions += other.positions;
        self.predicted += other.predicted;
    }
}

impl Runner<'_> {
    /// Takes hidden states before block `from` through all blocks that remain, with the weights
    /// that are set, and compares the distribution with that of the hidden states `reference`
    /// behind the last block. `from` may be the number of blocks: nothing runs then.
    ///
    /// With all blocks on the device this is one pass that keeps nothing on the host; else a copy
    /// of the hidden states goes from block to block.
    ///
    /// # Errors
    /// The three are not of the same sequences, the device fails, or a temporary file.
    pub fn divergence(
        &mut self,
        from: u32,
        input: &States,
        reference: &States,
        set: &CalibrationSet,
    ) -> Result<Divergence> {
        let sequences = [input.sequences(), reference.sequences(), set.sequences()];
        ensure!(
            sequences.iter().all(|count| *count == sequences[0]),
            "hidden states, reference and text have {sequences:?} sequences: take those of one \
             calibration set"
        );
        let blocks = self.num_blocks();
        if self.is_resident() || from == blocks {
            return self.compare(from, input, reference, set);
        }
        let mut states = self.copy(input)?;
        self.advance(from..blocks, &mut states)?;
        self.compare(blocks, &states, reference, set)
    }

    /// The divergence of the whole model with the weights that are set.
    ///
    /// # Errors
    /// As [`Runner::divergence`].
    pub fn evaluate(&mut self, reference: &States, set: &CalibrationSet) -> Result<Divergence> {
        let input = self.embed(set)?;
        self.divergence(0, &input, reference, set)
    }

    fn compare(
        &mut self,
        from: u32,
        input: &States,
        reference: &States,
        set: &CalibrationSet,
    ) -> Result<Divergence> {
        let slots = self.slots(from..self.num_blocks())?;
        let (mut values, mut sums) = (Vec::new(), Sums::default());
        for (first, count) in self.micro_batches(input.sequences()) {
            let targets = set.batch(first, count).targets;
            self.model.write_head(&self.model.workspace.targets, &targets)?;
            input.read(first, count, &mut values)?;
            let g = self.run(&slots, &values, &mut unseen)?;
            let mut recorder = self.model.device.recorder();
            self.model.set_compared(&mut recorder, self.model.stream(), g.rows());
            recorder.submit()?;
            reference.read(first, count, &mut values)?;
            self.run(&[], &values, &mut unseen)?;
            self.model.set_reference(&mut recorder, self.model.stream(), g.rows())?;
            self.model.divergence(&mut recorder, self.head(), g.rows())?;
            recorder.submit()?;
            sums += self.read_sums(&targets)?;
        }
        let mean = |sum: f64, count: u64| if count == 0 { 0.0 } else { sum / count as f64 };
        Ok(Divergence {
            kl: mean(sums.kl, sums.positions),
            loss: mean(sums.losses[1], sums.predicted),
            reference_loss: mean(sums.losses[0], sums.predicted),
            positions: sums.positions,
            predicted: sums.predicted,
        })
    }

    fn read_sums(&self, targets: &[u32]) -> Result<Sums> {
        let buffers = self.model.calibration_buffers()?;
        let rows = targets.len() as u64;
        let read = |slice: &edge_gpu::Slice, words| {
            self.model.device.read_f32(&slice.buffer().slice(0, words))
        };
        let kl = read(&buffers.kl, rows)?;
        let mut sums = Sums {
            kl: kl.iter().map(|&kl| f64::from(kl)).sum(),
            positions: rows,
            predicted: targets.iter().filter(|target| **target != IGNORE).count() as u64,
            ..Sums::default()
        };
        let stats = [&buffers.stats, &self.model.workspace.stats[0]];
        for (sum, stats) in sums.losses.iter_mut().zip(stats) {
            let stats = read(stats, 3 * rows)?;
            let counted = stats.chunks_exact(3).zip(targets).filter(|(_, t)| **t != IGNORE);
            *sum = counted.map(|(stats, _)| loss(stats)).sum();
        }
        Ok(sums)
    }
}

/// `log(sum) + max - target`.
fn loss(stats: &[f32]) -> f64 {
    f64::from(stats[1]).ln() + f64::from(stats[0]) - f64::from(stats[2])
}
