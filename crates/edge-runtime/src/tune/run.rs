//! A run of `tune`: what is checked and chosen before it, and how it ends.

use std::path::PathBuf;

use anyhow::{Context, Result, bail, ensure};
use edge_gpu::Device;
use edge_scheduler::{Job, Plan};
use serde::{Deserialize, Serialize};

use super::event::{Events, Listener, TuneEvent};
use super::header::{Header, Parts};
use super::recover::Recovery;
use super::resume::Resume;
use super::session::Session;
use super::{cache, disk, job};
use crate::adapter;
use crate::batch::{Sampler, check_seq_len};
use crate::cli::Misfit;
use crate::cli::options::TuneOptions;
use crate::cli::report::TuneReport;
use crate::data::{DataSpec, Dataset};
use crate::metrics::{number, numbers};
use crate::model::{LoraInit, Model, device_facts};
use crate::packing::Packing;
use crate::plan::choose::{Chosen, choose, predict};
use crate::plan::price::Pricer;
use crate::run_dir::RunDir;
use crate::session::{Source, mebibytes};

/// How a run ended.
pub struct Outcome {
    /// The report of `--json`.
    pub report: TuneReport,
    /// Seconds of training; validation does not count.
    pub seconds: f64,
    /// Validations before, during and after training.
    pub curve: Vec<CurvePoint>,
}

/// A validation, and what had been spent by then.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct CurvePoint {
    /// Seconds of training.
    pub seconds: f64,
    /// Tokens that went through the model in training.
    pub tokens: u64,
    /// Least loss among the exits, nats.
    #[serde(deserialize_with = "number")]
    pub val_loss: f64,
    /// Loss at each exit, from the bottom up, nats.
    #[serde(deserialize_with = "numbers")]
    pub val_exits: Vec<f64>,
    /// Loss of the vote, nats; of the only exit where there is one. A learned vote is fitted after
    /// training; before that the last exit speaks.
    #[serde(deserialize_with = "number")]
    pub val_vote: f64,
}

/// Runs `tune` with resolved options, on data as [`load_data`] reads them; `resume`: a run that
/// goes on.
///
/// # Errors
/// One sentence that names the file, tensor or option.
pub fn run_on(
    data: &Dataset,
    options: &TuneOptions,
    source: &Source,
    device: &Device,
    listener: Listener<'_>,
    resume: Option<&Resume>,
) -> Result<Outcome> {
    let data = &data.with_packing(options.packing);
    let mut events = Events::new(listener);
    let (mut recovery, mut again) = (Recovery::default(), None);
    let mut device = device.clone();
    loop {
        let resume = again.as_ref().or(resume);
        let mut run = resume.map(|resume| resume.run().to_owned());
        let result = attempt(data, options, source, &device, events.lend(), resume, &mut run);
        let error = match result {
            Err(error) => error,
            ended => return ended,
        };
        let taken_up = recovery.after(error, &device, run.as_deref(), &mut events)?;
        let begun;
        (device, begun) = taken_up;
        again = begun;
    }
}

/// A run up to its end, or until the device fails; `run` becomes its directory once it has one.
fn attempt<'a>(
    data: &'a Dataset,
    options: &'a TuneOptions,
    source: &'a Source,
    device: &Device,
    mut events: Events<'a>,
    resume: Option<&Resume>,
    run: &mut Option<PathBuf>,
) -> Result<Outcome> {
    let prepared = prepare(data, options, source, device, resume, &mut events)?;
    announce(data, source, &prepared, &mut events);
    events.check()?;
    device.reset_peak();
    let model = load(options, source, device, &prepared.job, &mut events)?;
    if let (Some(dir), None) = (&options.adapter, resume.and_then(Resume::state)) {
        let (_, tensors) = adapter::load(dir, &source.config)?;
        let set = model.set_adapter(&tensors);
        set.with_context(|| format!("cannot start from {}: check --targets", dir.display()))?;
    }
    events.send(&TuneEvent::Loaded);
    events.check()?;
    device.seal();
    let outcome = train(data, options, source, (model, run), prepared, events, resume);
    // A run that fails on its way leaves the device sealed.
    device.unseal();
    outcome
}

fn train<'a>(
    data: &'a Dataset,
    options: &'a TuneOptions,
    source: &'a Source,
    (model, run): (Model, &mut Option<PathBuf>),
    prepared: Prepared,
    events: Events<'a>,
    resume: Option<&Resume>,
) -> Result<Outcome> {
    cache::prepare(options)?;
    disk::check(options, &model, resume.map(Resume::run))?;
    // Only now is everything checked: a run that cannot start leaves nothing behind.
    let run_dir = match resume {
        None => RunDir::create(options.out.as_deref(), options.method.name())?,
        Some(resume) => RunDir::resume(resume.run(), resume.step())?,
    };
    *run = Some(run_dir.path().to_owned());
    let logs = resume.map(|resume| resume.state().map(|s| s.logs.clone()).unwrap_or_default());
    let parts = (model, run_dir, logs);
    let mut session = Session::new(data, options, source, parts, &prepared, events)?;
    let outcome = session.run(prepared, resume);
    session.end(outcome)
}

