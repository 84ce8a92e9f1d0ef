//! One training step: forward to the window's exit, backward through the window, AdamW on the
//! window's parameters.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use edge_gpu::{Listed, Recorder, Slice};
use edge_kernels::Dispatch;
use edge_kernels::ops::embedding::embedding_scatter;
use edge_kernels::ops::memory::fill;
use edge_kernels::ops::optim::{adamw, adamw_8bit, grad_norm_scale, sum_squares};
use edge_scheduler::plan::NORM_PARTS;
use edge_scheduler::simulate::{Span, Track};
use edge_scheduler::step::{block_uses, tasks};
use edge_scheduler::{Owner, Path, StepShape, Task};

use super::pass::Pass;
use super::trunk_cache::TrunkCache;
use crate::batch::Batch;
use crate::model::Model;
use crate::model::block::Geometry;

/// AdamW's constants (Loshchilov & Hutter 2019), as PyTorch names them.
#[derive(Clone, Copy, Debug)]
pub struct AdamW {
    /// Decay of the first moment.
    pub beta1: f64,
    /// Decay of the second moment.
    pub beta2: f64,
    /// Added to the denominator.
    pub eps: f64,
    /// Decoupled weight decay.
    pub weight_decay: f64,
    /// Largest gradient norm; 0: any.
    pub clip: f64,
}

impl Default for AdamW {
    fn default() -> Self {
        Self { beta1: 0.9, beta2: 0.999, eps: 1e-8, weight_decay: 0.0, clip: 1.0 }
    }
}

/// What a step reports.
#[derive(Clone, Copy, Debug)]
pub struct StepOutcome {
    /// Mean loss over the trained tokens before the update, nats.
    pub loss: f64,
    /// Norm of the window's gradient before clipping.
    pub grad_norm: f64,
    /// Tokens that the loss counted.
    pub trained_tokens: u64,
}

impl StepOutcome {
    /// Whether loss and gradient are numbers.
    pub fn is_finite(&self) -> bool {
        self.loss.is_finite() && self.grad_norm.is_finite()
    }
}

/// A model that is being tuned.
pub struct Trainer {
    /// The model.
    pub model: Model,
    optimizer: AdamW,
    /// Updates of each window so far: Adam's `t`.
    updates: Vec<u32>,
    /// Hidden states below the window, where what lies below it is fixed.
    pub cache: Option<TrunkCache>,
    /// What a step that is traced has done so far.
    trace: Option<Trace>,
}

/// When the tasks of a step ran.
struct Trace {
    started: Instant,
    spans: Vec<Span>,
    done: bool,
}

impl Trace {
    /// Notes what ran from `start` to now.
    fn note(&mut self, name: String, start: Instant) {
        let at = |time: Instant| (time - self.started).as_secs_f64();
        let (start_s, end_s) = (at(start), at(Instant::now()));
        self.spans.push(Span { track: Track::Compute, name, start_s, end_s });
    }
}

impl Trainer {
    /// A trainer with all moments at zero.
    pub fn new(model: Model, optimizer: AdamW) -> Self {
        let updates = vec![0; model.groups.len()];
        Self { model, optimizer, updates, cache: None, trace: None }
    }

    /// Number of windows.
    pub fn windows(&self) -> usize {
        self.model.exits.len()
    }

    /// Updates of each window so far.
    pub fn updates(&self) -> &[u32] {
        &self.updates
    }

    /// Goes on behind so many updates of each window.
    ///
    /// # Panics
    /// When there are other numbers of windows: a mistake of the caller.
    pub fn set_updates(&mut self, updates: &[u32]) {
        self.updates.copy_from_slice(updates);
    }

    /// Says that windows below `index` are finished: from now on what lies below it is fixed.
    /// Where windows are trained in phases, its moments start at zero.
    ///
    /// # Errors
    /// The cache cannot be opened, or the device fails.
    pub fn begin(&mut self, index: usize) -> Result<()> {
        if self.model.job.phases {
            let group = &self.model.groups[index];
            let mut recorder = self.model.device.recorder();
            for moments in group.m.iter().chain(&group.v).chain(&group.largest) {
                recorder.push(fill::dispatch(moments.words() as u32, 0.0, moments.clone()));
            }
            recorder.submit()?;
            self.updates[index] = 0;
        }
        self.open_trunk(index)
    }

