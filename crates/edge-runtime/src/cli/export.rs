//! `export`: a tuned model as files for other programs.

use std::cell::RefCell;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use clap::{Args, ValueEnum};
use edge_gpu::Options;
use serde_json::json;

use super::Usage;
use super::args::NumberFormat;
use super::report::{Progress, print_json};
use crate::adapter;
use crate::checkpoint::Dtype;
use crate::compress;
use crate::data::{Columns, DataSpec, load_eval};
use crate::exits::{Exits, Vote};
use crate::gguf::export as gguf;
use crate::gguf::types::Type;
use crate::merge::{Rounding, merge};
use crate::run_dir::{RunDir, write_atomically};
use crate::session::{Source, Tuned, open_tuned};

/// Options of `export`.
#[derive(Clone, Debug, Args)]
pub struct ExportArgs {
    /// Hugging Face model folder or GGUF file [default: the run's]
    #[arg(long, value_name = "DIR")]
    pub model: Option<PathBuf>,
    /// PEFT adapter folder
    #[arg(long, value_name = "DIR", conflicts_with = "run")]
    pub adapter: Option<PathBuf>,
    /// Run directory of tune
    #[arg(long, value_name = "DIR")]
    pub run: Option<PathBuf>,
    /// Where it goes, a new or empty folder
    #[arg(long, value_name = "DIR")]
    pub out: PathBuf,
    /// What is written
    #[arg(long, value_enum, default_value_t)]
    pub format: Format,
    /// Number format of the weights, with --format safetensors [default: the base's own]
    #[arg(long, value_enum)]
    pub dtype: Option<NumberFormat>,
    /// Type of the matrices, with --format gguf [default: f16]
    #[arg(long, value_enum)]
    pub gguf_type: Option<GgufType>,
    /// Text to measure the loss on, of base and adapter and of what was written; may be repeated
    #[arg(long, value_name = "PATH")]
    pub data: Vec<PathBuf>,
    /// Names of its JSON columns, ours=theirs, such as prompt=question,completion=answer
    #[arg(long, value_name = "OURS=THEIRS,...", requires = "data")]
    pub columns: Option<Columns>,
    /// Device to measure on: auto, cpu, an index or a part of a device's name
    #[arg(long, default_value = "auto", requires = "data")]
    pub device: String,
    /// Print one JSON object on stdout as the last line
    #[arg(long)]
    pub json: bool,
    /// Print nothing on stderr but errors
    #[arg(long)]
    pub quiet: bool,
}

/// What `export` writes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum Format {
    /// Base and adapter merged, a Hugging Face model folder
    #[default]
    Safetensors,
    /// The LoRA adapter alone, a PEFT folder
    Peft,
    /// Base and adapter merged, in the formats of a compressed base: a model folder of this program
    Compressed,
    /// Base and adapter merged, a file for llama.cpp
    Gguf,
    /// The LoRA adapter alone, a file for llama.cpp
    GgufAdapter,
}

impl Format {
    fn merges(self) -> bool {
        matches!(self, Self::Safetensors | Self::Compressed | Self::Gguf)
    }
}

/// Types of matrices in a GGUF file.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum GgufType {
    /// IEEE half
    F16,
    /// 8 bits, a scale for 32 weights
    #[value(name = "q8_0")]
    Q8_0,
    /// 4 bits, a scale for 32 weights
    #[value(name = "q4_0")]
    Q4_0,
}

impl From<GgufType> for Type {
    fn from(kind: GgufType) -> Self {
        match kind {
            GgufType::F16 => Self::Plain(Dtype::F16),
            GgufType::Q8_0 => Self::Q8_0,
            GgufType::Q4_0 => Self::Q4_0,
        }
    }
}

/// Sequences that are evaluated at once, and their tokens.
const EVAL: (usize, usize) = (4, 256);

/// What was written.
struct Written {
    /// What the next program is given.
    place: PathBuf,
    tensors: u64,
    rounding: Option<Rounding>,
    /// Tensors that are in f16 instead of blocks.
    in_f16: Vec<String>,
}

