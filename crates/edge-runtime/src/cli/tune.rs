//! `tune`: adapts a model; without arguments the bundled demo model to the bundled demo text.

use std::path::Path;

use anyhow::{Context, Result};
use edge_gpu::Device;
use serde_json::Value;

use super::args::{TuneArgs, TuneFlags};
use super::listen::Terminal;
use super::options::TuneOptions;
use super::report::{TuneReport, print_json};
use super::resume::{self, Begin};
use crate::inference::Inference;
use crate::interrupt;
use crate::report::next_command;
use crate::session::{Source, Tuned, demo_dir, mebibytes, open_tuned};
use crate::tune::session::RESULT;
use crate::tune::validate::BEST;
use crate::tuner::Tuner;
use crate::whole_file::{self, SETTINGS};

/// What the demo's samples start with: both styles can go on from it.
const DEMO_PROMPT: &str = "The ";

/// Tokens of a sample.
const SAMPLE_TOKENS: usize = 60;

/// Fills in what the demo needs where no model is named.
pub(super) fn with_demo(mut flags: TuneFlags) -> Result<(TuneFlags, bool)> {
    if flags.model.is_some() {
        return Ok((flags, false));
    }
    let dir = demo_dir()?;
    flags.model = Some(dir.join("model"));
    let own_data = flags.data.as_ref().is_some_and(|data| !data.is_empty());
    if !own_data {
        flags.data = Some(vec![dir.join("train.txt")]);
        if flags.valid.is_none() && flags.val_fraction.is_none() {
            flags.valid = Some(dir.join("valid.txt"));
        }
    }
    flags.lr = flags.lr.or(Some(1e-2));
    flags.windows = flags.windows.or(Some(2));
    flags.rank = flags.rank.or(flags.adapter.is_none().then_some(8));
    if !flags.is_counted() {
        flags.steps = Some(600);
    }
    flags.seq_len = flags.seq_len.or(Some(128));
    flags.batch_size = flags.batch_size.or(Some(8));
    Ok((flags, !own_data))
}

pub(super) fn run(mut args: TuneArgs) -> Result<u8> {
    let mut flags = std::mem::take(&mut args.flags);
    // That of a file is of a run which may have been moved since.
    let out = flags.out.clone();
    if let Some(path) = &args.config {
        flags = flags.or(TuneFlags::load(path)?);
    }
    let begin = match &args.resume {
        Some(whence) => resume::begin(whence, flags, out.as_deref())?,
        None => Begin::New(Box::new(flags)),
    };
    match begin {
        Begin::New(flags) => start(&args, *flags),
        Begin::GoOn(both) => {
            interrupt::install()?;
            let (options, resume) = *both;
            let options = TuneOptions { trace: args.trace, ..options };
            follow(&args, Tuner::go_on(options, resume)?, false)
        }
        Begin::Finished(run) => {
            if !args.quiet {
                eprintln!("{} is finished: there is nothing to resume", run.display());
            }
            if args.json {
                print_json(&result(&run)?)?;
            }
            Ok(0)
        }
    }
}

/// What a finished run found.
fn result(run: &Path) -> Result<Value> {
    let path = run.join(RESULT);
    let text = whole_file::text(&path, SETTINGS)
        .with_context(|| format!("cannot read {}: start a new run", path.display()))?;
    serde_json::from_str(&text).with_context(|| format!("{} is damaged", path.display()))
}

/// A new run.
fn start(args: &TuneArgs, mut flags: TuneFlags) -> Result<u8> {
    flags.choose_by_files()?;
    let own_data = flags.data.as_ref().is_some_and(|data| !data.is_empty());
    if flags.model.is_none() && own_data && !args.quiet {
        eprintln!("no --model given: tuning the bundled demo model on your data");
    }
    let named = flags.model.is_some();
    let (flags, demo) = with_demo(flags)?;
    let options = TuneOptions { trace: args.trace, ..flags.resolve()? };
    interrupt::install()?;
    follow(args, Tuner::open(options)?, demo && !named)
}

