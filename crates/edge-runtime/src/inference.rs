//! A model in use: text from it, and its loss on texts.

use std::path::{Path, PathBuf};
use std::time::Instant;

use anyhow::{Context, Result, ensure};
use edge_gpu::{Device, Options};

use crate::batch::check_seq_len;
use crate::cli::args::ByteSize;
use crate::data::{DataSpec, load_eval};
use crate::draft::{DraftCounts, Drafting};
use crate::evaluate::Evaluation;
use crate::generate::{PREFILL_TOKENS, Sampling};
use crate::model::Model;
use crate::session::{Source, Tuned, open_device, open_tuned, within_budget};

/// Sequences that are evaluated at once.
pub const EVAL_BATCH: usize = 4;

/// A model, with what tuning left for it, that is used on a device.
///
/// ```no_run
/// use edge_runtime::Inference;
///
/// # fn main() -> anyhow::Result<()> {
/// let mut model = Inference::of_run("runs/mine".as_ref(), "auto")?;
/// println!("{}", model.generate("Once upon a time", 60)?);
/// println!("{:.3} nats", model.evaluate(&["test.txt".into()], 256)?.vote);
/// # Ok(())
/// # }
/// ```
pub struct Inference {
    device: Device,
    source: Source,
    tuned: Tuned,
    sampling: Sampling,
    drafting: Option<Drafting>,
    memory_budget: Option<ByteSize>,
    /// Weights on the device with a key-value cache, from the first prompt on.
    loaded: Option<Model>,
}

/// What came of a prompt.
#[derive(Clone, Debug, PartialEq)]
pub struct Made {
    /// New tokens.
    pub tokens: Vec<u32>,
    /// What became of drafts, where there were any.
    pub drafts: Option<DraftCounts>,
}

impl Inference {
    /// The model, adapter and exits of a run directory, on the device that `selector` names
    /// (`auto`, `cpu`, an index or a part of a name).
    ///
    /// # Errors
    /// A file is absent or does not fit the others, or there is no such device.
    pub fn of_run(run: &Path, selector: &str) -> Result<Self> {
        let (source, tuned) = open_tuned(None, None, Some(run))?;
        Self::on(selector, source, tuned)
    }

    /// A Hugging Face folder or GGUF file, with a PEFT adapter folder or without.
    ///
    /// # Errors
    /// As [`Inference::of_run`].
    pub fn open(model: &Path, adapter: Option<&Path>, selector: &str) -> Result<Self> {
        let (source, tuned) = open_tuned(Some(model), adapter, None)?;
        Self::on(selector, source, tuned)
    }

    fn on(selector: &str, source: Source, tuned: Tuned) -> Result<Self> {
        let (device, notice) = open_device(selector, &Options::default())?;
        if let Some(notice) = notice {
            tracing::warn!("{notice}");
        }
        Ok(Self::new(device, source, tuned))
    }

    /// What is open already. The most probable token is taken, and exits are combined as the run
    /// says.
    pub fn new(device: Device, source: Source, tuned: Tuned) -> Self {
        let sampling = Sampling { temperature: 0.0, top_p: 1.0, seed: 0, vote: tuned.vote() };
        let (drafting, memory_budget, loaded) = (None, None, None);
        Self { device, source, tuned, sampling, drafting, memory_budget, loaded }
    }

    /// How tokens are chosen and exits combined.
    #[must_use]
    pub fn with_sampling(self, sampling: Sampling) -> Self {
        Self { sampling, ..self }
    }

    /// Lets an exit draft what the whole model verifies, which goes with temperature 0.
    #[must_use]
    pub fn with_drafting(self, drafting: Option<Drafting>) -> Self {
        Self { drafting, loaded: None, ..self }
    }

    /// Most device memory; blocks that do not fit are streamed.
    #[must_use]
    pub fn with_memory_budget(self, budget: Option<ByteSize>) -> Self {
        Self { memory_budget: budget, loaded: None, ..self }
    }

    /// Continues a prompt by up to `max_new_tokens`, or until the model ends the text; returns what
    /// is new. The weights stay on the device for the next prompt.
    ///
    /// # Errors
    /// The prompt is empty or fills the model's context, the model does not fit the memory budget,
    /// or the device fails.
    pub fn generate(&mut self, prompt: &str, max_new_tokens: usize) -> Result<String> {
        let mut text = String::new();
        self.stream(prompt, max_new_tokens, |piece| {
            text.push_str(piece);
            Ok(())
        })?;
        Ok(text)
    }

    /// As [`Inference::generate`], handing the text out as it grows.
    ///
    /// # Errors
    /// As [`Inference::generate`], or that of `on_text`.
    pub fn stream(
        &mut self,
        prompt: &str,
        max_new_tokens: usize,
        mut on_text: impl FnMut(&str) -> Result<()>,
    ) -> Result<Made> {
        let prompt = self.prepare(prompt, max_new_tokens)?;
        let mut text = self.source.tokenizer.stream(&prompt)?;
        let drafting = self.drafting;
        let made = self.continue_tokens(&prompt, max_new_tokens, drafting, |token| {
            on_text(&text.push(token)?)
        })?;
        on_text(&text.finish()?)?;
        Ok(made)
    }