/// Flags that do not go together.
fn check(args: &ExportArgs) -> Result<()> {
    let wrong = match args.format {
        _ if args.dtype.is_some() && args.format != Format::Safetensors => {
            "--dtype goes with --format safetensors alone: leave it out, or give --gguf-type"
        }
        _ if args.gguf_type.is_some() && args.format != Format::Gguf => {
            "--gguf-type goes with --format gguf alone: leave it out"
        }
        format if !args.data.is_empty() && !format.merges() => {
            "--data measures what is merged: leave it out, or give --format safetensors, \
             compressed or gguf"
        }
        _ => return Ok(()),
    };
    Err(anyhow::Error::new(Usage(wrong.to_owned())))
}

pub(super) fn run(args: &ExportArgs) -> Result<()> {
    check(args)?;
    let (source, tuned) =
        open_tuned(args.model.as_deref(), args.adapter.as_deref(), args.run.as_deref())?;
    // A model without adapter is worth writing in another format alone.
    ensure!(
        tuned.adapter.is_some() || args.format == Format::Gguf,
        "there is no adapter to merge: give --run a directory of tune with --method edge, lora, \
         qlora or partial, or --adapter a PEFT folder"
    );
    RunDir::check(Some(&args.out))?;
    let before = loss(args, &source, &tuned)?;
    let made = !args.out.exists();
    let written = write(args, &source, &tuned).inspect_err(|_| remove(&args.out, made))?;
    let after = match args.data.is_empty() {
        true => None,
        false => loss(args, &Source::open(&written.place)?, &Tuned::default())?,
    };
    let facts = facts(args, &tuned, &written, (before, after));
    let card = card(args, &source, &facts);
    write_atomically(&args.out.join("README.md"), card.as_bytes())?;
    let packed = tuned.options.as_ref().and_then(|options| options.bits).map(u32::from);
    let packed = packed.filter(|bits| *bits < 16);
    if !args.quiet {
        notes(args, &source, &tuned, &written, packed);
        facts.iter().for_each(|(name, value)| eprintln!("{name}: {value}"));
        eprintln!("written to {}", written.place.display());
    }
    if args.json {
        print_json(&json!({
            "out": args.out,
            "tensors": written.tensors,
            "base_bits": packed,
            "format": args.format.to_possible_value().map(|value| value.get_name().to_owned()),
            "file": written.place,
            "rounded_weights": written.rounding.map(|rounding| rounding.moved),
            "weights": written.rounding.map(|rounding| rounding.weights),
            "loss_before": before,
            "loss_after": after,
        }))?;
    }
    Ok(())
}

/// Takes away what a failed export left in a folder that was empty.
fn remove(out: &Path, made: bool) {
    // Nothing more can be done about what cannot be removed.
    for file in fs::read_dir(out).into_iter().flatten().flatten() {
        let _ = fs::remove_file(file.path());
    }
    if made {
        let _ = fs::remove_dir(out);
    }
}

fn write(args: &ExportArgs, source: &Source, tuned: &Tuned) -> Result<Written> {
    let out = &args.out;
    fs::create_dir_all(out)
        .with_context(|| format!("cannot make {}: give another --out", out.display()))?;
    let adapted = tuned.adapter.as_ref().map_or(0, |(_, tensors)| 2 * tensors.len() as u64);
    let tensors = match args.format {
        Format::Compressed => 7 * source.config.num_hidden_layers as u64,
        format if format.merges() => source.checkpoint.names().count() as u64,
        _ => adapted,
    };
    let progress = RefCell::new(Progress::new("export", tensors, args.quiet));
    let step = || progress.borrow_mut().step(String::new);
    let mut written = Written { place: out.clone(), tensors, rounding: None, in_f16: Vec::new() };
    match args.format {
        Format::Safetensors => {
            let rounding = merge(source, tuned, out, args.dtype.map(Into::into), &step)?;
            written.rounding = Some(rounding);
        }
        Format::Compressed => {
            written.rounding = Some(compress::merge::merge(source, tuned, out, &step)?);
        }
        Format::Gguf => {
            let kind = args.gguf_type.unwrap_or(GgufType::F16);
            let name = format!("model-{}.gguf", Type::from(kind)).to_lowercase();
            written.place = out.join(name);
            let model = gguf::model(source, tuned, &written.place, kind.into(), &step)?;
            (written.rounding, written.in_f16) = (Some(model.rounding), model.in_f16);
        }
        Format::GgufAdapter => {
            written.place = out.join("adapter.gguf");
            written.tensors = 2 * gguf::adapter(source, tuned, &written.place, &step)? as u64;
        }
        Format::Peft => written.tensors = peft(source, tuned, out)?,
    }
    progress.into_inner().finish();
    Ok(written)
}

