//! `plan`: what a run would allocate and take, on a device that is here or by its data sheet.

use std::fmt::Write as _;
use std::io::Write as _;
use std::path::Path as FilePath;

use anyhow::{Context, Result, bail, ensure};
use edge_gpu::{Device, Options};
use edge_kernels::Category;
use edge_scheduler::paper::{StudyOptions, study};
use edge_scheduler::profiles::DeviceProfile;
use edge_scheduler::search::{Energy, Found, Objective, Schedule};
use edge_scheduler::trace::trace;
use edge_scheduler::{Job, Path, Plan, Streaming};
use serde_json::{Map, Value, json};

use super::args::{Goal, PlanArgs, PlanParts, TuneFlags};
use super::listen::Terminal;
use super::options::TuneOptions;
use super::report::print_json;
use super::tune::with_demo;
use super::{EXIT_MISFIT, Usage};
use crate::batch::check_seq_len;
use crate::model::device_facts;
use crate::plan::choose::{Chosen, Machine, count, describe, find, remedy, turns};
use crate::session::{Source, mebibytes};
use crate::tune::event::{Events, TuneEvent};
use crate::tune::job;

pub(super) fn run(args: PlanArgs) -> Result<u8> {
    if args.paper {
        let profile = DeviceProfile::find("paper").context("the paper's device")?;
        let written = writeln!(std::io::stdout(), "{}", study(profile, StudyOptions::default()));
        written.context("cannot write to standard output")?;
        return Ok(0);
    }
    let profile = args.device_profile;
    // By a data sheet nothing runs: the host's own limits stand for the device's.
    let open = |selector: &str| match profile {
        Some(_) => Device::open("cpu", &Options::default()),
        None => super::open_device(selector, &Options::default()),
    };
    check_max_step(&args)?;
    let (options, source) = options(&args)?;
    let device = open(&options.device)?;
    let seq_len = options.seq_len_for(source.config.max_position_embeddings);
    check_seq_len(seq_len, source.config.max_position_embeddings)?;
    let job = job(&options, &source, seq_len)?;
    let machine = match profile {
        Some(profile) => Machine::profile(profile),
        None => {
            let mut terminal = Terminal::new(args.quiet);
            let mut listener = |event: &TuneEvent| terminal.hear(event);
            Machine::of(&device, &source, &job, &mut Events::new(&mut listener))?
        }
    };
    let turns = turns(&options, &job, None);
    let search = |options: &TuneOptions| {
        let from = (&turns[..], 1.0);
        find(options, &source, &device, &job, &machine, from, objective(&args))
    };
    let name = profile.map_or(device.info().name.as_str(), |profile| profile.title);
    let found = match search(&options)? {
        Ok(found) => found,
        Err(least) => {
            if !args.quiet {
                let why = misfit(&args, &options, name, &least, remedy(&source, &job));
                eprintln!("{}\n{why}", shown(&least, &device, &source));
            }
            if args.json {
                print_json(&report(&least, &[], false, &device, &source))?;
            }
            return Ok(EXIT_MISFIT as u8);
        }
    };
    let found = as_tune_does(found, &options, args.goal, &job, search)?;
    if !args.quiet {
        eprintln!("plan for {name}, {} schedules compared", found.considered);
        eprint!("{}\n{}", shown(&found.best, &device, &source), others(&found));
    }
    // By a data sheet nothing else says that the device is too small.
    let memory = profile.map(|profile| profile.memory_bytes.value as u64);
    let fits = memory.is_none_or(|memory| found.best.bytes <= memory);
    if let (Some(memory), false, false) = (memory, fits, args.quiet) {
        let remedy = match args.goal {
            Goal::Memory => remedy(&source, &job).trim_start_matches("raise it, "),
            Goal::Time | Goal::Energy => "give --memory-budget below that",
        };
        eprintln!("{name} has {} in all: {remedy}", mebibytes(memory));
    }
    if args.json {
        print_json(&report(&found.best, &found.others, fits, &device, &source))?;
    }
    if let Some(path) = &args.trace {
        let chosen = Chosen { schedule: found.best, machine, turns, counted: 1.0 };
        write_trace(path, &chosen, &source, &device, args.quiet)?;
    }
    Ok(if fits { 0 } else { EXIT_MISFIT as u8 })
}

fn check_max_step(args: &PlanArgs) -> Result<()> {
    let Some(ms) = args.max_step_ms else { return Ok(()) };
    if args.goal != Goal::Memory {
        bail!(Usage("--max-step-ms goes with --goal memory: add that".to_owned()));
    }
    ensure!(ms > 0.0, "--max-step-ms is {ms}: give a number above 0");
    Ok(())
}

/// Why no schedule is one.
fn misfit(
    args: &PlanArgs,
    options: &TuneOptions,
    name: &str,
    least: &Schedule,
    remedy: &str,
) -> String {
    let fits = options.memory_budget.is_none_or(|budget| least.bytes <= budget.0);
    if let (Some(ms), true) = (args.max_step_ms, fits) {
        return format!(
            "no schedule on {name} has steps of at most {ms} ms: raise --max-step-ms, or lower \
             --batch-size or --seq-len"
        );
    }
    format!(
        "nothing fits {} on {name}; the least that a run takes is above ({}): {remedy}",
        options.memory_budget.map_or("the limits".into(), |budget| mebibytes(budget.0)),
        mebibytes(least.bytes),
    )
}

/// The run's options, and its model.
fn options(args: &PlanArgs) -> Result<(TuneOptions, Source)> {
    let mut flags = args.flags.clone();
    if let Some(path) = &args.config {
        flags = flags.or(TuneFlags::load(path)?);
    }
    flags.choose_by_files()?;
    let (flags, _) = with_demo(flags)?;
    let options = TuneOptions { auto_micro_batch: flags.micro_batch.is_none(), ..flags.resolve()? };
    let source = Source::open(options.model.as_deref().context("a model folder")?)?;
    Ok((options, source))
}

