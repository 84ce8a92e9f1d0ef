//! The schedule of a run on a device, within its memory budget.

use anyhow::{Context, Result, bail, ensure};
use edge_gpu::Device;
use edge_kernels::Format;
use edge_scheduler::logits::LOGITS_BYTES;
use edge_scheduler::profiles::DeviceProfile;
use edge_scheduler::search::{
    Found, Objective, SLOTS_MAX, Schedule, Space, Turns, block_bytes, search,
};
use edge_scheduler::simulate::{Timeline, TransferRates, simulate};
use edge_scheduler::step::tasks;
use edge_scheduler::{Job, Path, Projection};

use super::facts::Facts;
use super::measure::{formats_of, measure};
use super::price::{Pricer, Speed};
use crate::cli::args::{Method, PlanParts};
use crate::cli::options::TuneOptions;
use crate::cli::{Misfit, Usage};
use crate::model::device_facts;
use crate::model::load::dense_format;
use crate::readahead::available_bytes;
use crate::session::{Source, mebibytes};
use crate::tune::course::{Budget, shares};
use crate::tune::event::Events;

/// How fast the device of a plan is, and how weights come to it.
pub struct Machine {
    /// Dispatches.
    pub speed: Speed,
    /// Weights.
    pub rates: TransferRates,
    /// Whether slots need staging memory.
    pub staged: bool,
}

impl Machine {
    /// What is known of a device, measured now where it was not before.
    ///
    /// # Errors
    /// The device fails; or the listener stops it.
    pub fn of(
        device: &Device,
        source: &Source,
        job: &Job,
        events: &mut Events<'_>,
    ) -> Result<Self> {
        let info = device.info();
        let known = match Facts::load(info) {
            Ok(known) => known,
            Err(error) => {
                events.notice(format!("{error:#}"));
                None
            }
        };
        let mut facts = known.unwrap_or_else(|| Facts::new(info));
        let [blocks, tables] = formats_of(job);
        if !facts.cover(&blocks, &tables) {
            measure(device, &mut facts, &blocks, &tables, events)?;
            // Without a cache folder it is measured each time. What is observed, or checked, takes
            // other times.
            let saved = if device.is_observed() { Ok(()) } else { facts.save(info).map(|_| ()) };
            if let Err(error) = saved {
                events.notice(format!("{error:#}"));
            }
        }
        Ok(Self::from_facts(&facts, device, source))
    }

    /// What was measured of a device earlier; `None` where that does not cover the job.
    pub fn known(device: &Device, source: &Source, job: &Job) -> Option<Self> {
        // A damaged file is named where something is to be measured.
        let facts = Facts::load(device.info()).ok().flatten()?;
        let [blocks, tables] = formats_of(job);
        facts.cover(&blocks, &tables).then(|| Self::from_facts(&facts, device, source))
    }

    fn from_facts(facts: &Facts, device: &Device, source: &Source) -> Self {
        Self {
            speed: facts.speed(),
            rates: facts.transfers(comes_from_disk(source)),
            staged: device.stages_uploads(),
        }
    }

    /// A device that is not here.
    pub fn profile(profile: &'static DeviceProfile) -> Self {
        let memory = profile.memory_bytes_per_s.value;
        Self {
            speed: Speed::Profile(profile),
            rates: TransferRates {
                read_bytes_per_s: profile.storage_bytes_per_s.value,
                // A copy reads and writes memory.
                copy_bytes_per_s: memory / 2.0,
                transfer_bytes_per_s: (!profile.unified).then_some(memory / 2.0),
                load_s: 1e-4,
                interference: 0.0,
            },
            staged: !profile.unified,
        }
    }
}

/// Whether the system's cache is too small to keep the model's files from step to step.
fn comes_from_disk(source: &Source) -> bool {
    let files = std::fs::read_dir(&source.dir).into_iter().flatten().flatten();
    let files: u64 = files.filter_map(|file| Some(file.metadata().ok()?.len())).sum();
    let file = source.dir.metadata().ok().filter(std::fs::Metadata::is_file);
    let bytes = file.map_or(files, |file| file.len());
    available_bytes().is_some_and(|available| bytes > available)
}

/// The windows that take turns in a run of `sequences` training sequences, by their shares of the
/// steps.
pub fn turns(options: &TuneOptions, job: &Job, sequences: Option<usize>) -> Vec<Turns> {
    let windows = job.windows.len();
    let phases = options.method == Method::Edge && options.semantics.has_phases() && windows > 1;
    let shares = match phases {
        true => shares(options, windows),
        false => vec![1.0 / windows as f64; windows],
    };
    let fixed = options.method == Method::Partial || phases;
    let cache = fixed && options.trunk_cache != crate::cli::args::TrunkCache::Off;
    let steps = sequences.and_then(|sequences| match options.budget(sequences) {
        Budget::Steps(steps) => Some(steps as f64),
        Budget::Tokens(tokens) => {
            Some(tokens as f64 / (options.batch_size * job.seq_len as usize) as f64)
        }
        Budget::Seconds(_) => None,
    });
    let mut turns = Vec::new();
    for (window, share) in shares.into_iter().enumerate() {
        // The first pass over the data fills the cache.
        let again = match (steps, sequences) {
            (Some(steps), Some(sequences)) if cache && job.windows[window].first > 0 => {
                let passes = share * steps * options.batch_size as f64 / sequences as f64;
                (1.0 - 1.0 / passes.max(1.0)).max(0.0)
            }
            _ => 0.0,
        };
        for (share, cached) in [(share * (1.0 - again), false), (share * again, true)] {
            if share > 0.0 {
                turns.push(Turns { window, share, cached });
            }
        }
    }
    turns
}