    /// Goes to what is kept of the trunk below window `index`.
    ///
    /// # Errors
    /// The cache cannot be opened, or the device fails.
    pub fn open_trunk(&mut self, index: usize) -> Result<()> {
        let Some(cache) = &mut self.cache else { return Ok(()) };
        cache.begin(&self.model, self.model.job.windows[index].first)
    }

    /// Trains window `index` on micro-batches, whose gradients accumulate. Where the loss or the
    /// gradient is no number, there is no update.
    ///
    /// # Errors
    /// A batch is larger than the plan, or the device fails.
    pub fn step(&mut self, index: usize, batches: &[Batch], lr: f64) -> Result<StepOutcome> {
        let trained: usize = batches.iter().map(|batch| batch.trained_tokens).sum();
        self.gradients(index, batches, trained)?;
        let mut recorder = self.model.device.recorder();
        self.norm(&mut recorder, index)?;
        recorder.submit()?;
        let model = &self.model;
        let back = model.workspace.backward.as_ref().context("a training workspace")?;
        let loss = model.device.read_f32(&model.workspace.loss)?;
        let clip = model.device.read_f32(&back.clip)?;
        let outcome = StepOutcome {
            loss: f64::from(loss[0]) / f64::from(loss[1]).max(1.0),
            grad_norm: clip[0].into(),
            trained_tokens: trained as u64,
        };
        if !outcome.is_finite() {
            return Ok(outcome);
        }
        let started = Instant::now();
        let mut recorder = self.model.device.recorder();
        self.update(&mut recorder, index, lr)?;
        recorder.submit()?;
        let model = &self.model;
        if let Some(trace) = self.trace.as_mut().filter(|trace| !trace.done) {
            model.device.wait()?;
            trace.note(Task::Update.label(), started);
            trace.spans.extend(model.take_load_spans());
            trace.done = true;
        }
        Ok(outcome)
    }

    /// The next step is traced: it waits for the device behind each task, while weights are loaded
    /// as ever.
    pub fn start_trace(&mut self) {
        self.trace = Some(Trace { started: Instant::now(), spans: Vec::new(), done: false });
        self.model.trace_loads();
    }

    /// When the tasks of the traced step and the loads beside them ran.
    pub fn take_trace(&mut self) -> Option<Vec<Span>> {
        self.trace.take().filter(|trace| trace.done).map(|trace| trace.spans)
    }

    /// Computes the gradients of window `index`, without an update; the loss of one token weighs
    /// `1 / trained`.
    ///
    /// # Errors
    /// As [`Trainer::step`].
    pub fn gradients(&mut self, index: usize, batches: &[Batch], trained: usize) -> Result<()> {
        let (mut cache, mut trace) = (self.cache.take(), self.trace.take());
        let traced = trace.as_mut().filter(|trace| !trace.done);
        let result = self.accumulate(index, batches, trained, cache.as_mut(), traced);
        (self.cache, self.trace) = (cache, trace);
        result
    }

    fn accumulate(
        &self,
        index: usize,
        batches: &[Batch],
        trained: usize,
        mut cache: Option<&mut TrunkCache>,
        mut trace: Option<&mut Trace>,
    ) -> Result<()> {
        let model = &self.model;
        model.bring(index)?;
        let mut recorder = model.device.recorder();
        self.zero_gradients(&mut recorder, index);
        recorder.submit()?;
        // A batch without a target that counts adds nothing.
        let batches: Vec<&Batch> =
            batches.iter().filter(|batch| batch.trained_tokens > 0).collect();
        let shape = self.shape_of(index, batches.len(), cache.as_deref());
        let tasks = tasks(&shape);
        let uses = block_uses(&tasks);
        model.expect_blocks(&uses);
        let scale = 1.0 / trained.max(1) as f32;
        let mut pass = Pass::new(self, (index, shape.window), batches, scale);
        for task in tasks {
            let (started, waited_s) = (Instant::now(), model.weights_wait_s());
            if let Task::Restore { .. } = task {
                // What the cache lacks is computed in an order of its own.
                pass.run(task, cache.as_deref_mut())?;
                model.expect_blocks(&uses);
            } else {
                pass.run(task, None)?;
            }
            if let Some(trace) = trace.as_deref_mut().filter(|_| task != Task::Update) {
                pass.recorder.submit()?;
                model.device.wait()?;
                // The task began when its weights were there.
                let waited_s = model.weights_wait_s() - waited_s;
                trace.note(task.label(), started + Duration::from_secs_f64(waited_s.max(0.0)));
            }
        }
        pass.recorder.submit()?;
        // The next step will begin like this one.
        model.expect_blocks(&uses);
        Ok(())
    }

