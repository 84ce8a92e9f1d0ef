//! Flags of the commands. `tune` takes the same names from a YAML file (`--config`).

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand};
use serde::Deserialize;

pub use super::compare::CompareArgs;
pub use super::compress::CompressArgs;
pub use super::export::ExportArgs;
use edge_scheduler::profiles::DeviceProfile;

pub use super::parts::*;
pub use super::schema::{CompletionsArgs, ManArgs};
pub use super::values::*;
pub use super::watch::{ReportArgs, WatchArgs};

use crate::adapter::Targets;
use crate::data::Columns;
use crate::exits::Vote;
use crate::schedule::Schedule;

/// Adapts large language models on the device that holds the data.
#[derive(Debug, Parser)]
#[command(name = "edge-runtime", version)]
pub struct Cli {
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// The commands.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Adapt a model; without arguments, the bundled demo model on the bundled demo text
    Tune(Box<TuneArgs>),
    /// Show what a run would allocate and take, on this device or by another's data sheet
    Plan(Box<PlanArgs>),
    /// Run several methods on one model and data set, and compare speed, memory and loss
    Compare(Box<CompareArgs>),
    /// Compress a model layer by layer, by measured sensitivity
    Compress(Box<CompressArgs>),
    /// Measure loss and perplexity, per exit and voted, with or without an adapter
    Eval(EvalArgs),
    /// Write text with a model, with or without an adapter
    Generate(GenerateArgs),
    /// Write base and adapter merged, or the adapter, for other programs
    Export(ExportArgs),
    /// Show what is in a data set: one sequence, lengths, what is trained, cut and left out
    Data(DataArgs),
    /// List the devices with their limits and features
    Devices(DevicesArgs),
    /// Show what is in a model folder or file, compressed or not, an adapter or a run directory
    Inspect(InspectArgs),
    /// Follow a run from another terminal, until it ends
    Watch(WatchArgs),
    /// Write report.html of a run directory again, from what the run measured
    Report(ReportArgs),
    /// Print the JSON schema of a file for --config
    Schema,
    /// Print completions for a shell
    Completions(CompletionsArgs),
    /// Write man pages
    Man(ManArgs),
}

/// `--config` and what is no property of the run itself.
#[derive(Debug, Default, Args)]
pub struct TuneArgs {
    /// YAML file with the same names as the flags; flags win
    #[arg(long, value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// Print one JSON object on stdout as the last line
    #[arg(long)]
    pub json: bool,
    /// Print nothing on stderr but errors
    #[arg(long)]
    pub quiet: bool,
    /// Print what the run would be, its data and its plan, and write no run
    #[arg(long)]
    pub dry_run: bool,
    /// Write timeline.json into the run directory: a step as it was, beside the plan's where there
    /// is one, for Perfetto or chrome://tracing
    #[arg(long)]
    pub trace: bool,
    /// Go on with a run that was interrupted, failed or was killed: its directory, or a checkpoint
    /// in it. auto: the run in --out, or the newest one below runs/, if there is one that is not
    /// finished, else a new run
    #[arg(long, value_name = "auto|DIR", conflicts_with = "dry_run")]
    pub resume: Option<String>,
    /// The options of the run.
    #[command(flatten)]
    pub flags: TuneFlags,
}

/// Options of `plan`: those of the run, and how to look at it.
#[derive(Debug, Default, Args)]
pub struct PlanArgs {
    /// YAML file with the same names as the flags; flags win
    #[arg(long, value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// Plan for a device that is not here, by its data sheet, such as apple-m2
    #[arg(long, value_name = "NAME", value_parser = device_profile)]
    pub device_profile: Option<&'static DeviceProfile>,
    /// What the plan is to be best in
    #[arg(long, value_enum, default_value_t)]
    pub goal: Goal,
    /// Longest step with --goal memory
    #[arg(long, value_name = "MS")]
    pub max_step_ms: Option<f64>,
    /// Write the predicted timeline of a step, for Perfetto or chrome://tracing
    #[arg(long, value_name = "FILE")]
    pub trace: Option<PathBuf>,
    /// Print the paper's own claim, simulated with its memory hierarchy, and nothing else
    #[arg(long)]
    pub paper: bool,
    /// Print one JSON object on stdout as the last line
    #[arg(long)]
    pub json: bool,
    /// Print nothing on stderr but errors
    #[arg(long)]
    pub quiet: bool,
    /// The options of the run.
    #[command(flatten)]
    pub flags: TuneFlags,
}