/// Runs it, and shows how it goes.
fn follow(args: &TuneArgs, tuner: Tuner<'_>, demo: bool) -> Result<u8> {
    let mut terminal = Terminal::new(args.quiet);
    let mut tuner = tuner.show_reading(!args.quiet).on_event(|event| terminal.hear(event));
    if args.dry_run {
        let header = tuner.plan()?;
        if args.json {
            print_json(&header)?;
        }
        return Ok(0);
    }
    let device = tuner.device().clone();
    let shows_samples = demo && !args.quiet;
    if shows_samples {
        let model = tuner.options().model.as_deref();
        eprintln!("sample before: {}", sample(&device, open_tuned(model, None, None)?)?);
    }
    let report = tuner.run()?;
    if let Some(profile) = report.profile.as_ref().filter(|_| !args.quiet) {
        eprintln!("{profile}");
    }
    if shows_samples && !report.interrupted {
        let run = Path::new(&report.run_dir);
        eprintln!("sample after:  {}", sample(&device, open_tuned(None, None, Some(run))?)?);
    }
    if !args.quiet {
        summarise(&report, tuner.options());
    }
    if args.json {
        print_json(&report)?;
    }
    Ok(if report.interrupted { interrupt::EXIT_INTERRUPTED as u8 } else { 0 })
}

fn sample(device: &Device, (source, tuned): (Source, Tuned)) -> Result<String> {
    let mut model = Inference::new(device.clone(), source, tuned);
    let text = format!("{DEMO_PROMPT}{}", model.generate(DEMO_PROMPT, SAMPLE_TOKENS)?);
    Ok(text.split_whitespace().collect::<Vec<_>>().join(" "))
}

fn summarise(report: &TuneReport, options: &TuneOptions) {
    if report.interrupted {
        let (steps, run) = (report.steps, &report.run_dir);
        eprintln!("interrupted after {steps} steps; what was learned so far is kept");
        eprintln!("to go on: cargo run --release -p edge-runtime -- tune --resume {run}");
    }
    if let (Some(before), Some(after)) = (report.val_loss_before, report.val_loss) {
        eprintln!(
            "validation loss {before:.4} -> {after:.4} (perplexity {:.2} -> {:.2})",
            before.exp(),
            after.exp()
        );
    }
    eprintln!(
        "{:.0} tokens/s, {:.0} ms a step, peak device memory {} (planned {})",
        report.tokens_per_second,
        report.step_ms_median,
        mebibytes(report.peak_device_bytes),
        mebibytes(report.predicted_peak_device_bytes.unwrap_or(0))
    );
    if let Some(predicted) = report.predicted_step_ms {
        eprintln!("the plan said {predicted:.0} ms a step");
    }
    if let Some(streaming) = &report.streaming {
        let total_ms = report.tokens as f64 / report.tokens_per_second.max(1e-9) * 1e3;
        eprintln!(
            "waited for weights {:.1} % of the time; {} loads of blocks, {} at {:.2} GB/s",
            100.0 * streaming.wait_ms / total_ms.max(1e-9),
            streaming.loads,
            mebibytes(streaming.load_bytes),
            1e-6 * streaming.load_bytes as f64 / streaming.load_ms.max(1e-9)
        );
    }
    eprintln!("written to {}", report.run_dir);
    let mut shown = Path::new(&report.run_dir).to_path_buf();
    if let Some(best) = report.best.as_ref().filter(|best| best.step < report.steps) {
        shown.push(BEST);
        let shown = shown.display();
        eprintln!("best: loss {:.4} at step {}, kept in {shown}", best.val_loss, best.step);
    }
    eprintln!("open {}/{} in a browser", report.run_dir, crate::report::FILE);
    eprintln!("next: {}", next_command(&shown, &options.device));
}
