//! A run while it goes on: its steps, what is recorded of them, and how it ends.

use std::time::Instant;

use anyhow::{Context, Result, ensure};
use edge_gpu::OpTime;
use edge_kernels::Category;
use edge_scheduler::trace::trace;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};

use super::best::Best;
use super::cache;
use super::checkpoints::{self, State};
use super::course::{Budget, Course, Spent, Turn};
use super::event::{Ended, Events, TuneEvent};
use super::header::{self, Header};
use super::rest::Rests;
use super::resume::Resume;
use super::run::{CurvePoint, Outcome, Prepared};
use super::save;
use super::trainer::{AdamW, StepOutcome, Trainer};
use super::validate::{Fitted, Refresh};
use crate::batch::{Batch, Sampler};
use crate::cli::args::Method;
use crate::cli::options::TuneOptions;
use crate::cli::report::{BestReport, ExitLoss, TuneReport, VoteLoss, peak_host_bytes};
use crate::data::{Dataset, Stream};
use crate::evaluate::Evaluation;
use crate::metrics::{Logs, Metrics, MetricsLog, Row, StepRow};
use crate::model::Model;
use crate::plan::choose::Chosen;
use crate::profile::ProfileReport;
use crate::run_dir::{RunDir, write_config};
use crate::session::Source;

/// The step whose timeline is written with `--trace`, from 0.
const TRACED_STEP: u64 = 2;

/// File with the report of a run that came to its end.
pub const RESULT: &str = "result.json";

/// Steps without an update one after the other behind which a run ends.
const SKIPPED_MAX: u64 = 8;

/// Steps whose loss or gradient was no number.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Skipped {
    /// In all.
    pub all: u64,
    /// Up to the last step.
    pub row: u64,
}

/// A run that goes on.
pub(super) struct Session<'a> {
    pub(super) options: &'a TuneOptions,
    pub(super) data: &'a Dataset,
    pub(super) source: &'a Source,
    pub(super) trainer: Trainer,
    pub(super) run_dir: RunDir,
    pub(super) log: MetricsLog,
    pub(super) events: Events<'a>,
    pub(super) seq_len: usize,
    pub(super) budget: Budget,
    /// Of each step.
    losses: Vec<f64>,
    step_ms: Vec<f64>,
    /// How many of them another process did.
    steps_before: usize,
    pub(super) trained_tokens: u64,
    pub(super) val_loss_before: Option<f64>,
    pub(super) skipped: Skipped,
    pub(super) rests: Rests,
    /// The options as they are written: with the micro-batch that the schedule chose.
    pub(super) written: TuneOptions,
    /// The step of the last checkpoint.
    pub(super) checkpointed: Option<u64>,
    /// What model and data are, once a checkpoint says so.
    pub(super) hashes: Option<(String, String)>,
    pub(super) spent: Spent,
    /// Times of the ops in training, with `--profile`.
    pub(super) times: Vec<OpTime>,
    pub(super) curve: Vec<CurvePoint>,
    pub(super) best: Best,
    pub(super) page: Refresh,
}

impl<'a> Session<'a> {
    pub(super) fn new(
        data: &'a Dataset,
        options: &'a TuneOptions,
        source: &'a Source,
        (model, run_dir, logs): (Model, RunDir, Option<Logs>),
        prepared: &Prepared,
        events: Events<'a>,
    ) -> Result<Self> {
        let written = TuneOptions { micro_batch: model.job.batch as usize, ..options.clone() };
        write_config(run_dir.path(), &written)?;
        let text = serde_json::to_string_pretty(&prepared.header)?;
        run_dir.write(header::FILE, text.as_bytes())?;
        let log = match &logs {
            None => MetricsLog::create(run_dir.path(), model.exits.len())?,
            Some(logs) => MetricsLog::resume(run_dir.path(), model.exits.len(), logs)?,
        };
        model.keep_adapters_in(run_dir.path().to_owned());
        let optimizer =
            AdamW { weight_decay: options.weight_decay, clip: options.clip, ..AdamW::default() };
        Ok(Self {
            options,
            data,
            source,
            trainer: Trainer::new(model, optimizer),
            run_dir,
            log,
            events,
            seq_len: prepared.seq_len,
            budget: options.budget(prepared.sampler.windows()),
            losses: Vec::new(),
            step_ms: Vec::new(),
            steps_before: 0,
            trained_tokens: 0,
            val_loss_before: None,
            skipped: Skipped::default(),
            rests: Rests::new(options),
            written,
            checkpointed: None,
            hashes: None,
            spent: Spent::default(),
            times: Vec::new(),
            curve: Vec::new(),
            best: Best::new(options.early_stopping),
            page: Refresh::default(),
        })
    }