/// Options of `tune`, as flags or as keys of a file. `None`: not given.
#[derive(Clone, Debug, Default, PartialEq, Args, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields, default)]
pub struct TuneFlags {
    /// Hugging Face model folder or GGUF file
    #[arg(long, value_name = "DIR")]
    pub model: Option<PathBuf>,
    /// Text, JSONL or JSON, or a directory with train.*, valid.*, test.*; may be repeated
    #[arg(long, value_name = "PATH")]
    pub data: Option<Vec<PathBuf>>,
    /// Validation data
    #[arg(long, value_name = "PATH", conflicts_with = "val_fraction")]
    pub valid: Option<PathBuf>,
    /// Share of the data to validate on: the last part, in order [default: 0.1]
    #[arg(long, value_name = "F")]
    pub val_fraction: Option<f64>,
    /// Documents or examples of each file to validate on, instead of a share: the last ones
    #[arg(long, value_name = "N", conflicts_with_all = ["valid", "val_fraction"])]
    pub val_items: Option<usize>,
    /// Train on all tokens of examples instead of their answers
    #[arg(long, num_args = 0, default_missing_value = "true")]
    pub train_on_prompt: Option<bool>,
    /// Train several examples in a sequence of --seq-len tokens, none of which sees another, so
    /// that little is padding; --batch-size then counts packed sequences
    #[arg(long, num_args = 0, default_missing_value = "true")]
    pub packing: Option<bool>,
    /// Names of JSON columns, ours=theirs, such as prompt=question,completion=answer
    #[arg(long, value_name = "OURS=THEIRS,...")]
    pub columns: Option<Columns>,
    /// Run directory [default: runs/TIME-METHOD]
    #[arg(long, value_name = "DIR")]
    pub out: Option<PathBuf>,
    /// auto, cpu, an index or a part of a device's name [default: auto]
    #[arg(long)]
    pub device: Option<String>,
    /// Most device memory to use, such as 2GiB
    #[arg(long, value_name = "SIZE")]
    pub memory_budget: Option<ByteSize>,
    /// Parts of the schedule that are not to be chosen: path=rows|mixed|columns, slots=N,
    /// resident=N (blocks that stay on the device), recompute=on|off, ahead=on|off
    #[arg(long, value_name = "KEY=VALUE,...")]
    pub plan: Option<PlanParts>,
    /// Seed of initial values and data order [default: 0]
    #[arg(long)]
    pub seed: Option<u64>,
    /// What is trained [default: edge]
    #[arg(long, value_enum)]
    pub method: Option<Method>,
    /// Optimiser steps [default: 200]
    #[arg(long, conflicts_with_all = ["epochs", "max_seconds", "max_tokens"])]
    pub steps: Option<u64>,
    /// Passes over the training data, instead of steps
    #[arg(long, conflicts_with_all = ["max_seconds", "max_tokens"])]
    pub epochs: Option<f64>,
    /// Seconds of training, instead of steps; validation does not count
    #[arg(long, value_name = "S", conflicts_with = "max_tokens")]
    pub max_seconds: Option<f64>,
    /// Tokens to train on, instead of steps
    #[arg(long, value_name = "N")]
    pub max_tokens: Option<u64>,
    /// Sequences a step [default: 4]
    #[arg(long)]
    pub batch_size: Option<usize>,
    /// Sequences at once on the device [default: the batch size]
    #[arg(long)]
    pub micro_batch: Option<usize>,
    /// Tokens of a sequence [default: 256, or the model's context if shorter]
    #[arg(long)]
    pub seq_len: Option<usize>,
    /// Peak learning rate [default: 2e-4, with --method full 2e-5]
    #[arg(long)]
    pub lr: Option<f64>,
    /// Learning rate over the steps [default: cosine]
    #[arg(long, value_enum)]
    pub schedule: Option<Schedule>,
    /// Steps of rising learning rate [default: 5 % of the steps]
    #[arg(long)]
    pub warmup_steps: Option<u64>,
    /// How the optimizer stores its moments [default: adamw]
    #[arg(long, value_enum)]
    pub optimizer: Option<OptimizerName>,
    /// AdamW's decoupled weight decay [default: 0]
    #[arg(long)]
    pub weight_decay: Option<f64>,
    /// Largest norm of the gradient; 0 does not clip [default: 1]
    #[arg(long)]
    pub clip: Option<f64>,
    /// LoRA rank [default: 64 with edge, else 8]
    #[arg(long)]
    pub rank: Option<usize>,
    /// LoRA alpha [default: twice the rank]
    #[arg(long)]
    pub alpha: Option<f64>,
    /// PEFT adapter folder to start from, of this model; its rank, alpha and layers are taken over
    #[arg(long, value_name = "DIR")]
    pub adapter: Option<PathBuf>,
    /// all-linear, or a list such as q_proj,v_proj [default: all-linear]
    #[arg(long)]
    pub targets: Option<Targets>,
    /// Windows of layers, each with an exit, for --method edge; the share of the layers that
    /// --method partial trains [default: 3]
    #[arg(long)]
    pub windows: Option<usize>,
    /// What lies below a window while it is trained [default: progressive; stacked with
    /// --window-order]
    #[arg(long, value_enum)]
    pub semantics: Option<Semantics>,
    /// Shares of the run that progressive or isolated windows get, from the bottom up, such as
    /// 1,1,2 [default: 0.9 for the top one]
    #[arg(long, value_name = "LIST")]
    pub window_shares: Option<Shares>,
    /// Where hidden states below a window that is trained alone are kept: auto (in the run
    /// directory until the run ends), off, or a folder, for later runs [default: auto]
    #[arg(long, value_name = "WHERE")]
    pub trunk_cache: Option<TrunkCache>,
    /// Which window a step trains, with stacked windows [default: round-robin]
    #[arg(long, value_enum)]
    pub window_order: Option<WindowOrder>,
    /// Rank of a low-rank term that each exit has beside the head all share, scaled as the
    /// adapters are; 0: none [default: 0]
    #[arg(long, value_name = "RANK")]
    pub exit_rank: Option<usize>,
    /// How exits are combined [default: learned]
    #[arg(long, value_enum)]
    pub vote: Option<Vote>,
    /// Bits of the frozen weights [default: 8 with edge and partial, 4 with qlora, else 16]
    #[arg(long, value_enum)]
    pub bits: Option<Bits>,
    /// Weights that share a scale: 32 or 64 [default: 32]
    #[arg(long)]
    pub group_size: Option<usize>,
    /// Steps between validations; 0: only before and after [default: 0]
    #[arg(long)]
    pub eval_every: Option<u64>,
    /// Validations at equal shares of the run, the last of them after it; 0: none in between
    /// [default: 0]
    #[arg(long, value_name = "N", conflicts_with = "eval_every")]
    pub evals: Option<u64>,
    /// End the run behind N validations without a better loss; those of progressive and isolated
    /// windows count while the top window is trained
    #[arg(long, value_name = "N")]
    pub early_stopping: Option<u64>,
    /// Steps between checkpoints, from which a run can go on; 0: only where it is interrupted
    /// [default: 50]
    #[arg(long, value_name = "N")]
    pub checkpoint_every: Option<u64>,
    /// Checkpoints that are kept, the newest ones [default: 2]
    #[arg(long, value_name = "N")]
    pub keep_checkpoints: Option<usize>,
    /// Rest while the battery is below this charge and is not being charged
    #[arg(long, value_name = "PERCENT")]
    pub pause_below_battery: Option<f64>,
    /// Rest while a part of the device is hotter, as far as the system tells
    #[arg(long, value_name = "CELSIUS")]
    pub pause_above_temperature: Option<f64>,
    /// Keep only the inputs of blocks for the backward pass, which runs them forward again: less
    /// memory, more time
    #[arg(long, num_args = 0, default_missing_value = "true")]
    pub recompute: Option<bool>,
    /// Time each kernel, and print a table of it
    #[arg(long, num_args = 0, default_missing_value = "true")]
    pub profile: Option<bool>,
}

