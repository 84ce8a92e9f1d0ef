//! The tasks of a step, recorded one by one.

use anyhow::{Context, Result};
use edge_gpu::Recorder;
use edge_scheduler::{Task, Window};

use super::trainer::Trainer;
use super::trunk_cache::TrunkCache;
use crate::batch::Batch;
use crate::model::block::Geometry;
use crate::model::counted::Counted;
use crate::model::workspace::Slot;

/// What a micro-batch needs on its way that is not on the device.
struct Begun {
    g: Geometry,
    counted: Option<Counted>,
    /// Segments of each shard of the embedding's gradient (method `full`).
    scatter: Vec<u32>,
}

/// A step under way.
pub(super) struct Pass<'a> {
    trainer: &'a Trainer,
    /// The window that is trained.
    index: usize,
    window: Window,
    /// Weight of a token's loss.
    scale: f32,
    batches: Vec<&'a Batch>,
    pub(super) recorder: Recorder,
    begun: Vec<Begun>,
}

impl<'a> Pass<'a> {
    /// A step on these micro-batches, of which nothing has run.
    pub(super) fn new(
        trainer: &'a Trainer,
        (index, window): (usize, Window),
        batches: Vec<&'a Batch>,
        scale: f32,
    ) -> Self {
        let recorder = trainer.model.device.recorder();
        Self { trainer, index, window, scale, batches, recorder, begun: Vec::new() }
    }

    /// Records a task; `cache` is where [`Task::Restore`] finds hidden states.
    pub(super) fn run(&mut self, task: Task, cache: Option<&mut TrunkCache>) -> Result<()> {
        let model = &self.trainer.model;
        match task {
            Task::Embed { micro_batch } => {
                let g = self.begin(micro_batch)?;
                let slot = self.slot(micro_batch);
                model.embed(&mut self.recorder, g.rows(), &slot.x);
            }
            Task::Restore { micro_batch } => self.restore(micro_batch, cache)?,
            Task::Trunk { micro_batch, block } => {
                let g = self.begun[micro_batch as usize].g;
                let below = if model.job.isolated { g.of_base() } else { g };
                let slot = self.slot(micro_batch);
                model.run_on(&mut self.recorder, block, slot, below);
            }
            Task::Forward { micro_batch, block } => {
                let g = self.begun[micro_batch as usize].g;
                let place = (self.window, block);
                model.window_forward(&mut self.recorder, place, micro_batch, g)?;
            }
            Task::Loss { micro_batch } => self.loss(micro_batch)?,
            Task::Backward { micro_batch, block } => {
                let Begun { g, scatter, .. } = &self.begun[micro_batch as usize];
                let place = (self.window, block);
                model.window_backward(&mut self.recorder, place, micro_batch, *g);
                if block == self.window.first {
                    self.trainer.scatter(&mut self.recorder, scatter, *g);
                }
            }
            // Clipping and AdamW come when all gradients are there.
            Task::Update => {}
        }
        Ok(())
    }

    /// The slot whose residual stream is that of a micro-batch below the window.
    fn slot(&self, micro_batch: u32) -> &'a Slot {
        let ws = &self.trainer.model.workspace;
        ws.streams.get(micro_batch as usize).unwrap_or(&ws.slots[0])
    }

    /// Whether micro-batches wait for each other: then their targets come with the loss.
    fn waits(&self) -> bool {
        self.trainer.model.job.streams > 0
    }

    /// Uploads a micro-batch.
    fn begin(&mut self, micro_batch: u32) -> Result<Geometry> {
        // Uploads are ordered behind what was submitted, so the last micro-batch must be.
        self.recorder.submit()?;
        let (model, batch) = (&self.trainer.model, self.batches[micro_batch as usize]);
        let (g, counted) = match self.waits() {
            true => {
                model.set_ids(&batch.ids)?;
                let g = Geometry::sequences(batch.sequences as u32, batch.seq_len as u32);
                let g = Geometry { micro_batch, ..g };
                model.set_segments(&batch.segments, g)?;
                (g, None)
            }
            false => {
                let g = model.set_batch(batch)?;
                (g, Some(model.set_counted(batch, g)?))
            }
        };
        let scatter = self.trainer.upload_scatter(batch)?;
        self.begun.push(Begun { g, counted, scatter });
        Ok(g)
    }

    fn restore(&mut self, micro_batch: u32, cache: Option<&mut TrunkCache>) -> Result<()> {
        let g = self.begin(micro_batch)?;
        let (model, batch) = (&self.trainer.model, self.batches[micro_batch as usize]);
        // A list of dispatches is made without a cache.
        if let Some(cache) = cache {
            cache.load(model, batch)?;
            // What the cache lacked went through with segments of its own.
            let first = if self.waits() { self.batches[0] } else { batch };
            model.set_segments(&first.segments, Geometry { micro_batch: 0, ..g })?;
        }
        if self.waits() {
            let slot = self.slot(micro_batch);
            model.copy_rows(&mut self.recorder, g.rows(), model.stream(), &slot.x);
            // The next micro-batch comes through the same stream.
            self.recorder.submit()?;
        }
        Ok(())
    }

    fn loss(&mut self, micro_batch: u32) -> Result<()> {
        let (model, batch) = (&self.trainer.model, self.batches[micro_batch as usize]);
        let begun = &mut self.begun[micro_batch as usize];
        let (g, recorder) = (begun.g, &mut self.recorder);
        if begun.counted.is_none() {
            recorder.submit()?;
            model.write_head(&model.workspace.targets, &batch.targets)?;
            begun.counted = Some(model.set_counted(batch, g)?);
        }
        let counted = begun.counted.as_ref().context("rows that count")?;
        let x = model.at_exit(recorder, micro_batch, g)?;
        model.gather_counted(recorder, x, counted);
        model.exit_loss_backward(
            recorder,
            &model.exits[self.index],
            x,
            self.scale,
            counted.head,
        )?;
        model.scatter_counted(recorder, counted)?;
        model.keep_gradient(recorder, micro_batch, g);
        Ok(())
    }
}
