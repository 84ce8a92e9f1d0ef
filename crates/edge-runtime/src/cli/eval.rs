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
use crate::inference::{EVAL_BATCH, load_to_evaluate};
use crate::model::Model;
use crate::session::{Source, Tuned, demo_dir, mebibytes, open_tuned};
use crate::tune::checkpoints;

/// The rule that is asked for, or the run's own; the last exit's where there are no exits.
pub(super) fn choose_vote(asked: Option<Vote>, tuned: &Tuned, learned: bool) -> Result<Vote> {
    ensure!(
        asked != Some(Vote::Learned) || learned,
        "there is no learned vote: fit one with eval --run DIR --data FILE --fit-vote"
    );
    Ok(asked.unwrap_or_else(|| tuned.vote()))
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
    ensure!(
        !run.join(checkpoints::SUMS).exists(),
        "{} is a checkpoint, which has to stay as it is: give --run its run directory, or best/",
        run.display()
    );
    let batches = stream.eval_batches(args.seq_len, EVAL_BATCH, args.max_windows)?;
    let learned = model.score_exits(batches, || ())?.fit()?;
    model.set_learned(learned.clone())?;
    let exits = Exits { vote: Vote::Learned, learned: Some(learned), ..exits.clone() };
    exits.save(run, &source.config)
}

pub(super) fn run(args: &EvalArgs) -> Result<()> {
    let (source, tuned) =
        open_tuned(args.model.as_deref(), args.adapter.as_deref(), args.run.as_deref())?;
    check_seq_len(args.seq_len, source.config.max_position_embeddings)?;
    ensure!(args.seq_len >= 2, "--seq-len is below 2: give at least 2");
    ensure!(args.max_windows != Some(0), "--max-windows is 0: give at least 1, or leave it out");
    match &args.choices {
        Some(path) => choices(args, &source, &tuned, path),
        None => text(args, &source, &tuned),
    }
}

/// Loads the model to evaluate, and says what it takes of the device's memory, bytes.
fn load(args: &EvalArgs, source: &Source, tuned: &Tuned) -> Result<(Model, u64)> {
    let device = super::open_device(&args.device, &Options::default())?;
    let tensors = 7 * source.config.num_hidden_layers as u64 + 1;
    let mut loading = Progress::new("load", tensors, args.quiet);
    let budget = args.memory_budget;
    let loaded = load_to_evaluate(&device, source, tuned, args.seq_len, budget, &mut |_| {
        loading.step(String::new);
    })?;
    loading.finish();
    Ok(loaded)
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
    let count = choices.stream.eval_batch_count(args.seq_len, EVAL_BATCH, None);
    let mut progress = Progress::new("eval", count, args.quiet);
    let batches = choices.stream.eval_batches(args.seq_len, EVAL_BATCH, None)?;
    let scores = model.score_sequences(batches, &votes, || progress.step(String::new))?;
    progress.finish();
    let all = scores.exits.iter().chain(&scores.votes).flatten();
    ensure!(
        all.copied().all(f64::is_finite),
        "the model's output is no number: check its weights, or those of the adapter"
    );
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
    // The bundled text is for the bundled model.
    let canonical = |path: &Path| path.canonicalize().ok();
    let demo = demo_dir().ok().filter(|demo| {
        args.model.is_none() && canonical(&demo.join("model")) == canonical(&source.dir)
    });
    let data = match (&args.data[..], demo) {
        ([], Some(demo)) => vec![demo.join("valid.txt")],
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
    let count = stream.eval_batch_count(args.seq_len, EVAL_BATCH, args.max_windows);
    let mut progress = Progress::new("eval", count, args.quiet);
    let batches = stream.eval_batches(args.seq_len, EVAL_BATCH, args.max_windows)?;
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
