//! `generate`: text from a model, with or without an adapter.

use std::io::Write;
use std::time::Instant;

use anyhow::{Context, Result, ensure};
use edge_gpu::Options;

use super::args::GenerateArgs;
use super::eval::choose_vote;
use crate::draft::{Drafting, MARGIN};
use crate::generate::Sampling;
use crate::inference::{Inference, Made};
use crate::session::open_tuned;

pub(super) fn run(args: &GenerateArgs) -> Result<()> {
    ensure!(
        args.temperature >= 0.0 && args.temperature.is_finite(),
        "--temperature is {}: give 0 for the most probable token or a number above 0",
        args.temperature
    );
    ensure!(
        args.top_p > 0.0 && args.top_p <= 1.0,
        "--top-p is {}: give a number above 0 and at most 1",
        args.top_p
    );
    ensure!(
        args.draft_exit.is_none() || args.temperature == 0.0,
        "--draft-exit verifies the likeliest tokens and --temperature is {}: add --temperature 0",
        args.temperature
    );
    let (source, tuned) =
        open_tuned(args.model.as_deref(), args.adapter.as_deref(), args.run.as_deref())?;
    let device = super::open_device(&args.device, &Options::default())?;
    let learned = tuned.exits.as_ref().is_some_and(|exits| exits.learned.is_some());
    let vote = choose_vote(args.vote, &tuned, learned)?;
    let (temperature, top_p, seed) = (args.temperature, args.top_p, args.seed);
    let drafting =
        args.draft_exit.map(|exit| Drafting { exit, tokens: args.draft_tokens, margin: MARGIN });
    let mut model = Inference::new(device, source, tuned)
        .with_sampling(Sampling { temperature, top_p, seed, vote })
        .with_drafting(drafting)
        .with_memory_budget(args.memory_budget);
    let mut out = std::io::stdout().lock();
    let failed = "cannot write to standard output";
    write!(out, "{}", args.prompt).context(failed)?;
    let started = Instant::now();
    let made = model.stream(&args.prompt, args.max_new_tokens, |piece| {
        write!(out, "{piece}").and_then(|()| out.flush()).context(failed)
    })?;
    let compared = match args.compare_plain {
        true => Some(model.compare_drafts(&args.prompt, args.max_new_tokens, &made)?),
        false => None,
    };
    writeln!(out).context(failed)?;
    if !args.quiet {
        show(&made, compared, started.elapsed().as_secs_f64());
    }
    Ok(())
}

/// What was made, for people.
fn show(made: &Made, compared: Option<[f64; 2]>, seconds: f64) {
    let count = made.tokens.len();
    let rate = count as f64 / seconds.max(1e-9);
    match compared {
        Some(_) => eprintln!("{count} tokens"),
        None => {
            eprintln!("{count} tokens in {seconds:.1} s ({rate:.1} tokens/s, loading included)")
        }
    }
    if let Some(drafts) = &made.drafts {
        eprintln!(
            "{} of {} drafted tokens accepted ({:.0} %) in {} rounds, {} positions run again",
            drafts.accepted,
            drafts.drafted,
            100.0 * drafts.acceptance(),
            drafts.rounds,
            drafts.replayed
        );
    }
    if let Some([drafted, plain]) = compared {
        eprintln!(
            "with drafts {drafted:.3} s, plain {plain:.3} s for the same tokens: {:.2} x",
            plain / drafted.max(1e-9)
        );
    }
}
