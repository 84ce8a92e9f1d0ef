//! A run of `tune`: data, evaluation before and after, steps, and what is written.

use std::time::Instant;

use anyhow::{Context, Result};
use edge_gpu::{Device, OpTime};
use edge_kernels::Category;
use edge_scheduler::trace::trace;
use edge_scheduler::{Job, Plan};
use serde::Serialize;
use serde_json::{Map, Value, json};

use super::course::{Budget, Course, Spent, Turn};
use super::job;
use super::trainer::{AdamW, StepOutcome, Trainer};
use crate::batch::{Batch, Sampler, check_seq_len};
use crate::cli::args::Method;
use crate::cli::options::TuneOptions;
use crate::cli::report::{ExitLoss, Progress, TuneReport, VoteLoss, peak_host_bytes};
use crate::data::{DataSpec, Dataset, Stream};
use crate::evaluate::Evaluation;
use crate::exits::Vote;
use crate::interrupt;
use crate::model::{LoraInit, Model, device_facts};
use crate::plan::choose::{Chosen, choose, describe};
use crate::profile::ProfileReport;
use crate::run_dir::RunDir;
use crate::session::{Source, mebibytes};
use crate::tune::{cache, save};

/// The step whose timeline is written with `--trace`, from 0.
const TRACED_STEP: u64 = 2;

/// How a run ended.
pub struct Outcome {
    /// The report of `--json`.
    pub report: TuneReport,
    /// Whether Ctrl-C ended it.
    pub interrupted: bool,
    /// Seconds of training; validation does not count.
    pub seconds: f64,
    /// Validations before, during and after training.
    pub curve: Vec<CurvePoint>,
}

/// A validation, and what had been spent by then.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct CurvePoint {
    /// Seconds of training.
    pub seconds: f64,
    /// Tokens that went through the model in training.
    pub tokens: u64,
    /// Least loss among the exits, nats.
    pub val_loss: f64,
    /// Loss at each exit, from the bottom up, nats.
    pub val_exits: Vec<f64>,
    /// Loss of the vote, nats; of the only exit where there is one. A learned vote is fitted after
    /// training; before that the last exit speaks.
    pub val_vote: f64,
}

/// Runs `tune` with resolved options; `say` is for a person.
///
/// # Errors
/// One sentence that names the file, tensor or option.
pub fn run(
    options: &TuneOptions,
    source: &Source,
    device: &Device,
    quiet: bool,
) -> Result<Outcome> {
    run_on(&load_data(options, source)?, options, source, device, quiet)
}

/// Runs `tune` on data that are read already, as [`load_data`] reads them.
///
/// # Errors
/// As [`run`].
pub fn run_on(
    data: &Dataset,
    options: &TuneOptions,
    source: &Source,
    device: &Device,
    quiet: bool,
) -> Result<Outcome> {
    let seq_len = options.seq_len_for(source.config.max_position_embeddings);
    check_seq_len(seq_len, source.config.max_position_embeddings)?;
    let mut sampler = Sampler::new(&data.train, seq_len, options.seed)?;
    let job = job(options, source, seq_len)?;
    let about = (sampler.windows(), counted_share(data, seq_len, options.seed)?);
    let (job, chosen) = choose(options, source, device, job, about, quiet)?;
    let plan = Plan::new(&source.config.shape(), &job, device_facts(device));
    device.reset_peak();

    let model = load(options, source, device, &job, quiet)?;
    device.seal();
    cache::prepare(options)?;
    // Only now is everything checked: a run that cannot start leaves nothing behind.
    let run_dir = RunDir::create(options.out.as_deref(), options.method.name())?;
    // With the micro-batch that the schedule chose.
    let micro_batch = model.job.batch as usize;
    run_dir.write_config(&TuneOptions { micro_batch, ..options.clone() })?;
    model.keep_adapters_in(run_dir.path().to_owned());
    let mut trainer = Trainer::new(
        model,
        AdamW { weight_decay: options.weight_decay, clip: options.clip, ..AdamW::default() },
    );
    let sequences = data.train.windows(seq_len) as u64;
    trainer.cache = cache::open(options, source, &trainer.model, data, sequences, &run_dir)?;
    let mut session = Session {
        options,
        data,
        trainer,
        run_dir,
        quiet,
        seq_len,
        budget: options.budget(sampler.windows()),
        outcomes: Vec::new(),
        step_ms: Vec::new(),
        spent: Spent::default(),
        times: Vec::new(),
        curve: Vec::new(),
    };
    session.announce(source, mebibytes(plan.bytes()), chosen.as_ref());
    let before = session.validate("validate before")?;
    device.take_profile();
    session.trainer.model.take_stream_report();
    let interrupted = session.train(&mut sampler)?;
    let streaming = session.trainer.model.take_stream_report();
    session.times.extend(device.take_profile());
    session.write_trace(chosen.as_ref(), source)?;
    let judged = session.fit_vote()?;
    let after = session.validate("validate after")?;
    save::results(options, source, &session.trainer.model, &session.run_dir)?;
    device.unseal();
    let mut report = session.report(before.as_ref(), after.as_ref(), device);
    report.predicted_peak_device_bytes = Some(plan.bytes());
    report.predicted_step_ms = chosen.as_ref().map(|chosen| 1e3 * chosen.schedule.step_s);
    report.streaming = streaming;
    if let Some(judged) = judged {
        report.held_out_exits = ExitLoss::all(&judged.exits);
        report.votes = judged.votes;
    }
    let text = serde_json::to_string_pretty(&report).context("laying out the report")?;
    session.run_dir.write("result.json", text.as_bytes())?;
    let Session { spent, curve, .. } = session;
    Ok(Outcome { report, interrupted, seconds: spent.seconds, curve })
}