/// Writes the adapter as PEFT has it; how many tensors.
fn peft(source: &Source, tuned: &Tuned, out: &Path) -> Result<u64> {
    let (config, tensors) = tuned.adapter.as_ref().context("an adapter to write")?;
    let first = tuned.exits.as_ref().map_or(0, Exits::first_adapted);
    let adapted: Vec<_> = tensors.keys().copied().filter(|(layer, _)| *layer >= first).collect();
    let read = |layer, projection, matrix| {
        let (a, b) = tensors.get(&(layer, projection)).context("a layer of the adapter")?;
        Ok(if matrix == 'A' { a.clone() } else { b.clone() })
    };
    adapter::save(out, config, &adapted, &source.config, &read)?;
    // Projections that are one layer in the checkpoint have their tensors together.
    let first_part = |projection| source.config.family.layer(projection).parts[0] == projection;
    Ok(2 * adapted.iter().filter(|(_, projection)| first_part(*projection)).count() as u64)
}

/// The loss at the last exit, in the checkpoint's own numbers; `None` without `--data`.
fn loss(args: &ExportArgs, source: &Source, tuned: &Tuned) -> Result<Option<f64>> {
    if args.data.is_empty() {
        return Ok(None);
    }
    let (batch, seq_len) = EVAL;
    let seq_len = seq_len.min(source.config.max_position_embeddings);
    let spec = DataSpec {
        data: args.data.clone(),
        columns: args.columns.clone(),
        quiet: args.quiet,
        ..DataSpec::default()
    };
    let stream = load_eval(&spec, &source.tokenizer)?;
    if let Some(note) = stream.cut_note(seq_len).filter(|_| !args.quiet) {
        eprintln!("{note}");
    }
    let device = super::open_device(&args.device, &Options::default())?;
    let mut job = source.job(source.formats(None, None)?, batch as u32, seq_len as u32);
    tuned.apply(&mut job);
    let model = tuned.load(&device, source, &job, &mut |_| ())?;
    let count = stream.eval_batch_count(seq_len, batch, None);
    let mut progress = Progress::new("loss", count, args.quiet);
    let batches = stream.eval_batches(seq_len, batch, None)?;
    let result = model.evaluate_all(batches, &[Vote::Last], |_| progress.step(String::new))?;
    progress.finish();
    Ok(result.exits.last().copied())
}

