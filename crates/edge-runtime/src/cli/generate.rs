//! `generate`: text from a model, with or without an adapter.

use std::io::Write;
use std::time::Instant;

use anyhow::{Context, Result, ensure};
use edge_gpu::{Device, Options};

use super::args::GenerateArgs;
use super::eval::{choose_vote, formats, open};
use crate::generate::{PREFILL_TOKENS, Sampling};
use crate::session::{Source, Tuned};

/// A text to be continued.
pub(super) struct Request<'a> {
    pub(super) prompt: &'a str,
    pub(super) max_new_tokens: usize,
    pub(super) sampling: Sampling,
}

/// Continues a prompt, handing the text out as it grows; returns the new tokens.
pub(super) fn continue_text(
    device: &Device,
    source: &Source,
    tuned: &Tuned,
    request: &Request<'_>,
    mut on_text: impl FnMut(&str) -> Result<()>,
) -> Result<usize> {
    let tokenizer = &source.tokenizer;
    let mut prompt = tokenizer.encode(request.prompt, true)?;
    if prompt.is_empty() {
        // A model that begins documents with a marker can start from nothing.
        prompt.extend(tokenizer.bos_id().or(tokenizer.eos_id()));
    }
    ensure!(!prompt.is_empty(), "the prompt is empty: give --prompt a text");
    let context = source.config.max_position_embeddings;
    let positions = (prompt.len() + request.max_new_tokens).min(context);
    ensure!(
        prompt.len() < context,
        "the prompt has {} tokens and the model's context is {context}: shorten --prompt",
        prompt.len()
    );
    let mut job = source.job(formats(source, tuned)?, 1, PREFILL_TOKENS.min(positions as u32));
    tuned.apply(&mut job);
    job.cache = Some(positions as u32);
    job.positions = positions as u32;
    job.vote = true;
    let model = tuned.load(device, source, &job, &mut |_| ())?;
    let mut stops = source.config.eos_token_ids.clone();
    stops.extend(tokenizer.eos_id());
    let mut text = tokenizer.stream(&prompt)?;
    let made = model.generate(
        &prompt,
        request.max_new_tokens,
        &request.sampling,
        |token| stops.contains(&token),
        |token| on_text(&text.push(token)?),
    )?;
    on_text(&text.finish()?)?;
    Ok(made.len())
}

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
    let (source, tuned) =
        open(args.model.as_deref(), args.adapter.as_deref(), args.run.as_deref())?;
    let device = super::open_device(&args.device, &Options::default())?;
    let learned = tuned.exits.as_ref().is_some_and(|exits| exits.learned.is_some());
    let vote = choose_vote(args.vote, &tuned, learned)?;
    let request = Request {
        prompt: &args.prompt,
        max_new_tokens: args.max_new_tokens,
        sampling: Sampling {
            temperature: args.temperature,
            top_p: args.top_p,
            seed: args.seed,
            vote,
        },
    };
    let mut out = std::io::stdout().lock();
    let failed = "cannot write to standard output";
    write!(out, "{}", args.prompt).context(failed)?;
    let started = Instant::now();
    let count = continue_text(&device, &source, &tuned, &request, |piece| {
        write!(out, "{piece}").and_then(|()| out.flush()).context(failed)
    })?;
    writeln!(out).context(failed)?;
    if !args.quiet {
        let seconds = started.elapsed().as_secs_f64();
        let rate = count as f64 / seconds.max(1e-9);
        eprintln!("{count} tokens in {seconds:.1} s ({rate:.1} tokens/s, loading included)");
    }
    Ok(())
}
