//! A run while it goes on: its steps, what is recorded of them, and how it ends.

use std::time::Instant;

use anyhow::{Context, Result};
use edge_gpu::OpTime;
use edge_kernels::Category;
use edge_scheduler::trace::trace;
use serde_json::{Map, Value, json};

use super::best::Best;
use super::cache;
use super::course::{Budget, Course, Spent, Turn};
use super::event::{Ended, Events, TuneEvent};
use super::header::{self, Header};
use super::run::{CurvePoint, Outcome, Prepared};
use super::save;
use super::trainer::{AdamW, StepOutcome, Trainer};
use super::validate::Refresh;
use crate::batch::{Batch, Sampler};
use crate::cli::args::Method;
use crate::cli::options::TuneOptions;
use crate::cli::report::{BestReport, ExitLoss, TuneReport, VoteLoss, peak_host_bytes};
use crate::data::{Dataset, Stream};
use crate::evaluate::Evaluation;
use crate::metrics::{MetricsLog, Row, StepRow};
use crate::model::Model;
use crate::plan::choose::Chosen;
use crate::profile::ProfileReport;
use crate::run_dir::{RunDir, write_config};
use crate::session::Source;

/// The step whose timeline is written with `--trace`, from 0.
const TRACED_STEP: u64 = 2;

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
    outcomes: Vec<StepOutcome>,
    step_ms: Vec<f64>,
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
        model: Model,
        run_dir: RunDir,
        prepared: &Prepared,
        events: Events<'a>,
    ) -> Result<Self> {
        // With the micro-batch that the schedule chose.
        let micro_batch = model.job.batch as usize;
        write_config(run_dir.path(), &TuneOptions { micro_batch, ..options.clone() })?;
        let text = serde_json::to_string_pretty(&prepared.header)?;
        run_dir.write(header::FILE, text.as_bytes())?;
        let log = MetricsLog::create(run_dir.path(), model.exits.len())?;
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
            outcomes: Vec::new(),
            step_ms: Vec::new(),
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
    pub(super) fn run(&mut self, prepared: Prepared) -> Result<Outcome> {
        let Prepared { mut sampler, chosen, header, .. } = prepared;
        let chosen = chosen.as_ref();
        self.run_dir.event("start", Value::Null)?;
        let sequences = self.data.train.windows(self.seq_len) as u64;
        let model = &self.trainer.model;
        self.trainer.cache =
            cache::open(self.options, self.source, model, self.data, sequences, &self.run_dir)?;
        let before = self.validate("validate before")?;
        self.refresh_page();
        let device = self.trainer.model.device.clone();
        device.take_profile();
        self.trainer.model.take_stream_report();
        let ended = self.train(&mut sampler)?;
        let streaming = self.trainer.model.take_stream_report();
        self.times.extend(device.take_profile());
        self.write_trace(chosen)?;
        let judged = self.fit_vote()?;
        let after = self.validate("validate after")?;
        save::results(self.options, self.source, &self.trainer.model, self.run_dir.path())?;
        self.judge_last(after.as_ref())?;
        device.unseal();
        let mut report = self.report(before.as_ref(), after.as_ref(), ended);
        self.add_predictions(&mut report, &header);
        report.streaming = streaming;
        if let Some(judged) = judged {
            report.held_out_exits = ExitLoss::all(&judged.exits);
            report.votes = judged.votes;
        }
        let text = serde_json::to_string_pretty(&report).context("laying out the report")?;
        self.run_dir.write("result.json", text.as_bytes())?;
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
        let Some(spans) = self.trainer.take_trace() else { return Ok(()) };
        let device = &self.trainer.model.device;
        let predicted = chosen.map(|chosen| chosen.timeline(self.source, device)).transpose()?;
        let mut timelines = vec![("measured", &spans[..])];
        timelines.extend(predicted.iter().map(|timeline| ("predicted", &timeline.spans[..])));
        self.run_dir.write("timeline.json", trace(&timelines).as_bytes())
    }

    /// Trains until the budget is used, validations improve no more, or the listener stops it.
    fn train(&mut self, sampler: &mut Sampler) -> Result<Ended> {
        let options = self.options;
        let mut course = Course::new(options, self.trainer.windows(), self.budget);
        self.events.send(&TuneEvent::Started(self.budget));
        let mut phase = None;
        let mut evals = 1;
        let mut ended = Ended::Whole;
        while let Some(turn) = course.next(self.spent) {
            if self.events.stopped() {
                ended = Ended::Interrupted;
                break;
            }
            let started = Instant::now();
            if phase.replace(turn.phase) != Some(turn.phase) {
                self.trainer.begin(turn.window)?;
                let (phase, window) = (turn.phase as u64 + 1, turn.window as u64 + 1);
                self.events.send(&TuneEvent::Phase { phase, window });
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
        }
        self.events.send(&TuneEvent::Trained(ended));
        Ok(ended)
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
        self.outcomes.push(outcome);
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
        Ok(row)
    }

    fn report(
        &self,
        before: Option<&Evaluation>,
        after: Option<&Evaluation>,
        ended: Ended,
    ) -> TuneReport {
        let device = &self.trainer.model.device;
        let mut sorted = self.step_ms.clone();
        sorted.sort_by(f64::total_cmp);
        let memory = device.memory();
        let mut by_category = Map::new();
        for category in Category::ALL {
            let bytes = memory.peak[category.index()];
            by_category.insert(category.name().into(), Value::from(bytes));
        }
        let recent = self.outcomes.len().saturating_sub(20);
        let losses: Vec<f64> = self.outcomes[recent..].iter().map(|o| o.loss).collect();
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
            steps: self.outcomes.len() as u64,
            tokens: self.spent.tokens,
            trained_tokens: self.outcomes.iter().map(|o| o.trained_tokens).sum(),
            tokens_per_second: self.spent.tokens as f64 / self.spent.seconds.max(1e-9),
            step_ms_median: sorted.get(sorted.len() / 2).copied().unwrap_or(0.0),
            train_loss: losses.iter().sum::<f64>() / losses.len().max(1) as f64,
            val_loss_before: before.map(|r| if many { r.vote } else { r.last() }),
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
                let steps = self.step_ms.len() as u64;
                ProfileReport::new(&self.times, steps, self.step_ms.iter().sum())
            }),
            run_dir: self.run_dir.path().display().to_string(),
        }
    }
}