/// Options of `eval`.
#[derive(Clone, Debug, Args)]
pub struct EvalArgs {
    /// Most device memory to use, such as 2GiB: blocks that do not fit are streamed
    #[arg(long, value_name = "SIZE")]
    pub memory_budget: Option<ByteSize>,
    /// Hugging Face model folder or GGUF file
    #[arg(long, value_name = "DIR")]
    pub model: Option<PathBuf>,
    /// PEFT adapter folder
    #[arg(long, value_name = "DIR", conflicts_with = "run")]
    pub adapter: Option<PathBuf>,
    /// Run directory of tune: its model, adapter and exits
    #[arg(long, value_name = "DIR")]
    pub run: Option<PathBuf>,
    /// Text, JSONL, or a directory with test.* or valid.*; may be repeated
    #[arg(long, value_name = "PATH")]
    pub data: Vec<PathBuf>,
    /// Names of JSON columns, ours=theirs, such as prompt=question,completion=answer
    #[arg(long, value_name = "OURS=THEIRS,...", conflicts_with = "choices")]
    pub columns: Option<Columns>,
    /// JSONL of questions to choose an answer of, {question, choices, answer} or {input, output}:
    /// prints the share of right ones instead of a loss
    #[arg(long, value_name = "FILE", conflicts_with_all = ["data", "fit_vote"])]
    pub choices: Option<PathBuf>,
    /// Report every vote rule with its loss and cost
    #[arg(long)]
    pub all_votes: bool,
    /// Fit the learned vote on the data, and keep it in the run directory
    #[arg(long, requires = "run")]
    pub fit_vote: bool,
    /// Tokens of a window; its first token is given
    #[arg(long, default_value_t = 256)]
    pub seq_len: usize,
    /// How exits are combined [default: as the run says]
    #[arg(long, value_enum)]
    pub vote: Option<Vote>,
    /// Stop after this many windows, or questions
    #[arg(long)]
    pub max_windows: Option<usize>,
    /// auto, cpu, an index or a part of a device's name
    #[arg(long, default_value = "auto")]
    pub device: String,
    /// Print one JSON object on stdout as the last line
    #[arg(long)]
    pub json: bool,
    /// Print nothing on stderr but errors
    #[arg(long)]
    pub quiet: bool,
}