    /// On a dry device: the dispatches of each task of a step that trains window `index` on one
    /// micro-batch, whose hidden states come from a cache where `cached`.
    ///
    /// # Errors
    /// The batch does not fit the plan.
    pub(crate) fn list(
        &mut self,
        index: usize,
        batch: &Batch,
        cached: bool,
    ) -> Result<Vec<(Task, Vec<Listed>)>> {
        let device = self.model.device.clone();
        let shape = StepShape { cached, ..self.shape_of(index, 1, None) };
        let mut listed = Vec::new();
        device.take_calls();
        let mut recorder = device.recorder();
        self.zero_gradients(&mut recorder, index);
        self.norm(&mut recorder, index)?;
        self.update(&mut recorder, index, 1e-3)?;
        recorder.submit()?;
        listed.push((Task::Update, device.take_calls()));
        let mut pass = Pass::new(self, (index, shape.window), vec![batch], 1.0);
        for task in tasks(&shape).into_iter().filter(|task| *task != Task::Update) {
            pass.run(task, None)?;
            // Only this says that the device would refuse a dispatch.
            pass.recorder.submit()?;
            listed.push((task, device.take_calls()));
        }
        Ok(listed)
    }

    /// Gradients and loss start at zero.
    fn zero_gradients(&self, recorder: &mut Recorder, index: usize) {
        for gradient in &self.model.groups[index].gradients {
            recorder.push(fill::dispatch(gradient.words() as u32, 0.0, gradient.clone()));
        }
        recorder.push(fill::dispatch(2, 0.0, self.model.workspace.loss.clone()));
    }

    /// The step that trains a window on this many micro-batches.
    fn shape_of(&self, index: usize, count: usize, cache: Option<&TrunkCache>) -> StepShape {
        let job = &self.model.job;
        StepShape {
            window: job.windows[index],
            micro_batches: count as u32,
            path: match (job.streams, job.columns) {
                (0, _) => Path::Rows,
                (_, false) => Path::Mixed,
                (_, true) => Path::Columns,
            },
            recompute: job.recompute,
            cached: cache.is_some_and(TrunkCache::has_level),
        }
    }

    /// Uploads where each row of the embedding finds its gradients (method `full`); returns the
    /// number of segments of each shard.
    pub(super) fn upload_scatter(&self, batch: &Batch) -> Result<Vec<u32>> {
        let model = &self.model;
        let back = model.workspace.backward.as_ref().context("a training workspace")?;
        let Some((segments, order)) = &back.scatter else { return Ok(Vec::new()) };
        let mut counts = Vec::new();
        for (index, part) in model.embedding.shards.iter().enumerate() {
            let (shard, region) = (part.shard, self.region(index));
            let (found, tokens) = embedding_scatter::segments(&batch.ids, shard.row0, shard.rows);
            counts.push((found.len() / 3) as u32);
            if !found.is_empty() {
                let at = segments.buffer().slice(3 * region, found.len() as u64);
                model.device.write(&at, &found)?;
                let at = order.buffer().slice(region, tokens.len() as u64);
                model.device.write(&at, &tokens)?;
            }
        }
        Ok(counts)
    }

    /// First word of a shard's region in the scatter order.
    fn region(&self, shard: usize) -> u64 {
        let rows = u64::from(self.model.job.batch) * u64::from(self.model.job.seq_len);
        shard as u64 * rows.next_multiple_of(64)
    }