/// What a person should know of what was left out.
fn notes(
    args: &ExportArgs,
    source: &Source,
    tuned: &Tuned,
    written: &Written,
    packed: Option<u32>,
) {
    if let Some(bits) = packed {
        eprintln!(
            "the adapter was trained over weights of {bits} bits and is merged into the original \
             ones of {}",
            source.dir.display()
        );
    }
    let exits = tuned.exits.as_ref();
    if exits.is_some_and(|exits| exits.first_adapted() > 0) {
        eprintln!(
            "the run's windows are isolated: merged is the last exit, with the top window's \
             adapters alone"
        );
    }
    if let Some(exits) = exits.filter(|_| !args.format.merges()) {
        eprintln!(
            "the run has trained {} of exits as well, which an adapter has no place for: \
             --format safetensors or gguf writes the last one's",
            if exits.terms.is_some() { "norms and low-rank terms" } else { "norms" }
        );
    }
    if exits.and_then(Exits::head_term).is_some() && args.format.merges() {
        let tied = source.config.tie_word_embeddings;
        eprintln!(
            "the last exit's low-rank term is merged into the head{}",
            if tied { ", which is a tensor of its own now instead of the embedding" } else { "" }
        );
    }
    if !written.in_f16.is_empty() {
        eprintln!(
            "{} tensors are in F16, since their rows are no whole blocks: {}",
            written.in_f16.len(),
            written.in_f16.join(", ")
        );
    }
    if args.format == Format::Gguf && source.config.sliding_window.is_some() {
        eprintln!(
            "llama.cpp has no sliding window for this family: beyond it, what it computes differs"
        );
    }
}

/// Settings and results, for the card and for people.
fn facts(
    args: &ExportArgs,
    tuned: &Tuned,
    written: &Written,
    (before, after): (Option<f64>, Option<f64>),
) -> Vec<(&'static str, String)> {
    let mut facts = Vec::new();
    if let Some((config, tensors)) = &tuned.adapter {
        let (r, alpha) = (config.r, config.lora_alpha);
        facts.push(("adapter", format!("rank {r}, alpha {alpha}, {} layers", tensors.len())));
    }
    if let Some(Rounding { moved, weights }) = written.rounding {
        let share = 100.0 * moved as f64 / weights.max(1) as f64;
        facts.push(("moved by rounding", format!("{moved} of {weights} weights ({share:.2} %)")));
    }
    if let (Some(before), Some(after)) = (before, after) {
        let files: Vec<String> = args.data.iter().map(|path| path.display().to_string()).collect();
        let what = files.join(", ");
        facts.push(("loss", format!("{before:.4} before, {after:.4} as written, on {what}")));
    }
    facts
}

/// `README.md`: what this is, and how it is used.
fn card(args: &ExportArgs, source: &Source, facts: &[(&str, String)]) -> String {
    let base = source.dir.display().to_string();
    let name = base.rsplit(['/', '\\']).next().unwrap_or(&base);
    let (what, usage) = match args.format {
        Format::Safetensors => (
            "Base and adapter merged, a Hugging Face model folder.",
            "from transformers import AutoModelForCausalLM\n\n\
             model = AutoModelForCausalLM.from_pretrained(\"THIS_DIRECTORY\")",
        ),
        Format::Compressed => (
            "Base and adapter merged, a compressed model folder of edge-llm.",
            "edge-runtime generate --model THIS_DIRECTORY --prompt \"Once upon a time\"",
        ),
        Format::Peft => (
            "A LoRA adapter in the format of PEFT.",
            "from peft import PeftModel\nfrom transformers import AutoModelForCausalLM\n\n\
             base = AutoModelForCausalLM.from_pretrained(\"BASE_MODEL\")\n\
             model = PeftModel.from_pretrained(base, \"THIS_DIRECTORY\")",
        ),
        Format::Gguf => {
            ("A model for llama.cpp.", "llama-cli -m FILE.gguf -p \"Once upon a time\"")
        }
        Format::GgufAdapter => (
            "A LoRA adapter for llama.cpp.",
            "llama-cli -m BASE.gguf --lora adapter.gguf -p \"Once upon a time\"",
        ),
    };
    let tuned = if facts.iter().any(|(fact, _)| *fact == "adapter") { ", tuned" } else { "" };
    let cell = |text: &str| text.replace('|', "\\|").replace('\n', " ");
    let rows = facts.iter().map(|(name, value)| format!("| {name} | {} |\n", cell(value)));
    format!(
        "---\nbase_model: {}\ntags:\n- edge-llm\n---\n\n# {name}{tuned}\n\n{what}\n\n\
         | | |\n| --- | --- |\n| base | {} |\n{}\n```\n{usage}\n```\n",
        json!(base),
        cell(&base),
        rows.collect::<String>()
    )
}