/// Options of `generate`.
#[derive(Clone, Debug, Args)]
pub struct GenerateArgs {
    /// Most device memory to use, such as 2GiB: blocks that do not fit are streamed
    #[arg(long, value_name = "SIZE")]
    pub memory_budget: Option<ByteSize>,
    /// Hugging Face model folder or GGUF file
    #[arg(long, value_name = "DIR")]
    pub model: Option<PathBuf>,
    /// PEFT adapter folder
    #[arg(long, value_name = "DIR", conflicts_with = "run")]
    pub adapter: Option<PathBuf>,
    /// Run directory of tune: its model, adapter and exits
    #[arg(long, value_name = "DIR")]
    pub run: Option<PathBuf>,
    /// Text to continue
    #[arg(long, default_value = "")]
    pub prompt: String,
    /// Stop after this many tokens
    #[arg(long, default_value_t = 128)]
    pub max_new_tokens: usize,
    /// 0 always takes the likeliest token
    #[arg(long, default_value_t = 0.8)]
    pub temperature: f32,
    /// Draw from the likeliest tokens that together have this probability
    #[arg(long, default_value_t = 0.95)]
    pub top_p: f32,
    /// Seed of the draws
    #[arg(long, default_value_t = 0)]
    pub seed: u64,
    /// How exits are combined [default: as the run says]
    #[arg(long, value_enum)]
    pub vote: Option<Vote>,
    /// Let this exit, counted from 1, draft what the whole model verifies: the same tokens as
    /// without, at --temperature 0
    #[arg(long, value_name = "N")]
    pub draft_exit: Option<usize>,
    /// Tokens that a round of drafting makes at most, one of them the whole model's
    #[arg(long, default_value_t = 4, requires = "draft_exit")]
    pub draft_tokens: u32,
    /// Run again with and without drafts, compare, and print the speed-up
    #[arg(long, requires = "draft_exit", conflicts_with = "quiet")]
    pub compare_plain: bool,
    /// auto, cpu, an index or a part of a device's name
    #[arg(long, default_value = "auto")]
    pub device: String,
    /// Print nothing on stderr but errors
    #[arg(long)]
    pub quiet: bool,
}