    pub(super) fn scatter(&self, recorder: &mut Recorder, counts: &[u32], g: Geometry) {
        let model = &self.model;
        let Some(back) = &model.workspace.backward else { return };
        let Some((segments, order)) = &back.scatter else { return };
        for (index, (part, &count)) in model.embedding.shards.iter().zip(counts).enumerate() {
            let Some(grad) = part.grad.as_ref().filter(|_| count > 0) else { continue };
            let region = self.region(index);
            let params = embedding_scatter::Params {
                segments: count,
                cols: model.embedding.cols,
                tokens: g.rows(),
                rows: part.shard.rows,
                scale: model.config.embedding_scale,
            };
            recorder.push(embedding_scatter::dispatch(
                params,
                segments.buffer().slice(3 * region, 3 * u64::from(count)),
                order.buffer().slice(region, g.rows().into()),
                back.d_x.clone(),
                grad.clone(),
            ));
        }
    }

    /// Norm of the gradient of window `index`, and what clips it.
    fn norm(&self, recorder: &mut Recorder, index: usize) -> Result<()> {
        let (model, opt) = (&self.model, self.optimizer);
        let group = &model.groups[index];
        let back = model.workspace.backward.as_ref().context("a training workspace")?;
        for (arena, gradient) in group.gradients.iter().enumerate() {
            let params = sum_squares::Params {
                count: group.values[arena].words() as u32,
                part0: arena as u32 * NORM_PARTS,
                parts: NORM_PARTS,
            };
            let partials = back.norm_partials.clone();
            recorder.push(sum_squares::dispatch(params, gradient.clone(), partials));
        }
        let params = grad_norm_scale::Params {
            parts: group.gradients.len() as u32 * NORM_PARTS,
            max_norm: opt.clip as f32,
        };
        let (partials, clip) = (back.norm_partials.clone(), back.clip.clone());
        recorder.push(grad_norm_scale::dispatch(params, partials, clip));
        Ok(())
    }

    /// Applies AdamW to window `index`, behind [`Trainer::norm`].
    fn update(&mut self, recorder: &mut Recorder, index: usize, lr: f64) -> Result<()> {
        self.updates[index] += 1;
        self.model.adapters_changed();
        let model = &self.model;
        let group = &model.groups[index];
        let back = model.workspace.backward.as_ref().context("a training workspace")?;
        let clip = back.clip.clone();
        for arena in 0..group.values.len() {
            recorder.push(self.adamw(index, arena, lr, &clip));
        }
        Ok(())
    }

    /// The update of an arena of window `index`, by the clipped gradient.
    fn adamw(&self, index: usize, arena: usize, lr: f64, clip: &Slice) -> Dispatch<Slice> {
        let (t, opt, group) = (self.updates[index], self.optimizer, &self.model.groups[index]);
        let correction = |beta: f64| adamw::correction(beta as f32, t);
        let value = group.values[arena].clone();
        let (gradient, clip) = (group.gradients[arena].clone(), clip.clone());
        let (m, v) = (group.m[arena].clone(), group.v[arena].clone());
        let params = adamw::Params {
            count: value.words() as u32,
            lr: lr as f32,
            beta1: opt.beta1 as f32,
            beta2: opt.beta2 as f32,
            eps: opt.eps as f32,
            weight_decay: opt.weight_decay as f32,
            correction1: correction(opt.beta1),
            correction2: correction(opt.beta2),
        };
        let Some(largest) = group.largest.get(arena) else {
            return adamw::dispatch(params, value, gradient, m, v, clip);
        };
        // Differs between steps, windows and arenas; the op hashes it.
        let seed = t.rotate_left(16) ^ (index as u32) << 8 ^ arena as u32;
        let state = [m, v, largest.clone()];
        adamw_8bit::dispatch((params, seed).into(), value, gradient, state, clip)
    }

    /// The gradients of window `index` by tensor, as the last [`Trainer::gradients`] left them.
    ///
    /// # Errors
    /// The device fails.
    pub fn read_gradients(&self, index: usize) -> Result<BTreeMap<String, (Owner, Vec<f32>)>> {
        let model = &self.model;
        let mut found = BTreeMap::new();
        for entry in &model.plan.groups[index].entries {
            let arena: &Slice = &model.groups[index].gradients[entry.arena];
            let slice = arena.buffer().slice(entry.offset, entry.words());
            let values = model.device.read_f32(&slice)?;
            found.insert(format!("{:?}", entry.owner), (entry.owner, values));
        }
        Ok(found)
    }
}
