//! `eval`: loss and perplexity of a text, per exit and by vote.

use anyhow::{Result, ensure};
use edge_gpu::Options;

use super::args::EvalArgs;
use super::report::{EvalReport, ExitLoss, Progress, VoteLoss, print_json};
use crate::batch::check_seq_len;
use crate::data::load_eval;
use crate::session::{Formats, Source, Tuned, check_budget, demo_dir, mebibytes};

/// Sequences that are evaluated at once.
const BATCH: u32 = 4;

/// Which model a command runs, and what tuning left for it.
pub(super) fn open(
    model: Option<&std::path::Path>,
    adapter: Option<&std::path::Path>,
    run: Option<&std::path::Path>,
) -> Result<(Source, Tuned)> {
    let options = run.map(crate::session::run_options).transpose()?;
    let full = run.filter(|run| run.join("model.safetensors").exists());
    let dir = match (model, full, &options) {
        (Some(dir), ..) => dir.to_path_buf(),
        (None, Some(run), _) => run.to_path_buf(),
        (None, None, Some(options)) if options.model.is_some() => {
            options.model.clone().unwrap_or_default()
        }
        _ => demo_dir()?.join("model"),
    };
    let source = Source::open(&dir)?;
    let tuned = match (adapter, run) {
        (Some(dir), _) => Tuned::adapter(dir, &source.config)?,
        (None, Some(dir)) => Tuned::run(dir, &source.config)?,
        (None, None) => Tuned::default(),
    };
    Ok((source, tuned))
}

/// The formats of the base that a run was made with; the checkpoint's own without a run, or where
/// the checkpoint is compressed.
pub(super) fn formats(source: &Source, tuned: &Tuned) -> Result<Formats> {
    let own = source.checkpoint.compressed().is_some();
    let options = tuned.options.as_ref().filter(|_| !own);
    source.formats(options.and_then(|o| o.bits), options.and_then(|o| o.group_size))
}

pub(super) fn run(args: &EvalArgs) -> Result<()> {
    let (source, tuned) =
        open(args.model.as_deref(), args.adapter.as_deref(), args.run.as_deref())?;
    check_seq_len(args.seq_len, source.config.max_position_embeddings)?;
    ensure!(args.seq_len >= 2, "--seq-len is below 2: give at least 2");
    let data = match (&args.data[..], args.model.is_some()) {
        ([], false) => vec![demo_dir()?.join("valid.txt")],
        (data, _) => data.to_vec(),
    };
    ensure!(!data.is_empty(), "there is nothing to evaluate: give --data a file or folder");
    let stream = load_eval(&data, &source.tokenizer)?;
    let device = super::open_device(&args.device, &Options::default())?;
    let formats = formats(&source, &tuned)?;
    let mut job = source.job(formats, BATCH, args.seq_len as u32);
    tuned.apply(&mut job);
    let plan = check_budget(&source, &job, &device, None)?;
    let tensors = 7 * job.blocks.len() as u64 + 1;
    let mut loading = Progress::new("load", tensors, args.quiet);
    let model = tuned.load(&device, &source, &job, &mut |_| loading.step(String::new))?;
    loading.finish();
    let vote = args.vote.or(tuned.exits.as_ref().map(|exits| exits.vote)).unwrap_or_default();
    let windows = match stream.examples.len() {
        0 => stream.ids.len().div_ceil(args.seq_len),
        _ => stream.fit(args.seq_len).usable.len(),
    };
    let windows = windows.min(args.max_windows.unwrap_or(usize::MAX));
    let count = windows.div_ceil(BATCH as usize) as u64;
    let mut progress = Progress::new("eval", count, args.quiet);
    let batches = stream.eval_batches(args.seq_len, BATCH as usize, args.max_windows)?;
    let result = model.evaluate(batches, vote, |_| progress.step(String::new))?;
    progress.finish();
    let many = result.exits.len() > 1;
    let report = EvalReport {
        loss: result.vote,
        perplexity: result.vote.exp(),
        tokens: result.tokens,
        exits: result
            .exits
            .iter()
            .enumerate()
            .map(|(index, &val_loss)| ExitLoss { exit: index + 1, val_loss })
            .collect(),
        vote: many.then(|| VoteLoss { rule: vote.name().into(), val_loss: result.vote }),
        ..EvalReport::default()
    };
    if !args.quiet {
        eprintln!(
            "loss {:.4}, perplexity {:.3} over {} tokens on {} ({} of device memory)",
            report.loss,
            report.perplexity,
            report.tokens,
            device.info().name,
            mebibytes(plan.bytes())
        );
        for exit in report.exits.iter().filter(|_| many) {
            eprintln!("  exit {}: loss {:.4}", exit.exit, exit.val_loss);
        }
        if let Some(vote) = &report.vote {
            eprintln!("  vote {}: loss {:.4}", vote.rule, vote.val_loss);
        }
    }
    if args.json {
        print_json(&report)?;
    }
    Ok(())
}
