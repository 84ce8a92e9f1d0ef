//! The blocks of a window, forward and backward, one block and one micro-batch at a time.
//!
//! Where activations are kept, each block of the window has a slot of them. With recomputation a
//! block keeps its input alone and is run forward again on the way back; where micro-batches take
//! turns with each block ([`Path::Columns`](edge_scheduler::Path)), each keeps inputs of its own,
//! and its stream carries the residual up and the gradient down.

use anyhow::{Context, Result};
use edge_gpu::{Recorder, Slice};
use edge_scheduler::{BlockVector, Trained, Window};

use super::Model;
use super::block::{Geometry, Onward};
use super::workspace::Slot;

impl Model {
    /// Runs a block of a window forward for a micro-batch, whose stream at the window's lower edge
    /// is [`Model::stream`] or, where micro-batches wait for each other, its own.
    pub(crate) fn window_forward(
        &self,
        recorder: &mut Recorder,
        (window, block): (Window, u32),
        micro_batch: u32,
        g: Geometry,
    ) -> Result<()> {
        let ws = &self.workspace;
        let last = ws.x_out.as_ref().context("the model was not built for training")?;
        let depth = (block - window.first) as usize;
        if self.job.columns {
            let own = &ws.streams[micro_batch as usize];
            self.copy_rows(recorder, g.rows(), &own.x, self.kept_input(depth, micro_batch));
            self.run_on(recorder, block, own, g);
            return Ok(());
        }
        if let (0, Some(own)) = (depth, ws.streams.get(micro_batch as usize)) {
            self.copy_rows(recorder, g.rows(), &own.x, self.stream());
        }
        let top = block + 1 == window.end;
        if self.job.recompute {
            if top {
                self.block_forward(recorder, block, self.slot(0), Onward::Kept(last), false, g);
            } else {
                self.copy_rows(recorder, g.rows(), self.stream(), &ws.kept[depth]);
                self.run_blocks(recorder, block..block + 1, g);
            }
            return Ok(());
        }
        let onward = match top {
            true => Onward::Kept(last),
            false => {
                let next = self.blocks[block as usize + 1].vector(BlockVector::InputNorm);
                Onward::Normed(&self.slot(depth + 1).x, next)
            }
        };
        self.block_forward(recorder, block, self.slot(depth), onward, depth > 0, g);
        Ok(())
    }

    /// The residual stream of a micro-batch at the exit, behind [`Model::window_forward`] of the
    /// window's last block. The loss may overwrite it.
    pub(crate) fn at_exit(
        &self,
        recorder: &mut Recorder,
        micro_batch: u32,
        g: Geometry,
    ) -> Result<&Slice> {
        let last = self.workspace.x_out.as_ref();
        let last = last.context("the model was not built for training")?;
        if self.job.columns {
            let own = &self.workspace.streams[micro_batch as usize].x;
            self.copy_rows(recorder, g.rows(), own, last);
        }
        Ok(last)
    }

    /// Behind the loss of a micro-batch: its gradient waits where its stream was.
    pub(crate) fn keep_gradient(&self, recorder: &mut Recorder, micro_batch: u32, g: Geometry) {
        if let (true, Some(back)) = (self.job.columns, &self.workspace.backward) {
            let own = &self.workspace.streams[micro_batch as usize].x;
            self.copy_rows(recorder, g.rows(), &back.d_x, own);
        }
    }

    /// Runs backward through a block of a window for a micro-batch.
    pub(crate) fn window_backward(
        &self,
        recorder: &mut Recorder,
        (window, block): (Window, u32),
        micro_batch: u32,
        g: Geometry,
    ) {
        let ws = &self.workspace;
        let (Some(out), Some(back)) = (&ws.x_out, &ws.backward) else { return };
        let need_input = self.job.trained == Trained::Full || block > window.first;
        let depth = (block - window.first) as usize;
        let slot = self.slot(if self.job.recompute { 0 } else { depth });
        let again = self.job.columns || self.job.recompute && block + 1 < window.end;
        if again {
            let kept = self.kept_input(depth, micro_batch);
            self.copy_rows(recorder, g.rows(), kept, &slot.x);
            self.block_forward(recorder, block, slot, Onward::Kept(out), false, g);
        }
        if !self.job.columns {
            self.block_backward(recorder, block, slot, need_input, g);
            return;
        }
        let own = &ws.streams[micro_batch as usize].x;
        self.copy_rows(recorder, g.rows(), own, &back.d_x);
        self.block_backward(recorder, block, slot, need_input, g);
        if need_input {
            self.copy_rows(recorder, g.rows(), &back.d_x, own);
        }
    }

    /// Where the input of a window's block is kept for recomputation.
    fn kept_input(&self, depth: usize, micro_batch: u32) -> &Slice {
        let streams = if self.job.columns { self.job.streams as usize } else { 1 };
        &self.workspace.kept[depth * streams + micro_batch as usize % streams]
    }

    fn slot(&self, depth: usize) -> &Slot {
        &self.workspace.slots[depth]
    }
}
