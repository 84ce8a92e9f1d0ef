//! `eval`: loss and perplexity of a text, or the share of questions answered rightly, per exit and
//! by vote.

use std::path::Path;

use anyhow::{Result, bail, ensure};
use edge_gpu::Options;

use super::args::EvalArgs;
use super::report::{
    ChoicesReport, EvalReport, ExitLoss, Progress, VoteAccuracy, VoteLoss, print_json,
};
use crate::batch::check_seq_len;
use crate::choices::Choices;
use crate::data::{DataSpec, Stream, load_eval};
use crate::exits::{Exits, Vote};
use crate::model::Model;
use crate::session::{Formats, Source, Tuned, demo_dir, mebibytes, within_budget};

/// Sequences that are evaluated at once.
const BATCH: u32 = 4;

/// Which model a command runs, and what tuning left for it.
pub(super) fn open(
    model: Option<&Path>,
    adapter: Option<&Path>,
    run: Option<&Path>,
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

/// The rule that is asked for, or the run's own; the last exit's where there are no exits.
pub(super) fn choose_vote(asked: Option<Vote>, tuned: &Tuned, learned: bool) -> Result<Vote> {
    ensure!(
        asked != Some(Vote::Learned) || learned,
        "there is no learned vote: fit one with eval --run DIR --data FILE --fit-vote"
    );
    Ok(asked.or(tuned.exits.as_ref().map(|exits| exits.vote)).unwrap_or(Vote::Last))
}

/// Fits the learned vote on a text and keeps it in the run directory, as the run's rule.
fn fit_vote(
    args: &EvalArgs,
    source: &Source,
    tuned: &Tuned,
    model: &mut Model,
    stream: &Stream,
) -> Result<()> {
    let (Some(run), Some(exits)) = (&args.run, &tuned.exits) else {
        bail!("--fit-vote needs the exits of a run with --method edge: give its --run");
    };
    ensure!(exits.after_block.len() > 1, "--fit-vote needs more than one exit");
    let batches = stream.eval_batches(args.seq_len, BATCH as usize, args.max_windows)?;
    let learned = model.score_exits(batches, || ())?.fit()?;
    model.set_learned(learned.clone())?;
    let exits = Exits { vote: Vote::Learned, learned: Some(learned), ..exits.clone() };
    exits.save(run, &source.config)
}

pub(super) fn run(args: &EvalArgs) -> Result<()> {
    let (source, tuned) =
        open(args.model.as_deref(), args.adapter.as_deref(), args.run.as_deref())?;
    check_seq_len(args.seq_len, source.config.max_position_embeddings)?;
    ensure!(args.seq_len >= 2, "--seq-len is below 2: give at least 2");
    match &args.choices {
        Some(path) => choices(args, &source, &tuned, path),
        None => text(args, &source, &tuned),
    }
}

/// Loads the model to evaluate, and says what it takes of the device's memory, bytes.
fn load(args: &EvalArgs, source: &Source, tuned: &Tuned) -> Result<(Model, u64)> {
    let device = super::open_device(&args.device, &Options::default())?;
    let formats = formats(source, tuned)?;
    let mut job = source.job(formats, BATCH, args.seq_len as u32);
    tuned.apply(&mut job);
    let (job, plan) = within_budget(source, job, &device, args.memory_budget)?;
    let tensors = 7 * job.blocks.len() as u64 + 1;
    let mut loading = Progress::new("load", tensors, args.quiet);
    let model = tuned.load(&device, source, &job, &mut |_| loading.step(String::new))?;
    loading.finish();
    Ok((model, plan.bytes()))
}

/// The rule that decides, and all that are reported.
fn votes(args: &EvalArgs, tuned: &Tuned, model: &Model) -> Result<(Vote, Vec<Vote>)> {
    let asked = if args.fit_vote { args.vote.or(Some(Vote::Learned)) } else { args.vote };
    let vote = choose_vote(asked, tuned, model.learned().is_some())?;
    if !args.all_votes {
        return Ok((vote, vec![vote]));
    }
    let mut votes = Vote::ALL.to_vec();
    votes.retain(|&rule| rule != Vote::Learned || model.learned().is_some());
    Ok((vote, votes))
}

/// The share of questions that are answered rightly.
fn choices(args: &EvalArgs, source: &Source, tuned: &Tuned, path: &Path) -> Result<()> {
    let choices = Choices::load(path, &source.tokenizer, args.seq_len, args.max_windows)?;
    let (model, bytes) = load(args, source, tuned)?;
    let (vote, votes) = votes(args, tuned, &model)?;
    let count = choices.stream.eval_windows(args.seq_len).div_ceil(BATCH as usize) as u64;
    let mut progress = Progress::new("eval", count, args.quiet);
    let batches = choices.stream.eval_batches(args.seq_len, BATCH as usize, None)?;
    let scores = model.score_sequences(batches, &votes, || progress.step(String::new))?;
    progress.finish();
    let (exits, voted) = choices.accuracies(&scores);
    let voted = votes.iter().zip(voted);
    let voted: Vec<VoteAccuracy> =
        voted.map(|(&rule, accuracy)| VoteAccuracy { rule, accuracy }).collect();
    let last = exits.last().copied().unwrap_or(f64::NAN);
    let many = exits.len() > 1;
    let report = ChoicesReport {
        accuracy: voted.iter().find(|voted| voted.rule == vote).map_or(last, |v| v.accuracy),
        chance: choices.chance(),
        items: choices.len() as u64,
        cut: choices.cut as u64,
        exits: if many { exits } else { Vec::new() },
        votes: voted,
    };
    if !args.quiet {
        show_choices(&report, &model.device.info().name, bytes);
    }
    if args.json {
        print_json(&report)?;
    }
    Ok(())
}

/// Loss and perplexity of a text.
fn text(args: &EvalArgs, source: &Source, tuned: &Tuned) -> Result<()> {
    let data = match (&args.data[..], args.model.is_some()) {
        ([], false) => vec![demo_dir()?.join("valid.txt")],
        (data, _) => data.to_vec(),
    };
    ensure!(!data.is_empty(), "there is nothing to evaluate: give --data a file or folder");
    let spec =
        DataSpec { data, columns: args.columns.clone(), quiet: args.quiet, ..DataSpec::default() };
    let stream = load_eval(&spec, &source.tokenizer)?;
    let fit = stream.fit(args.seq_len);
    if let Some(note) = stream.cut_note(args.seq_len).filter(|_| !args.quiet) {
        eprintln!("{note}");
    }
    let (mut model, bytes) = load(args, source, tuned)?;
    if args.fit_vote {
        fit_vote(args, source, tuned, &mut model, &stream)?;
    }
    let (vote, votes) = votes(args, tuned, &model)?;
    let windows = stream.eval_windows(args.seq_len).min(args.max_windows.unwrap_or(usize::MAX));
    let count = windows.div_ceil(BATCH as usize) as u64;
    let mut progress = Progress::new("eval", count, args.quiet);
    let batches = stream.eval_batches(args.seq_len, BATCH as usize, args.max_windows)?;
    let result = model.evaluate_all(batches, &votes, |_| progress.step(String::new))?;
    progress.finish();
    let chosen = result.votes.iter().find(|voted| voted.rule == vote);
    let loss = chosen.map_or(result.vote, |voted| voted.val_loss);
    let many = result.exits.len() > 1;
    let report = EvalReport {
        loss,
        perplexity: loss.exp(),
        tokens: result.tokens,
        cut: fit.cut as u64,
        skipped: fit.skipped as u64,
        exits: ExitLoss::all(&result.exits),
        vote: many.then(|| VoteLoss { rule: vote.name().into(), val_loss: loss }),
        votes: if args.all_votes { result.votes.clone() } else { Vec::new() },
    };
    if !args.quiet {
        show(&report, &model.device.info().name, bytes);
    }
    if args.json {
        print_json(&report)?;
    }
    Ok(())
}

/// The report of questions for people.
fn show_choices(report: &ChoicesReport, device: &str, bytes: u64) {
    eprintln!(
        "{:.2} % of {} questions answered rightly on {device} ({} of device memory); by guessing \
         {:.2} %",
        100.0 * report.accuracy,
        report.items,
        mebibytes(bytes),
        100.0 * report.chance
    );
    if report.cut > 0 {
        eprintln!(
            "{} questions lost their beginning: raise --seq-len, if the model's context allows it",
            report.cut
        );
    }
    for (index, accuracy) in report.exits.iter().enumerate() {
        eprintln!("  exit {}: {:.2} %", index + 1, 100.0 * accuracy);
    }
    for voted in &report.votes {
        eprintln!("  vote {}: {:.2} %", voted.rule.name(), 100.0 * voted.accuracy);
    }
}

/// The report for people.
fn show(report: &EvalReport, device: &str, bytes: u64) {
    eprintln!(
        "loss {:.4}, perplexity {:.3} over {} tokens on {device} ({} of device memory)",
        report.loss,
        report.perplexity,
        report.tokens,
        mebibytes(bytes)
    );
    let many = report.exits.len() > 1;
    for exit in report.exits.iter().filter(|_| many) {
        eprintln!("  exit {}: loss {:.4}", exit.exit, exit.val_loss);
    }
    if let Some(vote) = &report.vote {
        eprintln!("  vote {}: loss {:.4}", vote.rule, vote.val_loss);
    }
    for voted in &report.votes {
        let (rule, ms) = (voted.rule.name(), voted.ms_per_token);
        eprintln!("  {rule:<8} loss {:.4}, {ms:.3} ms a token", voted.val_loss);
    }
}