    /// Validates, trains, validates, and writes the results.
    ///
    /// # Errors
    /// The device fails or the disk is full.
    pub(super) fn run(&mut self, prepared: Prepared, resume: Option<&Resume>) -> Result<Outcome> {
        let Prepared { mut sampler, chosen, header, .. } = prepared;
        let chosen = chosen.as_ref();
        match resume {
            None => self.run_dir.event("start", Value::Null)?,
            Some(resume) => self.go_on(resume)?,
        }
        let sequences = self.data.train.windows(self.seq_len) as u64;
        let model = &self.trainer.model;
        self.trainer.cache =
            cache::open(self.options, self.source, model, self.data, sequences, &self.run_dir)?;
        let state = resume.and_then(Resume::state);
        if state.is_none() {
            let before = self.validate("validate before")?;
            let many = self.trainer.windows() > 1;
            self.val_loss_before = before.map(|r| if many { r.vote } else { r.last() });
        }
        self.refresh_page();
        let device = self.trainer.model.device.clone();
        device.take_profile();
        self.trainer.model.take_stream_report();
        let ended = self.train(&mut sampler, state)?;
        let streaming = self.trainer.model.take_stream_report();
        self.times.extend(device.take_profile());
        self.write_trace(chosen)?;
        let fitted = self.fit_vote()?;
        let after = self.validate_after(fitted.as_ref())?;
        save::results(self.options, self.source, &self.trainer.model, self.run_dir.path())?;
        // A run that is interrupted goes on from a checkpoint that does not know of this loss.
        if ended != Ended::Interrupted {
            self.judge_last(after.as_ref())?;
        }
        device.unseal();
        let mut report = self.report(after.as_ref(), ended);
        self.add_predictions(&mut report, &header);
        report.streaming = streaming;
        if let Some(Fitted { held_out, .. }) = fitted {
            report.held_out_exits = ExitLoss::all(&held_out.exits);
            report.votes = held_out.votes;
        }
        let text = serde_json::to_string_pretty(&report).context("laying out the report")?;
        self.run_dir.write(RESULT, text.as_bytes())?;
        let curve = std::mem::take(&mut self.curve);
        Ok(Outcome { report, seconds: self.spent.seconds, curve })
    }

    fn add_predictions(&self, report: &mut TuneReport, header: &Header) {
        report.predicted_peak_device_bytes = Some(header.planned_bytes);
        report.predicted_step_ms = header.predicted_step_ms;
    }

    /// Writes how the run ended, and its page for the last time.
    ///
    /// # Errors
    /// That of the run, or the disk is full.
    pub(super) fn end(mut self, outcome: Result<Outcome>) -> Result<Outcome> {
        let whole = outcome.as_ref().is_ok_and(|outcome| !outcome.report.interrupted);
        if let Some(cache) = self.trainer.cache.as_mut().filter(|_| !whole) {
            // The run may go on.
            cache.keep_files();
        }
        let details = match &outcome {
            Ok(outcome) if outcome.report.interrupted => json!({"status": "interrupted"}),
            Ok(_) => json!({"status": "finished"}),
            Err(error) => json!({"status": "failed", "error": format!("{error:#}")}),
        };
        let flushed = self.log.flush().and_then(|()| self.run_dir.event("end", details));
        self.write_page();
        // The run's own error says more.
        let outcome = outcome?;
        flushed?;
        self.events.send(&TuneEvent::Saved(self.run_dir.path().to_owned()));
        Ok(outcome)
    }

    /// Writes the step that was traced, if one was, beside what was predicted.
    fn write_trace(&mut self, chosen: Option<&Chosen>) -> Result<()> {
        let Some(spans) = self.trainer.take_trace() else {
            if self.options.trace {
                let first = TRACED_STEP + 1;
                let text = format!("no timeline is written: it is of step {first}, not run here");
                self.events.notice(text);
            }
            return Ok(());
        };
        let device = &self.trainer.model.device;
        let predicted = chosen.map(|chosen| chosen.timeline(self.source, device)).transpose()?;
        let mut timelines = vec![("measured", &spans[..])];
        timelines.extend(predicted.iter().map(|timeline| ("predicted", &timeline.spans[..])));
        self.run_dir.write("timeline.json", trace(&timelines).as_bytes())
    }