/// Options of `data`.
#[derive(Clone, Debug, Args)]
pub struct DataArgs {
    /// Hugging Face model folder or GGUF file, for its tokenizer and chat template [default: the
    /// demo model]
    #[arg(long, value_name = "DIR")]
    pub model: Option<PathBuf>,
    /// Text, JSONL or JSON, or a directory with train.*; may be repeated
    #[arg(long, value_name = "PATH")]
    pub data: Vec<PathBuf>,
    /// Tokens of a sequence
    #[arg(long, default_value_t = 256)]
    pub seq_len: usize,
    /// Train on all tokens of examples instead of their answers
    #[arg(long)]
    pub train_on_prompt: bool,
    /// Names of JSON columns, ours=theirs, such as prompt=question,completion=answer
    #[arg(long, value_name = "OURS=THEIRS,...")]
    pub columns: Option<Columns>,
    /// Which of the sequences that are used is shown, from 1
    #[arg(long, value_name = "N", default_value_t = 1)]
    pub sample: usize,
    /// Print one JSON object on stdout as the last line
    #[arg(long)]
    pub json: bool,
}

/// Options of `inspect`.
#[derive(Clone, Debug, Args)]
pub struct InspectArgs {
    /// Model folder, GGUF file, adapter folder or run directory
    #[arg(value_name = "PATH")]
    pub path: PathBuf,
    /// Print one JSON object on stdout as the last line
    #[arg(long)]
    pub json: bool,
}

/// Options of `devices`.
#[derive(Clone, Debug, Args)]
pub struct DevicesArgs {
    /// Only this device: auto, cpu, an index or a part of a device's name
    #[arg(long)]
    pub device: Option<String>,
    /// Compare the kernels of each adapter with their definitions, for about a second
    #[arg(long)]
    pub selftest: bool,
    /// Measure which kernel is the fastest for which shape, and remember it for this adapter
    #[arg(long)]
    pub autotune: bool,
    /// Measure the shapes of this model folder, and of a compressed one the formats that it has
    /// [default: three common small models, in every kind of format]
    #[arg(long, value_name = "DIR", requires = "autotune")]
    pub model: Option<PathBuf>,
    /// Tokens of a training step that is measured for
    #[arg(long, default_value_t = 256, requires = "autotune")]
    pub tokens: u32,
    /// Stop measuring after this many seconds
    #[arg(long, default_value_t = 60, requires = "autotune")]
    pub seconds: u64,
    /// Print one JSON object on stdout as the last line
    #[arg(long)]
    pub json: bool,
}