    /// Seconds with drafts and without for a prompt that made `want` before, when all kernels are
    /// there already.
    ///
    /// # Errors
    /// As [`Inference::generate`], or other tokens are made.
    pub fn compare_drafts(
        &mut self,
        prompt: &str,
        max_new_tokens: usize,
        want: &Made,
    ) -> Result<[f64; 2]> {
        let prompt = self.prepare(prompt, max_new_tokens)?;
        let time = |drafting| {
            let started = Instant::now();
            let made = self.continue_tokens(&prompt, max_new_tokens, drafting, |_| Ok(()))?;
            ensure!(
                made.tokens == want.tokens,
                "decoding with drafts and without made different tokens: leave --draft-exit out \
                 and report the model, the device and the prompt"
            );
            Ok(started.elapsed().as_secs_f64())
        };
        let plain = time(None)?;
        Ok([time(self.drafting)?, plain])
    }

    /// Mean losses over texts, JSONL files or folders, in windows of `seq_len` tokens, at every
    /// exit and by the run's vote.
    ///
    /// # Errors
    /// A file is not usable, or as [`Inference::generate`].
    pub fn evaluate(&mut self, data: &[PathBuf], seq_len: usize) -> Result<Evaluation> {
        // Not two models at once.
        self.loaded = None;
        let Self { device, source, tuned, .. } = &*self;
        check_seq_len(seq_len, source.config.max_position_embeddings)?;
        let spec = DataSpec { data: data.to_vec(), quiet: true, ..DataSpec::default() };
        let texts = load_eval(&spec, &source.tokenizer)?;
        let batches = texts.eval_batches(seq_len, EVAL_BATCH, None)?;
        let budget = self.memory_budget;
        let (model, _) = load_to_evaluate(device, source, tuned, seq_len, budget, &mut |_| ())?;
        model.evaluate(batches, self.sampling.vote, |_| ())
    }

    /// Tokens of a prompt, for which the model is on the device behind this.
    fn prepare(&mut self, prompt: &str, max_new_tokens: usize) -> Result<Vec<u32>> {
        ensure!(max_new_tokens > 0, "--max-new-tokens is 0: give a whole number above 0");
        let tokenizer = &self.source.tokenizer;
        // What ends a text has no place behind one that is to go on.
        let (before, _) = tokenizer.around();
        let mut prompt = [before, &tokenizer.encode(prompt, false)?].concat();
        if prompt.is_empty() {
            // A model that begins documents with a marker can start from nothing.
            prompt.extend(tokenizer.bos_id().or(tokenizer.eos_id()));
        }
        ensure!(!prompt.is_empty(), "the prompt is empty: give --prompt a text");
        let context = self.source.config.max_position_embeddings;
        ensure!(
            prompt.len() < context,
            "the prompt has {} tokens and the model's context is {context}: shorten --prompt",
            prompt.len()
        );
        let positions = prompt.len().saturating_add(max_new_tokens).min(context);
        let held = self.loaded.as_ref().map_or(0, |model| model.job.positions as usize);
        if held < positions {
            // Prompts that get longer and longer, as of a conversation, must not load each time.
            self.load(positions.max(2 * held).min(context) as u32)?;
        }
        Ok(prompt)
    }

    fn load(&mut self, positions: u32) -> Result<()> {
        // Not two models at once.
        self.loaded = None;
        let Self { device, source, tuned, .. } = &*self;
        let mut job = source.job(tuned.formats(source)?, 1, PREFILL_TOKENS.min(positions));
        tuned.apply(&mut job);
        job.cache = Some(positions);
        job.positions = positions;
        job.vote = true;
        if let Some(drafting) = &self.drafting {
            drafting.check(&job.windows, job.isolated)?;
        }
        let (job, _) = within_budget(source, job, device, self.memory_budget)?;
        self.loaded = Some(tuned.load(device, source, &job, &mut |_| ())?);
        Ok(())
    }

    /// Continues the tokens of a prompt, with drafts or without.
    fn continue_tokens(
        &self,
        prompt: &[u32],
        count: usize,
        drafting: Option<Drafting>,
        on_token: impl FnMut(u32) -> Result<()>,
    ) -> Result<Made> {
        let model = self.loaded.as_ref().context("no model is loaded for the prompt")?;
        let eos = self.source.tokenizer.eos_id();
        let stop = |token| {
            self.source.config.eos_token_ids.contains(&token) || eos.is_some_and(|eos| eos == token)
        };
        let Some(drafting) = drafting else {
            let tokens = model.generate(prompt, count, &self.sampling, stop, on_token)?;
            return Ok(Made { tokens, drafts: None });
        };
        let vote = self.sampling.vote;
        let (tokens, drafts) =
            model.generate_drafted(prompt, count, vote, drafting, stop, on_token)?;
        Ok(Made { tokens, drafts: Some(drafts) })
    }
}

/// Loads a model to evaluate [`EVAL_BATCH`] sequences of `seq_len` tokens at once, and says what it
/// takes of the device's memory, bytes.
///
/// # Errors
/// It does not fit the budget, or the device fails.
pub fn load_to_evaluate(
    device: &Device,
    source: &Source,
    tuned: &Tuned,
    seq_len: usize,
    budget: Option<ByteSize>,
    progress: &mut dyn FnMut(usize),
) -> Result<(Model, u64)> {
    let mut job = source.job(tuned.formats(source)?, EVAL_BATCH as u32, seq_len as u32);
    tuned.apply(&mut job);
    let (job, plan) = within_budget(source, job, device, budget)?;
    Ok((tuned.load(device, source, &job, progress)?, plan.bytes()))
}
