//! `generate`: text from a model, with or without an adapter.

use std::io::Write;
use std::time::Instant;

use anyhow::{Context, Result, ensure};
use edge_gpu::{Device, Options};

use super::args::{ByteSize, GenerateArgs};
use super::eval::{choose_vote, formats, open};
use crate::draft::{DraftCounts, Drafting, MARGIN};
use crate::generate::{PREFILL_TOKENS, Sampling};
use crate::model::Model;
use crate::session::{Source, Tuned, within_budget};

/// A text to be continued.
pub(super) struct Request<'a> {
    pub(super) prompt: &'a str,
    pub(super) max_new_tokens: usize,
    pub(super) sampling: Sampling,
    pub(super) drafting: Option<Drafting>,
    pub(super) compare_plain: bool,
    pub(super) memory_budget: Option<ByteSize>,
}

/// What came of it.
#[derive(Default)]
pub(super) struct Made {
    tokens: usize,
    drafts: Option<DraftCounts>,
    /// Seconds with drafts and without.
    compared: Option<[f64; 2]>,
}

/// Continues the tokens of a prompt, with drafts where the request says so.
fn continue_tokens(
    model: &Model,
    prompt: &[u32],
    request: &Request<'_>,
    drafting: Option<Drafting>,
    stops: &[u32],
    on_token: impl FnMut(u32) -> Result<()>,
) -> Result<(Vec<u32>, Option<DraftCounts>)> {
    let (count, sampling) = (request.max_new_tokens, &request.sampling);
    let stop = |token| stops.contains(&token);
    let Some(drafting) = drafting else {
        return Ok((model.generate(prompt, count, sampling, stop, on_token)?, None));
    };
    let made = model.generate_drafted(prompt, count, sampling.vote, drafting, stop, on_token)?;
    Ok((made.0, Some(made.1)))
}

/// Seconds with drafts and without, when all kernels are there already.
fn compare(
    model: &Model,
    prompt: &[u32],
    request: &Request<'_>,
    stops: &[u32],
    want: &[u32],
) -> Result<[f64; 2]> {
    let time = |drafting| {
        let started = Instant::now();
        let made = continue_tokens(model, prompt, request, drafting, stops, |_| Ok(()))?;
        ensure!(
            made.0 == want,
            "decoding with drafts and without made different tokens: leave --draft-exit out and \
             report the model, the device and the prompt"
        );
        Ok(started.elapsed().as_secs_f64())
    };
    let plain = time(None)?;
    Ok([time(request.drafting)?, plain])
}

/// Continues a prompt, handing the text out as it grows.
pub(super) fn continue_text(
    device: &Device,
    source: &Source,
    tuned: &Tuned,
    request: &Request<'_>,
    mut on_text: impl FnMut(&str) -> Result<()>,
) -> Result<Made> {
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
    if let Some(drafting) = &request.drafting {
        drafting.check(&job.windows, job.isolated)?;
    }
    let (job, _) = within_budget(source, job, device, request.memory_budget)?;
    let model = tuned.load(device, source, &job, &mut |_| ())?;
    let mut stops = source.config.eos_token_ids.clone();
    stops.extend(tokenizer.eos_id());
    let mut text = tokenizer.stream(&prompt)?;
    let (made, drafts) =
        continue_tokens(&model, &prompt, request, request.drafting, &stops, |token| {
            on_text(&text.push(token)?)
        })?;
    on_text(&text.finish()?)?;
    let compared = match request.compare_plain {
        true => Some(compare(&model, &prompt, request, &stops, &made)?),
        false => None,
    };
    Ok(Made { tokens: made.len(), drafts, compared })
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
    ensure!(
        args.draft_exit.is_none() || args.temperature == 0.0,
        "--draft-exit verifies the likeliest tokens and --temperature is {}: add --temperature 0",
        args.temperature
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
        drafting: args.draft_exit.map(|exit| Drafting {
            exit,
            tokens: args.draft_tokens,
            margin: MARGIN,
        }),
        compare_plain: args.compare_plain,
        memory_budget: args.memory_budget,
    };
    let mut out = std::io::stdout().lock();
    let failed = "cannot write to standard output";
    write!(out, "{}", args.prompt).context(failed)?;
    let started = Instant::now();
    let made = continue_text(&device, &source, &tuned, &request, |piece| {
        write!(out, "{piece}").and_then(|()| out.flush()).context(failed)
    })?;
    writeln!(out).context(failed)?;
    if !args.quiet {
        show(&made, started.elapsed().as_secs_f64());
    }
    Ok(())
}

/// What was made, for people.
fn show(made: &Made, seconds: f64) {
    let (count, rate) = (made.tokens, made.tokens as f64 / seconds.max(1e-9));
    match made.compared {
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
    if let Some([drafted, plain]) = made.compared {
        eprintln!(
            "with drafts {drafted:.3} s, plain {plain:.3} s for the same tokens: {:.2} x",
            plain / drafted.max(1e-9)
        );
    }
}
