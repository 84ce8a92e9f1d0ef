//! `tune`: adapts a model; without arguments the bundled demo model to the bundled demo text.

use std::path::Path;

use anyhow::{Context, Result};
use edge_gpu::{Device, Options};

use super::args::{Bits, Method, TuneArgs, TuneFlags};
use super::generate::{Request, continue_text};
use super::options::TuneOptions;
use super::report::{TuneReport, print_json};
use crate::compress::read::is_compressed;
use crate::exits::Vote;
use crate::generate::Sampling;
use crate::interrupt;
use crate::report::next_command;
use crate::run_dir::RunDir;
use crate::session::{Source, Tuned, demo_dir, mebibytes, refuse_formats};
use crate::tune::validate::BEST;

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
    if !flags.is_counted() {
        flags.steps = Some(600);
    }
    flags.seq_len = flags.seq_len.or(Some(128));
    flags.batch_size = flags.batch_size.or(Some(8));
    Ok((flags, !own_data))
}

/// Fills in the bits that a method's base has where none are given.
pub(super) fn with_bits(flags: &mut TuneFlags) -> Result<()> {
    let compressed = flags.model.as_deref().filter(|model| is_compressed(model));
    if let Some(model) = compressed {
        refuse_formats(model, flags.bits, flags.group_size)?;
    } else if flags.bits.is_none() {
        flags.bits = match flags.method.unwrap_or_default() {
            Method::Full | Method::Lora => None,
            Method::Qlora => Some(Bits::Four),
            // The method's point is a packed base; 8 bit costs nearly nothing in loss.
            Method::Edge | Method::Partial => Some(Bits::Eight),
        };
    }
    Ok(())
}

pub(super) fn run(args: TuneArgs) -> Result<u8> {
    let mut flags = args.flags;
    if let Some(path) = &args.config {
        flags = flags.or(TuneFlags::load(path)?);
    }
    with_bits(&mut flags)?;
    if flags.model.is_none() && flags.data.as_ref().is_some_and(|data| !data.is_empty()) {
        eprintln!("no --model given: tuning the bundled demo model on your data");
    }
    let named = flags.model.is_some();
    let (flags, demo) = with_demo(flags)?;
    let options = TuneOptions { trace: args.trace, ..flags.resolve()? };
    anyhow::ensure!(
        !options.data.is_empty(),
        "there is nothing to learn from: give --data a text, a .jsonl file or a folder"
    );
    interrupt::install()?;
    let model = options.model.clone().context("a model folder")?;
    let source = Source::open(&model)?;
    let device = super::open_device(
        &options.device,
        &Options { profile: options.profile, ..Options::default() },
    )?;
    RunDir::check(options.out.as_deref())?;
    if args.dry_run {
        let header = crate::tune::run::dry_run(&options, &source, &device, args.quiet)?;
        if args.json {
            print_json(&header)?;
        }
        return Ok(0);
    }
    if demo && !named && !args.quiet {
        eprintln!("sample before: {}", sample(&device, &source, &Tuned::default())?);
    }
    let outcome = crate::tune::run::run(&options, &source, &device, args.quiet)?;
    if let Some(profile) = outcome.report.profile.as_ref().filter(|_| !args.quiet) {
        eprintln!("{profile}");
    }
    if !args.quiet {
        if demo && !named && !outcome.interrupted {
            let dir = Path::new(&outcome.report.run_dir);
            let tuned = Tuned::run(dir, &source.config)?;
            if options.method == Method::Full {
                let tuned_source = Source::open(dir)?;
                eprintln!("sample after:  {}", sample(&device, &tuned_source, &tuned)?);
            } else {
                eprintln!("sample after:  {}", sample(&device, &source, &tuned)?);
            }
        }
        summarise(&outcome.report, &options, outcome.interrupted);
    }
    if args.json {
        print_json(&outcome.report)?;
    }
    Ok(if outcome.interrupted { interrupt::EXIT_INTERRUPTED as u8 } else { 0 })
}

fn sample(device: &Device, source: &Source, tuned: &Tuned) -> Result<String> {
    let vote = tuned.exits.as_ref().map_or(Vote::Last, |exits| exits.vote);
    let request = Request {
        prompt: DEMO_PROMPT,
        max_new_tokens: SAMPLE_TOKENS,
        sampling: Sampling { temperature: 0.0, top_p: 1.0, seed: 0, vote },
        drafting: None,
        compare_plain: false,
        memory_budget: None,
    };
    let mut text = DEMO_PROMPT.to_string();
    continue_text(device, source, tuned, &request, |piece| {
        text.push_str(piece);
        Ok(())
    })?;
    Ok(text.split_whitespace().collect::<Vec<_>>().join(" "))
}

fn summarise(report: &TuneReport, options: &TuneOptions, interrupted: bool) {
    if interrupted {
        eprintln!("interrupted after {} steps; what was learned so far is kept", report.steps);
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