/// Whether the weights of all blocks lie in files as they lie on the device.
pub fn can_stream(source: &Source, job: &Job) -> bool {
    if source.checkpoint.compressed().is_some() {
        return job.trained != edge_scheduler::Trained::Full;
    }
    let shape = source.config.shape();
    let same = |block: usize, projection: Projection| {
        let format = job.blocks[block].get(projection);
        let (_, k) = shape.projection(projection);
        let weight = source.checkpoint.weight(&source.config, block, projection);
        let own = weight.ok().filter(|tensor| tensor.is_plain());
        own.is_some_and(|own| dense_format(own.dtype) == format)
            && (format == Format::F32 || k.is_multiple_of(2))
    };
    job.trained != edge_scheduler::Trained::Full
        && (0..job.blocks.len()).all(|block| Projection::ALL.into_iter().all(|p| same(block, p)))
}

/// A schedule that was chosen, and what it was chosen by.
pub struct Chosen {
    /// The schedule.
    pub schedule: Schedule,
    /// The device.
    pub machine: Machine,
    /// The windows that take turns.
    pub turns: Vec<Turns>,
    /// Share of the targets that count.
    pub counted: f64,
}

impl Chosen {
    /// The predicted timeline of a step of the window that has the largest share.
    ///
    /// # Errors
    /// There is no window.
    pub fn timeline(&self, source: &Source, device: &Device) -> Result<Timeline> {
        let Self { schedule, machine, turns, counted } = self;
        let most = turns.iter().max_by(|a, b| a.share.total_cmp(&b.share)).context("a window")?;
        let upload = machine.rates.copy_bytes_per_s;
        let pricer = Pricer::new(device, &source.config, &machine.speed, upload, *counted);
        let times = pricer.times(&schedule.job, most);
        let bytes = block_bytes(&source.config.shape(), &schedule.job, device_facts(device));
        let tasks = tasks(&schedule.step(most));
        let streaming = schedule.job.streaming.as_ref();
        Ok(simulate(&tasks, &times, streaming, &bytes, &machine.rates))
    }
}

/// Searches the schedule of a run.
///
/// # Errors
/// There is no schedule as the options' `--plan` says. Where none fits, the one that takes least
/// is in the inner error.
pub fn find(
    options: &TuneOptions,
    source: &Source,
    device: &Device,
    job: &Job,
    machine: &Machine,
    (turns, counted): (&[Turns], f64),
    objective: Objective,
) -> Result<Result<Found, Box<Schedule>>> {
    let batch = options.batch_size as u32;
    let micro_batches = match options.auto_micro_batch {
        true => (1..=batch).rev().filter(|size| batch.is_multiple_of(*size)).collect(),
        false => vec![options.micro_batch as u32],
    };
    let shape = source.config.shape();
    let upload = machine.rates.copy_bytes_per_s;
    let pricer = Pricer::new(device, &source.config, &machine.speed, upload, counted);
    let fixed = options.plan.unwrap_or_default();
    let lora = job.trained != edge_scheduler::Trained::Full;
    let space = Space {
        shape: &shape,
        job,
        facts: device_facts(device),
        batch,
        micro_batches,
        recompute: match fixed.recompute {
            Some(recompute) => vec![recompute],
            None if options.recompute => vec![true],
            None => vec![false, true],
        },
        paths: match fixed.path {
            Some(path) if lora || path == Path::Rows => vec![path],
            Some(_) => Vec::new(),
            None if lora => Path::ALL.to_vec(),
            None => vec![Path::Rows],
        },
        logits_bytes: pieces_of_logits(options, &fixed, job),
        slots: fixed.slots.map_or_else(|| (1..=SLOTS_MAX).collect(), |slots| vec![slots]),
        staged: machine.staged,
        streaming: can_stream(source, job),
        resident: fixed.resident,
        ahead: fixed.ahead.map_or_else(|| vec![true, false], |ahead| vec![ahead]),
        turns,
        rates: machine.rates,
        budget_bytes: options.memory_budget.map(|budget| budget.0),
        times: &|job, turns| pricer.times(job, turns),
    };
    match search(&space, objective) {
        Ok(found) => {
            ensure!(
                found.best.step_s.is_finite(),
                "{} cannot bind the buffers of any schedule of this run: lower --micro-batch or \
                 --seq-len",
                device.info().name
            );
            Ok(Ok(found))
        }
        Err(misfit) => match misfit.least {
            Some(least) => Ok(Err(Box::new(least))),
            None => bail!(Usage(format!(
                "there is no schedule with --plan {}: path=mixed and path=columns need several \
                 micro-batches and no --method full, and blocks are streamed only where their \
                 weights lie in the file as on the device",
                String::from(fixed)
            ))),
        },
    }
}