fn objective(args: &PlanArgs) -> Objective {
    match args.goal {
        Goal::Time => Objective::Time,
        Goal::Energy => Objective::Energy(Energy::default()),
        Goal::Memory => {
            let step_s = args.max_step_ms.map_or(f64::INFINITY, |ms| 1e-3 * ms);
            Objective::Memory { step_s }
        }
    }
}

/// Without a budget `tune` searches nothing: then that run comes first, and what was found are
/// alternatives.
fn as_tune_does(
    found: Found,
    options: &TuneOptions,
    goal: Goal,
    job: &Job,
    search: impl Fn(&TuneOptions) -> Result<Result<Found, Box<Schedule>>>,
) -> Result<Found> {
    if options.memory_budget.is_some() || options.plan.is_some() || goal != Goal::Time {
        return Ok(found);
    }
    let parts = PlanParts {
        path: Some(Path::Rows),
        resident: Some(job.blocks.len() as u32),
        recompute: Some(options.recompute),
        ..PlanParts::default()
    };
    let plain = TuneOptions { plan: Some(parts), auto_micro_batch: false, ..options.clone() };
    let Ok(plain) = search(&plain)? else { return Ok(found) };
    let best = plain.best;
    let mut others = vec![found.best];
    others.extend(found.others);
    others.retain(|other| other.job != best.job);
    Ok(Found { best, others, considered: found.considered + plain.considered })
}

/// A schedule with its memory for people.
fn shown(schedule: &Schedule, device: &Device, source: &Source) -> String {
    let plan = Plan::new(&source.config.shape(), &schedule.job, device_facts(device));
    let mut text = format!("{}\n", describe(schedule));
    for (category, bytes) in Category::ALL.iter().zip(plan.bytes_by_category()) {
        let _ = writeln!(text, "  {:<12} {:>12}", category.name(), mebibytes(bytes));
    }
    let _ = writeln!(text, "  {:<12} {:>12}  of device memory", "in all", mebibytes(plan.bytes()));
    let timeline = &schedule.timeline;
    let _ = write!(
        text,
        "a step of the window that has most steps: {:.0} ms, of it {:.0} ms compute and {:.0} ms \
         waiting for weights; {} loads of blocks, {}; bound by {}; {:.1} J by the energy model",
        1e3 * timeline.step_s,
        1e3 * timeline.compute_s,
        1e3 * timeline.wait_s,
        timeline.loads,
        mebibytes(timeline.load_bytes),
        timeline.bound_by(),
        schedule.energy_j
    );
    text
}

fn others(found: &Found) -> String {
    let mut text = String::new();
    for schedule in found.others.iter().take(3) {
        let _ = writeln!(
            text,
            "next best, {}, {:.0} ms, {}",
            brief(schedule),
            1e3 * schedule.step_s,
            mebibytes(schedule.bytes)
        );
    }
    text
}

fn brief(schedule: &Schedule) -> String {
    format!(
        "{} of {}, {}{}, {} blocks stay",
        count(schedule.micro_batches, "micro-batch"),
        count(schedule.job.batch, "sequence"),
        schedule.path.name(),
        if schedule.job.recompute { ", activations computed again" } else { "" },
        schedule.resident_blocks()
    )
}

/// The object of `--json`.
fn report(
    best: &Schedule,
    others: &[Schedule],
    fits: bool,
    device: &Device,
    source: &Source,
) -> Value {
    let plan = Plan::new(&source.config.shape(), &best.job, device_facts(device));
    let mut by_category = Map::new();
    for (category, bytes) in Category::ALL.iter().zip(plan.bytes_by_category()) {
        by_category.insert(category.name().into(), bytes.into());
    }
    let slots = best.job.streaming.as_ref().map_or(0, |streaming| streaming.slots);
    let alternatives: Vec<Value> = others
        .iter()
        .map(|other| {
            json!({
                "predicted_peak_device_bytes": other.bytes,
                "predicted_step_ms": 1e3 * other.step_s,
                "order": other.path.name(),
                "micro_batch": other.job.batch,
                "recompute": other.job.recompute,
                "resident_blocks": other.resident_blocks(),
            })
        })
        .collect();
    json!({
        "fits": fits,
        "predicted_peak_device_bytes": best.bytes,
        "predicted_peak_device_bytes_by_category": by_category,
        "predicted_step_ms": 1e3 * best.step_s,
        "wait_share": best.wait_share,
        "bound_by": best.timeline.bound_by(),
        "resident_blocks": best.resident_blocks(),
        "streamed_blocks": best.job.streaming.as_ref().map_or(0, Streaming::streamed),
        "slots": slots,
        "ahead": best.job.streaming.as_ref().is_none_or(|streaming| streaming.ahead),
        "order": best.path.name(),
        "micro_batch": best.job.batch,
        "micro_batches": best.micro_batches,
        "recompute": best.job.recompute,
        "energy_j": best.energy_j,
        "alternatives": alternatives,
    })
}

fn write_trace(
    path: &FilePath,
    chosen: &Chosen,
    source: &Source,
    device: &Device,
    quiet: bool,
) -> Result<()> {
    let timeline = chosen.timeline(source, device)?;
    let shown = path.display();
    std::fs::write(path, trace(&[("predicted", &timeline.spans)]))
        .with_context(|| format!("cannot write {shown}: give --trace another path"))?;
    if !quiet {
        eprintln!("timeline written to {shown}: open it at https://ui.perfetto.dev");
    }
    Ok(())
}