fn load(
    options: &TuneOptions,
    source: &Source,
    device: &Device,
    job: &Job,
    quiet: bool,
) -> Result<Model> {
    let tensors = 7 * job.blocks.len() as u64 + 1;
    let mut loading = Progress::new("load", tensors, quiet);
    let scale = options.alpha / options.rank as f64;
    let init = LoraInit { scale: scale as f32, seed: options.seed };
    let (checkpoint, config) = (&source.checkpoint, &source.config);
    let model = Model::load(device, checkpoint, config, job, init, &mut |_| {
        loading.step(String::new);
    })?;
    loading.finish();
    Ok(model)
}

/// The options' data, or the bundled text.
///
/// # Errors
/// As [`Dataset::load`].
pub fn load_data(options: &TuneOptions, source: &Source) -> Result<Dataset> {
    let spec = DataSpec {
        data: options.data.clone(),
        valid: options.valid.clone(),
        val_fraction: options.val_fraction,
        val_items: options.val_items,
        train_on_prompt: options.train_on_prompt,
    };
    Dataset::load(&spec, &source.tokenizer)
}

/// The share of targets that count, by the first sequences.
fn counted_share(data: &Dataset, seq_len: usize, seed: u64) -> Result<f64> {
    const SEQUENCES: usize = 16;
    let mut sampler = Sampler::new(&data.train, seq_len, seed)?;
    let trained: usize =
        (0..SEQUENCES).map(|_| sampler.next_batch(&data.train, 1).trained_tokens).sum();
    Ok(trained as f64 / (SEQUENCES * (seq_len - 1).max(1)) as f64)
}

struct Session<'a> {
    options: &'a TuneOptions,
    data: &'a Dataset,
    trainer: Trainer,
    run_dir: RunDir,
    quiet: bool,
    seq_len: usize,
    budget: Budget,
    outcomes: Vec<StepOutcome>,
    step_ms: Vec<f64>,
    spent: Spent,
    /// Times of the ops in training, with `--profile`.
    times: Vec<OpTime>,
    curve: Vec<CurvePoint>,
}