    /// Trains until the budget is used, validations improve no more, or the listener stops it.
    fn train(&mut self, sampler: &mut Sampler, state: Option<&State>) -> Result<Ended> {
        let options = self.options;
        let course = Course::new(options, self.trainer.windows(), self.budget);
        let mut course = course.behind(self.spent.steps);
        self.events.send(&TuneEvent::Started(self.budget));
        let mut last = state.map(|state| {
            // The learning rate is that of the next step.
            Turn { phase: state.phase, window: state.window, lr: 0.0 }
        });
        let mut evals = state.map_or(1u64, |state| state.evals);
        let mut ended = Ended::Whole;
        if let Some(turn) = last {
            self.trainer.open_trunk(turn.window)?;
            self.send_phase(turn);
        }
        while let Some(turn) = course.next(self.spent) {
            self.rest(|session| match last {
                Some(last) => session.checkpoint(last, evals, sampler),
                None => Ok(()),
            })?;
            if self.events.stopped() {
                ended = Ended::Interrupted;
                if let Some(last) = last {
                    self.checkpoint(last, evals, sampler)?;
                }
                break;
            }
            let started = Instant::now();
            if last.replace(turn).map(|last| last.phase) != Some(turn.phase) {
                self.trainer.begin(turn.window)?;
                self.send_phase(turn);
            }
            let batches = self.batches(&self.data.train, sampler);
            // A step whose kernels are compiled and whose slots are as a step leaves them.
            if options.trace && self.spent.steps == TRACED_STEP {
                self.trainer.start_trace();
            }
            let outcome = self.trainer.step(turn.window, &batches, turn.lr)?;
            let ms = started.elapsed().as_secs_f64() * 1e3;
            let tokens: usize = batches.iter().map(|batch| batch.tokens).sum();
            let row = self.record(turn, ms, tokens, outcome)?;
            let due = options.eval_every > 0 && row.step.is_multiple_of(options.eval_every);
            // The last of `evals` validations is the one after training.
            let due = due || options.evals > 0 && row.done * options.evals as f64 >= evals as f64;
            if due && row.done < 1.0 {
                evals = (row.done * options.evals as f64) as u64 + 1;
                if self.validate_during(course.is_last(turn))? {
                    ended = Ended::Early;
                    break;
                }
            }
            let every = options.checkpoint_every;
            if every > 0 && row.step.is_multiple_of(every) && row.done < 1.0 {
                self.checkpoint(turn, evals, sampler)?;
            }
        }
        self.events.send(&TuneEvent::Trained(ended));
        Ok(ended)
    }

    fn send_phase(&mut self, turn: Turn) {
        let (phase, window) = (turn.phase as u64 + 1, turn.window as u64 + 1);
        self.events.send(&TuneEvent::Phase { phase, window });
    }

    /// Takes over what is told of steps that were done before.
    pub(super) fn read_steps(&mut self) -> Result<()> {
        let steps = Metrics::read(self.run_dir.path())?.steps;
        self.losses = steps.iter().map(|row| row.loss).collect();
        self.step_ms = steps.iter().map(|row| row.step_ms).collect();
        self.steps_before = self.step_ms.len();
        Ok(())
    }

    fn batches(&self, stream: &Stream, sampler: &mut Sampler) -> Vec<Batch> {
        let micro = self.trainer.model.job.batch as usize;
        let count = self.options.batch_size / micro;
        (0..count).map(|_| sampler.next_batch(stream, micro)).collect()
    }