#[cfg(test)]
mod tests {
    use clap::error::ErrorKind;
    use clap::{CommandFactory, ValueEnum};

    use super::*;

    fn parse(line: &str) -> Result<Cli, clap::Error> {
        Cli::try_parse_from(std::iter::once("edge-runtime").chain(line.split_whitespace()))
    }

    #[test]
    fn the_definition_is_consistent() {
        Cli::command().debug_assert();
        // clap would take the comment of a flattened struct, were it not for the variant's own.
        for (name, about) in [
            ("tune", "Adapt a model"),
            ("compare", "Run several"),
            ("eval", "Measure"),
            ("data", "Show"),
            ("devices", "List"),
            ("inspect", "Show"),
        ] {
            let command = Cli::command();
            let found = command.find_subcommand(name).unwrap().get_about().unwrap().to_string();
            assert!(found.starts_with(about), "{name}: {found}");
        }
        for method in Method::value_variants() {
            assert_eq!(method.to_possible_value().unwrap().get_name(), method.name());
        }
    }

    #[test]
    fn flags_are_read() {
        let line = "tune --model m --data a --data b --steps 5 --bits 4 --memory-budget 2GiB \
                    --window-order random --targets q_proj,v_proj --profile --json \
                    --optimizer adamw-8bit";
        let Command::Tune(args) = parse(line).unwrap().command else { panic!() };
        let flags = &args.flags;
        assert_eq!(flags.data.as_ref().unwrap().len(), 2);
        assert_eq!((flags.bits, flags.steps), (Some(Bits::Four), Some(5)));
        assert_eq!(flags.optimizer, Some(OptimizerName::AdamW8bit));
        assert_eq!(flags.memory_budget, Some(ByteSize(2 << 30)));
        assert_eq!(flags.targets.as_ref().unwrap().to_string(), "q_proj,v_proj");
        assert_eq!((flags.profile, flags.window_order), (Some(true), Some(WindowOrder::Random)));
        assert!(args.json && !args.quiet && flags.lr.is_none());
        let Command::Tune(args) = parse("tune").unwrap().command else { panic!() };
        assert_eq!(args.flags, TuneFlags::default());
        let line = "generate --run r --prompt x --temperature 0 --vote max";
        let Command::Generate(args) = parse(line).unwrap().command else { panic!() };
        assert_eq!((args.temperature, args.vote), (0.0, Some(Vote::Max)));
        assert!(matches!(parse("devices --json").unwrap().command, Command::Devices(_)));
    }

    #[test]
    fn wrong_usage_exits_with_2() {
        for (line, kind) in [
            ("tune --bits 5", ErrorKind::InvalidValue),
            ("tune --method dora", ErrorKind::InvalidValue),
            ("tune --optimizer sgd", ErrorKind::InvalidValue),
            ("tune --targets lm_head", ErrorKind::ValueValidation),
            ("tune --memory-budget 2XB", ErrorKind::ValueValidation),
            ("tune --steps 1 --epochs 1", ErrorKind::ArgumentConflict),
            ("tune --learning-rate 1", ErrorKind::UnknownArgument),
            ("eval --run a --adapter b", ErrorKind::ArgumentConflict),
            ("tune --columns promt=q", ErrorKind::ValueValidation),
            ("data --columns prompt=q,prompt=r", ErrorKind::ValueValidation),
            ("eval --choices a --columns prompt=q", ErrorKind::ArgumentConflict),
            ("fly", ErrorKind::InvalidSubcommand),
        ] {
            let error = parse(line).unwrap_err();
            assert_eq!((error.kind(), error.exit_code()), (kind, 2), "{line}");
        }
    }
}