impl Session<'_> {
    fn announce(&self, source: &Source, planned: String, chosen: Option<&Chosen>) {
        let fit = self.data.train.fit(self.seq_len);
        if fit.cut + fit.skipped > 0 {
            self.say(&format!(
                "{} of {} examples are cut at {} tokens (--seq-len), {} are left out because their \
                 answer begins behind that",
                fit.cut,
                self.data.train.examples.len(),
                self.seq_len,
                fit.skipped
            ));
        }
        if self.data.train.chats && !source.tokenizer.has_chat_template() {
            self.say("the model has no chat template: roles are written as ### User: and so on");
        }
        let (model, options) = (&self.trainer.model, self.options);
        let trained: u64 = model.plan.groups.iter().map(|group| group.parameters()).sum();
        self.say(&format!(
            "{} on {}: {} blocks, {:.2} M parameters, {:.3} M trained, {} windows, {}; \
             {}, {} x {} tokens a step; {} of device memory planned",
            options.method.name(),
            model.device.info().name,
            model.shape.num_blocks,
            model.shape.parameters() as f64 / 1e6,
            trained as f64 / 1e6,
            model.exits.len(),
            source.precision(options.bits),
            self.budget,
            options.batch_size,
            self.seq_len,
            planned,
        ));
        if let Some(chosen) = chosen {
            self.say(&describe(&chosen.schedule));
        }
    }

    /// Writes the step that was traced, if one was, beside what was predicted.
    fn write_trace(&mut self, chosen: Option<&Chosen>, source: &Source) -> Result<()> {
        let Some(spans) = self.trainer.take_trace() else { return Ok(()) };
        let device = &self.trainer.model.device;
        let predicted = chosen.map(|chosen| chosen.timeline(source, device)).transpose()?;
        let mut timelines = vec![("measured", &spans[..])];
        timelines.extend(predicted.iter().map(|timeline| ("predicted", &timeline.spans[..])));
        self.run_dir.write("timeline.json", trace(&timelines).as_bytes())
    }

    fn say(&self, text: &str) {
        Progress::new("", 0, self.quiet).say(text);
    }

    fn validate(&mut self, label: &'static str) -> Result<Option<Evaluation>> {
        let Some(stream) = &self.data.valid else { return Ok(None) };
        let model = &self.trainer.model;
        let sequences = model.job.eval_batch as usize;
        let count = stream.eval_windows(self.seq_len).div_ceil(sequences) as u64;
        let mut progress = Progress::new(label, count, self.quiet);
        let batches = stream.eval_batches(self.seq_len, sequences, None)?;
        let result = model.evaluate(batches, self.options.vote, |_| progress.step(String::new))?;
        progress.finish();
        let exits: Vec<String> = result.exits.iter().map(|loss| format!("{loss:.4}")).collect();
        let vote = match model.exits.len() {
            1 => String::new(),
            _ => format!(", vote {} {:.4}", self.options.vote.name(), result.vote),
        };
        let tokens = result.tokens;
        self.say(&format!(
            "{label}: loss {} at the exits{vote} ({tokens} tokens)",
            exits.join(" / ")
        ));
        self.curve.push(CurvePoint {
            seconds: self.spent.seconds,
            tokens: self.spent.tokens,
            val_loss: result.exits.iter().copied().fold(f64::INFINITY, f64::min),
            val_exits: result.exits.clone(),
            val_vote: result.vote,
        });
        Ok(Some(result))
    }

    /// Fits the learned vote on the first half of the validation data, and judges all votes on the
    /// second.
    fn fit_vote(&mut self) -> Result<Option<Evaluation>> {
        let (Some(stream), true) = (&self.data.valid, self.trainer.windows() > 1) else {
            return Ok(None);
        };
        let model = &mut self.trainer.model;
        let sequences = model.job.eval_batch as usize;
        let mut batches: Vec<_> = stream.eval_batches(self.seq_len, sequences, None)?.collect();
        let held_out = batches.split_off(batches.len() / 2);
        if batches.is_empty() {
            self.say("the validation data are too short to fit a vote on: the last exit speaks");
            return Ok(None);
        }
        let count = (batches.len() + held_out.len()) as u64;
        let mut progress = Progress::new("fit the vote", count, self.quiet);
        let scores = model.score_exits(batches.into_iter(), || progress.step(String::new))?;
        let learned = scores.fit()?;
        model.set_learned(learned.clone())?;
        let judged = model.evaluate_all(held_out.into_iter(), &Vote::ALL, |_| {
            progress.step(String::new);
        })?;
        progress.finish();
        let shown = |values: &[f32]| {
            values.iter().map(|x| format!("{x:.2}")).collect::<Vec<_>>().join(" / ")
        };
        self.say(&format!(
            "vote learned on the first half of the validation data: weights {}, temperatures {}",
            shown(&learned.weights),
            shown(&learned.temperatures)
        ));
        let votes = judged.votes.iter();
        let votes: Vec<String> = votes
            .map(|v| {
                format!("{} {:.4} ({:.3} ms/token)", v.rule.name(), v.val_loss, v.ms_per_token)
            })
            .collect();
        let exits: Vec<String> = judged.exits.iter().map(|loss| format!("{loss:.4}")).collect();
        self.say(&format!(
            "on the second half: loss {} at the exits, {}",
            exits.join(" / "),
            votes.join(", ")
        ));
        Ok(Some(judged))
    }

    /// Trains until the budget is used or Ctrl-C; says whether it was the latter.
    fn train(&mut self, sampler: &mut Sampler) -> Result<bool> {
        let options = self.options;
        let mut course = Course::new(options, self.trainer.windows(), self.budget);
        let (len, _) = self.budget.progress(self.spent);
        let mut progress = Progress::new("tune", len, self.quiet);
        let mut phase = None;
        let mut evals = 1;
        while let Some(turn) = course.next(self.spent) {
            if interrupt::requested() {
                progress.finish();
                return Ok(true);
            }
            let started = Instant::now();
            if phase.replace(turn.phase) != Some(turn.phase) {
                self.trainer.begin(turn.window)?;
            }
            let batches = self.batches(&self.data.train, sampler);
            // A step whose kernels are compiled and whose slots are as a step leaves them.
            if options.trace && self.spent.steps == TRACED_STEP {
                self.trainer.start_trace();
            }
            let outcome = self.trainer.step(turn.window, &batches, turn.lr)?;
            let ms = started.elapsed().as_secs_f64() * 1e3;
            let tokens: usize = batches.iter().map(|batch| batch.tokens).sum();
            self.spent.steps += 1;
            self.spent.seconds += ms / 1e3;
            self.spent.tokens += tokens as u64;
            self.step_ms.push(ms);
            self.outcomes.push(outcome);
            self.record(turn, ms, &outcome)?;
            let peak = self.trainer.model.device.memory().peak_total;
            let (_, position) = self.budget.progress(self.spent);
            progress.reach(position, || {
                format!(
                    "loss {:.4}, lr {:.2e}, {:.0} tokens/s, peak {}",
                    outcome.loss,
                    turn.lr,
                    tokens as f64 / ms * 1e3,
                    mebibytes(peak)
                )
            });
            let steps = self.spent.steps;
            let due = options.eval_every > 0 && steps.is_multiple_of(options.eval_every);
            let done = self.budget.done(self.spent);
            // The last of `evals` validations is the one after training.
            let due = due || options.evals > 0 && done * options.evals as f64 >= evals as f64;
            if due && done < 1.0 {
                evals = (done * options.evals as f64) as u64 + 1;
                self.validate_during(steps)?;
            }
        }
        progress.finish();
        Ok(false)
    }

    fn validate_during(&mut self, step: u64) -> Result<()> {
        let device = self.trainer.model.device.clone();
        self.times.extend(device.take_profile());
        let result = self.validate("validate")?;
        // The profile is of training alone.
        device.take_profile();
        let Some(result) = result else { return Ok(()) };
        let record = json!({"step": step, "seconds": self.spent.seconds,
            "tokens": self.spent.tokens, "val_loss": result.last(), "val_exits": result.exits,
            "val_vote": result.vote});
        self.run_dir.metric(&record)
    }

    fn batches(&self, stream: &Stream, sampler: &mut Sampler) -> Vec<Batch> {
        let micro = self.trainer.model.job.batch as usize;
        let count = self.options.batch_size / micro;
        (0..count).map(|_| sampler.next_batch(stream, micro)).collect()
    }

    fn record(&mut self, turn: Turn, ms: f64, outcome: &StepOutcome) -> Result<()> {
        self.run_dir.metric(&json!({
            "step": self.spent.steps,
            "exit": turn.window + 1,
            "loss": outcome.loss,
            "grad_norm": outcome.grad_norm,
            "lr": turn.lr,
            "step_ms": ms,
            "seconds": self.spent.seconds,
            "tokens": self.spent.tokens,
        }))
    }

    fn report(
        &self,
        before: Option<&Evaluation>,
        after: Option<&Evaluation>,
        device: &Device,
    ) -> TuneReport {
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