    /// Counts a step and adds its row to the metrics.
    fn record(
        &mut self,
        turn: Turn,
        step_ms: f64,
        tokens: usize,
        outcome: StepOutcome,
    ) -> Result<StepRow> {
        self.spent.steps += 1;
        self.spent.seconds += step_ms / 1e3;
        self.spent.tokens += tokens as u64;
        self.step_ms.push(step_ms);
        self.losses.push(outcome.loss);
        self.trained_tokens += outcome.trained_tokens;
        let row = StepRow {
            step: self.spent.steps,
            phase: turn.phase as u64 + 1,
            window: turn.window as u64 + 1,
            loss: outcome.loss,
            lr: turn.lr,
            grad_norm: outcome.grad_norm,
            tokens: self.spent.tokens,
            tokens_per_s: tokens as f64 / step_ms * 1e3,
            step_ms,
            seconds: self.spent.seconds,
            device_bytes: self.trainer.model.device.memory().peak_total,
            budget_bytes: self.options.memory_budget.map(|budget| budget.0),
            done: self.budget.done(self.spent),
        };
        self.log.push(&Row::Step(row.clone()))?;
        self.events.send(&TuneEvent::Step(row.clone()));
        self.judge_numbers(outcome)?;
        Ok(row)
    }

    /// Counts steps whose loss or gradient is no number: the trainer leaves them out. Many of them
    /// one after the other are a run that diverged.
    fn judge_numbers(&mut self, outcome: StepOutcome) -> Result<()> {
        if outcome.is_finite() {
            self.skipped.row = 0;
            return Ok(());
        }
        let step = self.spent.steps;
        self.skipped.all += 1;
        self.skipped.row += 1;
        let kept = match self.checkpointed {
            Some(step) => {
                format!(
                    "step {step} is in {}",
                    checkpoints::path(self.run_dir.path(), step).display()
                )
            }
            None => "there is no checkpoint from before (--checkpoint-every)".to_owned(),
        };
        ensure!(
            self.skipped.row < SKIPPED_MAX,
            "the loss or its gradient was no number in the last {SKIPPED_MAX} steps, up to step \
             {step}: start again with a lower --lr or --clip; {kept}"
        );
        if self.skipped.all == 1 {
            self.events.notice(format!(
                "step {step} is left out, its loss or gradient is no number; {SKIPPED_MAX} such \
                 steps one after the other end the run"
            ));
        }
        self.run_dir.event("skipped", json!({"step": step}))
    }

    fn report(&self, after: Option<&Evaluation>, ended: Ended) -> TuneReport {
        let device = &self.trainer.model.device;
        let mut sorted = self.step_ms.clone();
        sorted.sort_by(f64::total_cmp);
        let memory = device.memory();
        let mut by_category = Map::new();
        for category in Category::ALL {
            let bytes = memory.peak[category.index()];
            by_category.insert(category.name().into(), Value::from(bytes));
        }
        let losses = &self.losses[self.losses.len().saturating_sub(20)..];
        let exits = after.map(|result| ExitLoss::all(&result.exits));
        let rule = self.options.vote.name().to_string();
        let many = self.trainer.windows() > 1;
        let voted = after.filter(|_| many).map(|r| VoteLoss { rule, val_loss: r.vote });
        let best = match self.options.method {
            Method::Edge => after.map(|result| result.vote),
            _ => after.map(Evaluation::last),
        };
        TuneReport {
            method: self.options.method.name().into(),
            device: device.info().name.clone(),
            steps: self.spent.steps,
            tokens: self.spent.tokens,
            trained_tokens: self.trained_tokens,
            skipped_steps: self.skipped.all,
            tokens_per_second: self.spent.tokens as f64 / self.spent.seconds.max(1e-9),
            step_ms_median: sorted.get(sorted.len() / 2).copied().unwrap_or(0.0),
            train_loss: losses.iter().sum::<f64>() / losses.len().max(1) as f64,
            val_loss_before: self.val_loss_before,
            val_loss: best,
            val_perplexity: best.map(f64::exp),
            exits: exits.unwrap_or_default(),
            vote: voted,
            peak_device_bytes: memory.peak_total,
            peak_device_bytes_by_category: by_category,
            peak_host_bytes: peak_host_bytes(),
            trunk_cache: self.trainer.cache.as_ref().map(|cache| cache.report()),
            held_out_exits: Vec::new(),
            votes: Vec::new(),
            best: self.best.found.map(|(step, val_loss)| BestReport { step, val_loss }),
            stopped_early: ended == Ended::Early,
            interrupted: ended == Ended::Interrupted,
            predicted_peak_device_bytes: None,
            predicted_step_ms: None,
            streaming: None,
            profile: self.options.profile.then(|| {
                let own = &self.step_ms[self.steps_before.min(self.step_ms.len())..];
                ProfileReport::new(&self.times, own.len() as u64, own.iter().sum())
            }),
            run_dir: self.run_dir.path().display().to_string(),
        }
    }
}