/// What a run with these options would be: nothing is run and no directory made.
///
/// # Errors
/// As [`run_on`].
pub fn dry_run(
    data: &Dataset,
    options: &TuneOptions,
    source: &Source,
    device: &Device,
    listener: Listener<'_>,
) -> Result<Header> {
    let data = &data.with_packing(options.packing);
    let mut events = Events::new(listener);
    let prepared = prepare(data, options, source, device, None, &mut events)?;
    announce(data, source, &prepared, &mut events);
    Ok(prepared.header)
}

/// What is known before anything is loaded.
pub(super) struct Prepared {
    pub(super) sampler: Sampler,
    pub(super) seq_len: usize,
    pub(super) job: Job,
    pub(super) chosen: Option<Chosen>,
    pub(super) header: Header,
}

fn prepare(
    data: &Dataset,
    options: &TuneOptions,
    source: &Source,
    device: &Device,
    resume: Option<&Resume>,
    events: &mut Events<'_>,
) -> Result<Prepared> {
    let seq_len = options.seq_len_for(source.config.max_position_embeddings);
    check_seq_len(seq_len, source.config.max_position_embeddings)?;
    check_validation(data, options, seq_len)?;
    let state = resume.and_then(Resume::state);
    let position = state.map(|state| state.position).unwrap_or_default();
    let sampler = Sampler::resume(&data.train, seq_len, options.seed, position)?;
    let mut job = job(options, source, seq_len)?;
    let about = (sampler.windows(), counted_share(data, seq_len, options.seed)?);
    let (job, chosen) = match (resume, state) {
        (Some(resume), Some(state)) => {
            resume.check(source, data)?;
            state.order.apply(&mut job, device.stages_uploads())?;
            (job, None)
        }
        _ => choose(options, source, device, job, about, events)?,
    };
    // A model is not to be loaded for nothing.
    Pricer::check(device, &source.config, &job).context("lower --micro-batch or --seq-len")?;
    let plan = Plan::new(&source.config.shape(), &job, device_facts(device));
    if let (Some(_), Some(budget)) = (state, options.memory_budget)
        && plan.bytes() > budget.0
    {
        bail!(Misfit(format!(
            "going on on {} needs {} of device memory and --memory-budget allows {}: resume on the \
             device that the run began on, or start a new run",
            device.info().name,
            mebibytes(plan.bytes()),
            mebibytes(budget.0)
        )));
    }
    let step_s = match &chosen {
        Some(chosen) => Some(chosen.schedule.step_s),
        None => predict(options, source, device, &job, about),
    };
    let micro_batch = job.batch as usize;
    let packing = match options.packing {
        true => Packing::of(&data.train, seq_len, micro_batch, options.seed)?,
        false => None,
    };
    let header = Header::new(&Parts {
        options,
        source,
        device,
        data,
        budget: options.budget(sampler.windows()),
        sequences: sampler.windows(),
        packing,
        job: &job,
        plan: &plan,
        chosen: chosen.as_ref(),
        step_s,
    });
    Ok(Prepared { sampler, seq_len, job, chosen, header })
}

fn check_validation(data: &Dataset, options: &TuneOptions, seq_len: usize) -> Result<()> {
    let Some(valid) = &data.valid else {
        ensure!(
            options.early_stopping.is_none(),
            "--early-stopping needs validation data: give --valid, or --val-fraction above 0"
        );
        return Ok(());
    };
    let usable = valid.eval_batches(seq_len, 1, None).map(|_| ());
    usable.context("the validation data cannot be used")
}

/// Says what a run will be.
fn announce(data: &Dataset, source: &Source, prepared: &Prepared, events: &mut Events<'_>) {
    if data.train.chats && !source.tokenizer.has_chat_template() {
        events.notice("the model has no chat template: roles are written as ### User: and so on");
    }
    if data.train.packing && data.train.examples.is_empty() {
        events.notice("--packing changes nothing: text is cut into windows that are full already");
    }
    events.send(&TuneEvent::Planned(Box::new(prepared.header.clone())));
}

fn load(
    options: &TuneOptions,
    source: &Source,
    device: &Device,
    job: &Job,
    events: &mut Events<'_>,
) -> Result<Model> {
    let mut loading = events.work("load", 7 * job.blocks.len() as u64 + 1);
    let scale = options.alpha / options.rank as f64;
    let init = LoraInit { scale: scale as f32, seed: options.seed };
    let (checkpoint, config) = (&source.checkpoint, &source.config);
    Model::load(device, checkpoint, config, job, init, &mut |_| loading.step())
}

/// The options' data, or the bundled text; not `quiet`, with progress on stderr.
///
/// # Errors
/// As [`Dataset::load`].
pub fn load_data(options: &TuneOptions, source: &Source, quiet: bool) -> Result<Dataset> {
    let spec = DataSpec {
        data: options.data.clone(),
        valid: options.valid.clone(),
        val_fraction: options.val_fraction,
        val_items: options.val_items,
        train_on_prompt: options.train_on_prompt,
        columns: options.columns.clone(),
        quiet,
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