/// Bytes of logits at once to choose from.
fn pieces_of_logits(options: &TuneOptions, fixed: &PlanParts, job: &Job) -> Vec<u64> {
    // Without a budget, and all blocks on the device, a run takes the whole piece.
    let all = fixed.resident == Some(job.blocks.len() as u32);
    match options.memory_budget.is_none() && all {
        true => vec![LOGITS_BYTES],
        false => vec![LOGITS_BYTES, LOGITS_BYTES / 4],
    }
}

/// The run's job with a schedule that fits its budget; without a budget, the job as it is.
///
/// # Errors
/// Nothing fits; the sentence says what the least would be. Or measuring fails.
pub fn choose(
    options: &TuneOptions,
    source: &Source,
    device: &Device,
    job: Job,
    (sequences, counted): (usize, f64),
    events: &mut Events<'_>,
) -> Result<(Job, Option<Chosen>)> {
    if options.memory_budget.is_none() && options.plan.is_none() {
        return Ok((job, None));
    }
    let turns = turns(options, &job, Some(sequences));
    let from = (&turns[..], counted);
    // Whether anything fits does not depend on how fast the device is, which takes a while to
    // measure.
    let any =
        Machine { staged: device.stages_uploads(), ..Machine::profile(&DeviceProfile::ALL[0]) };
    let fits = find(options, source, device, &job, &any, from, Objective::Time)?.is_ok();
    let machine = if fits { Machine::of(device, source, &job, events)? } else { any };
    match find(options, source, device, &job, &machine, from, Objective::Time)? {
        Ok(found) => {
            let schedule = found.best;
            Ok((schedule.job.clone(), Some(Chosen { schedule, machine, turns, counted })))
        }
        Err(least) => bail!(Misfit(format!(
            "the run needs {} of device memory at least and --memory-budget allows {}: {}",
            mebibytes(least.bytes),
            options.memory_budget.map_or_else(|| "any".to_owned(), |budget| mebibytes(budget.0)),
            remedy(source, &job)
        ))),
    }
}

/// What a step of a job is predicted to take, seconds, with everything on the device and by what
/// was measured of it earlier; `None` where it was not.
pub fn predict(
    options: &TuneOptions,
    source: &Source,
    device: &Device,
    job: &Job,
    (sequences, counted): (usize, f64),
) -> Option<f64> {
    let machine = Machine::known(device, source, job)?;
    let turns = turns(options, job, Some(sequences));
    let plan = PlanParts {
        path: Some(Path::Rows),
        resident: Some(job.blocks.len() as u32),
        recompute: Some(job.recompute),
        ..PlanParts::default()
    };
    let options = TuneOptions {
        plan: Some(plan),
        memory_budget: None,
        auto_micro_batch: false,
        ..options.clone()
    };
    let from = (&turns[..], counted);
    let found = find(&options, source, device, job, &machine, from, Objective::Time).ok()?.ok()?;
    Some(found.best.step_s)
}

/// What helps where nothing fits.
pub fn remedy(source: &Source, job: &Job) -> &'static str {
    if job.trained == edge_scheduler::Trained::Full {
        return "raise it, lower --seq-len, or use --method edge or lora";
    }
    match can_stream(source, job) {
        true => "raise it, lower --seq-len or --rank, or use more --windows",
        false => {
            "raise it, lower --seq-len, or compress the model first (compress --target-bits 4), so \
             that its blocks can be streamed"
        }
    }
}

/// A number of things: `1 slot`, `2 slots`, `2 micro-batches`.
pub fn count(number: u32, thing: &str) -> String {
    let end = match number {
        1 => "",
        _ if thing.ends_with("ch") => "es",
        _ => "s",
    };
    format!("{number} {thing}{end}")
}

/// A schedule in a line.
pub fn describe(schedule: &Schedule) -> String {
    let job = &schedule.job;
    let blocks = match &job.streaming {
        None => "all blocks stay on the device".to_owned(),
        Some(streaming) => format!(
            "{} of {} blocks stay on the device, the others come through {}{}",
            schedule.resident_blocks(),
            job.blocks.len(),
            count(streaming.slots, "slot"),
            if streaming.ahead { "" } else { " when it is their turn" }
        ),
    };
    let path = match schedule.micro_batches {
        1 => String::new(),
        several => format!(" in {several} micro-batches, {}", schedule.path.name()),
    };
    let again = if job.recompute { "; activations are computed again" } else { "" };
    format!(
        "schedule: {} sequences{path}; {blocks}{again}; predicted {:.0} ms a step, {:.0} % of it \
         waiting for weights",
        job.batch * schedule.micro_batches,
        1e3 * schedule.step_s,
        100.0 * schedule.wait_share
    )
}
