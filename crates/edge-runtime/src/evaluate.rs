//! Loss over a text: at every exit, and by the exits' vote.

use anyhow::Result;
use edge_kernels::ops::memory::{copy, fill};

use crate::batch::Batch;
use crate::exits::Vote;
use crate::model::Model;
use crate::model::block::Geometry;

/// Mean losses over the predicted tokens of a text, nats.
#[derive(Clone, Debug, PartialEq)]
pub struct Evaluation {
    /// Predicted tokens.
    pub tokens: u64,
    /// Loss at each exit, from the bottom up.
    pub exits: Vec<f64>,
    /// Loss of the vote; of the only exit where there is one.
    pub vote: f64,
}

impl Evaluation {
    /// Loss at the last exit: the full model.
    pub fn last(&self) -> f64 {
        *self.exits.last().unwrap_or(&f64::NAN)
    }
}

#[derive(Default)]
struct Sum {
    loss: f64,
    tokens: f64,
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
        mut progress: impl FnMut(u64),
    ) -> Result<Evaluation> {
        let mut exits: Vec<Sum> = self.exits.iter().map(|_| Sum::default()).collect();
        let mut voted = Sum::default();
        for batch in batches {
            let g = self.set_batch(&batch)?;
            self.run_to_exits(g)?;
            for (index, sum) in exits.iter_mut().enumerate() {
                self.measure(sum, |recorder| {
                    let x = self.exit_stream(index);
                    let stats = self.exit_stats(index);
                    self.exit_loss(recorder, &self.exits[index], x, stats, g);
                    Ok(())
                })?;
            }
            if self.job.vote {
                self.measure(&mut voted, |recorder| self.vote_loss(recorder, vote, g))?;
            }
            progress((batch.sequences * batch.seq_len) as u64);
        }
        let mean = |sum: &Sum| sum.loss / sum.tokens;
        let losses: Vec<f64> = exits.iter().map(mean).collect();
        let last = *losses.last().unwrap_or(&f64::NAN);
        Ok(Evaluation {
            tokens: exits[0].tokens as u64,
            exits: losses,
            vote: if self.job.vote { mean(&voted) } else { last },
        })
    }

    /// Runs the current ids through all blocks, leaving the residual stream of every exit behind.
    pub(crate) fn run_to_exits(&self, g: Geometry) -> Result<()> {
        let mut recorder = self.device.recorder();
        self.trunk(&mut recorder, self.shape.num_blocks, g, |recorder, exit, x| {
            let Some(kept) = self.workspace.exits.get(exit) else { return };
            let count = g.rows() * self.shape.hidden_size;
            let params = copy::Params { count, src_offset: 0, dst_offset: 0 };
            recorder.push(copy::dispatch(params, x.clone(), kept.clone()));
        });
        Ok(recorder.submit()?)
    }

    /// The residual stream at an exit after [`Model::run_to_exits`].
    fn exit_stream(&self, index: usize) -> &edge_gpu::Slice {
        self.workspace.exits.get(index).unwrap_or(&self.workspace.slots[0].x)
    }

    fn exit_stats(&self, index: usize) -> &edge_gpu::Slice {
        self.workspace.stats.get(index).unwrap_or(&self.workspace.stats[0])
    }

    fn measure(
        &self,
        sum: &mut Sum,
        record: impl FnOnce(&mut edge_gpu::Recorder) -> Result<()>,
    ) -> Result<()> {
        let loss = &self.workspace.loss;
        let mut recorder = self.device.recorder();
        recorder.push(fill::dispatch(2, 0.0, loss.clone()));
        record(&mut recorder)?;
        recorder.submit()?;
        let values = self.device.read_f32(loss)?;
        sum.loss += f64::from(values[0]);
        sum.tokens += f64::from(values[1]);
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
