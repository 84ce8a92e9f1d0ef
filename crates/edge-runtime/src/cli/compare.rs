//! `compare`: several methods on one model and one data set.

use std::path::{Path, PathBuf};
use std::time::SystemTime;

use anyhow::{Context, Result, ensure};
use clap::builder::Resettable;
use clap::{Args, ValueEnum};
use edge_gpu::Options;

use super::Usage;
use super::args::{Method, TuneFlags};
use super::report::print_json;
use super::tune::with_demo;
use crate::compare::entry::{Entry, Overrides, load_config, parse_entries, parse_seeds};
use crate::compare::page;
use crate::compare::run::{Budgets, Compare, Contender, Seconds, check_data, check_tokenizers};
use crate::compare::summary::CompareReport;
use crate::data::refuse_val_items;
use crate::interrupt;
use crate::run_dir::{RunDir, unused, utc};
use crate::session::Source;
use crate::tune::job;
use crate::tune::run::load_data;

/// What is equal for all methods.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum BudgetChoice {
    /// Tokens
    Tokens,
    /// Seconds of training
    Seconds,
    /// One after the other
    #[default]
    Both,
}

/// The methods of a comparison by default.
const METHODS: &str = "lora,qlora,partial,edge";

/// Steps of the default budget in tokens.
const STEPS: u64 = 200;

/// Options of `compare`: its own, and those of `tune`.
#[derive(Clone, Debug, Args)]
#[command(
    // Both budgets may be given here, and what ends a run is a budget.
    mut_arg("max_seconds", |arg| arg.conflicts_with(Resettable::Reset)
        .help("Seconds of training of each method [default: what lora needs for the tokens]")),
    mut_arg("max_tokens", |arg| arg.help("Tokens that each method has [default: 200 steps]")),
    mut_arg("evals", |arg| arg
        .help("Validations of each run, at equal shares of it, for the curves [default: 6]")),
    mut_arg("out", |arg| arg.help("Where everything goes [default: compares/TIME]")),
    mut_arg("steps", |arg| arg.hide(true)),
    mut_arg("epochs", |arg| arg.hide(true)),
    mut_arg("warmup_steps", |arg| arg.hide(true)),
    mut_arg("seed", |arg| arg.hide(true)),
    mut_arg("method", |arg| arg.hide(true)),
    mut_arg("eval_every", |arg| arg.hide(true)),
)]
pub struct CompareArgs {
    /// Methods; the same twice under a name, as in edge,edge-stacked=edge
    #[arg(
        long,
        value_name = "LIST",
        value_delimiter = ',',
        default_value = METHODS
    )]
    pub methods: Vec<String>,
    /// Seeds; every method runs once with each
    #[arg(long, value_name = "LIST", value_delimiter = ',', default_value = "0,1,2")]
    pub seeds: Vec<String>,
    /// What is equal for all methods
    #[arg(long, value_enum, default_value_t)]
    pub budget: BudgetChoice,
    /// An option of one method, such as edge.lr=3e-3; may be repeated
    #[arg(long, value_name = "NAME.KEY=VALUE")]
    pub set: Vec<String>,
    /// YAML file with the same names as the flags of tune, and those of single methods below
    /// methods; flags win
    #[arg(long, value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// Print one JSON object on stdout as the last line
    #[arg(long)]
    pub json: bool,
    /// Print nothing on stderr but errors
    #[arg(long)]
    pub quiet: bool,
    /// Options of all methods.
    #[command(flatten)]
    pub flags: TuneFlags,
}

/// The budgets as they were given.
struct BudgetArgs {
    choice: BudgetChoice,
    tokens: Option<u64>,
    seconds: Option<f64>,
}

fn usage<T>(sentence: &str) -> Result<T> {
    Err(anyhow::Error::new(Usage(sentence.to_owned())))
}

impl BudgetArgs {
    /// The budgets of a run whose steps have `step_tokens` tokens.
    fn resolve(&self, entries: &[Entry], step_tokens: u64) -> Result<Budgets> {
        let tokens = self.tokens.unwrap_or(STEPS * step_tokens);
        let lora = || entries.iter().position(|entry| entry.method == Method::Lora);
        let (tokens, seconds) = match (self.choice, self.seconds) {
            (BudgetChoice::Tokens, Some(_)) => {
                return usage("--max-seconds does not go with --budget tokens: leave one out");
            }
            (BudgetChoice::Tokens, None) => (Some(tokens), Seconds::None),
            (BudgetChoice::Seconds, _) if self.tokens.is_some() => {
                return usage("--max-tokens does not go with --budget seconds: leave one out");
            }
            (BudgetChoice::Seconds, None) => {
                return usage("--budget seconds needs a number of them: give --max-seconds");
            }
            (BudgetChoice::Seconds, Some(seconds)) => (None, Seconds::Given(seconds)),
            (BudgetChoice::Both, Some(seconds)) => (Some(tokens), Seconds::Given(seconds)),
            (BudgetChoice::Both, None) => match lora() {
                Some(index) => (Some(tokens), Seconds::Of(index)),
                None => {
                    return usage(
                        "without lora among --methods there is no time to take as the budget: \
                         give --max-seconds, or --budget tokens",
                    );
                }
            },
        };
        Ok(Budgets { tokens, seconds })
    }
}

/// Refuses flags that a comparison has its own for.
fn refuse_own(flags: &TuneFlags) -> Result<()> {
    for (flag, given, remedy) in [
        ("--steps", flags.steps.is_some(), "--max-tokens or --max-seconds"),
        ("--epochs", flags.epochs.is_some(), "--max-tokens or --max-seconds"),
        ("--warmup-steps", flags.warmup_steps.is_some(), "nothing (5 % of the run)"),
        ("--seed", flags.seed.is_some(), "--seeds"),
        ("--method", flags.method.is_some(), "--methods"),
        ("--eval-every", flags.eval_every.is_some(), "--evals"),
    ] {
        if given {
            return usage(&format!("{flag} does not go with compare: give {remedy} instead"));
        }
    }
    Ok(())
}

/// Everything that is said about the runs before anything is opened.
struct Resolved {
    contenders: Vec<(Entry, TuneFlags)>,
    seeds: Vec<u64>,
    budgets: BudgetArgs,
    out: Option<PathBuf>,
}

fn resolve(args: &CompareArgs) -> Result<Resolved> {
    let entries = parse_entries(&args.methods)?;
    let seeds = parse_seeds(&args.seeds)?;
    let (file, mut overrides) = match &args.config {
        Some(path) => load_config(path)?,
        None => (TuneFlags::default(), Overrides::default()),
    };
    for text in &args.set {
        overrides.set(text)?;
    }
    overrides.check(&entries)?;
    let (tokens, seconds) = (file.max_tokens, file.max_seconds);
    let mut flags = args.flags.clone().or(file);
    refuse_own(&flags)?;
    let budgets = BudgetArgs {
        choice: args.budget,
        tokens: flags.max_tokens.take().or(tokens),
        seconds: flags.max_seconds.take().or(seconds),
    };
    let (mut flags, _) = with_demo(flags)?;
    flags.steps = None;
    flags.evals = flags.evals.or(Some(6));
    // Seconds of training are compared, and comparisons do not go on.
    flags.checkpoint_every = Some(0);
    let out = flags.out.take();
    let contenders = entries.into_iter().map(|entry| {
        let mut own = overrides.of(&entry)?.or(flags.clone());
        own.method = Some(entry.method);
        own.choose_by_files().with_context(|| format!("method {}", entry.name))?;
        Ok((entry, own))
    });
    Ok(Resolved { contenders: contenders.collect::<Result<_>>()?, seeds, budgets, out })
}

/// Opens every model once.
fn open(contenders: Vec<(Entry, TuneFlags)>) -> Result<(Vec<Contender>, Vec<Source>)> {
    let mut sources: Vec<Source> = Vec::new();
    let mut result = Vec::new();
    for (Entry { name, .. }, flags) in contenders {
        let options = flags.resolve().with_context(|| format!("method {name}"))?;
        let model = options.model.clone().context("a model folder")?;
        let source = match sources.iter().position(|source| source.dir == model) {
            Some(index) => index,
            None => {
                sources.push(Source::open(&model)?);
                sources.len() - 1
            }
        };
        let seq_len = options.seq_len_for(sources[source].config.max_position_embeddings);
        job(&options, &sources[source], seq_len).with_context(|| format!("method {name}"))?;
        result.push(Contender { name, options, source });
    }
    check_tokenizers(&sources)?;
    Ok((result, sources))
}

pub(super) fn run(args: CompareArgs) -> Result<u8> {
    let Resolved { contenders, seeds, budgets, out } = resolve(&args)?;
    let entries: Vec<Entry> = contenders.iter().map(|(entry, _)| entry.clone()).collect();
    RunDir::check(out.as_deref())?;
    let (contenders, sources) = open(contenders)?;
    let first = &contenders[0].options;
    let config = &sources[contenders[0].source].config;
    let step = first.batch_size * first.seq_len_for(config.max_position_embeddings);
    let budgets = budgets.resolve(&entries, step as u64)?;
    for (flag, value) in [
        ("--max-tokens", budgets.tokens.map(|tokens| tokens as f64)),
        (
            "--max-seconds",
            match budgets.seconds {
                Seconds::Given(seconds) => Some(seconds),
                _ => None,
            },
        ),
    ] {
        let fits = value.is_none_or(|value| value > 0.0 && value < 1e15);
        ensure!(fits, "{flag} is {}: give a number above 0", value.unwrap_or_default());
    }
    ensure!(
        !first.data.is_empty(),
        "there is nothing to learn from: give --data a text, a .jsonl file or a folder"
    );
    refuse_val_items(&first.data, first.val_items)?;
    let data = load_data(first, &sources[contenders[0].source], args.quiet)?;
    check_data(&data)?;
    interrupt::install()?;
    let device = super::open_device(
        &first.device,
        &Options { profile: first.profile, ..Options::default() },
    )?;
    let fresh = || unused(Path::new("compares"), &utc(SystemTime::now()));
    let out = out.unwrap_or_else(fresh);
    let compare = Compare {
        contenders: &contenders,
        sources: &sources,
        data: &data,
        device: &device,
        seeds: &seeds,
        budgets,
        out: &out,
        quiet: args.quiet,
    };
    let report = compare.run()?;
    if !args.quiet {
        print_tables(&report);
    }
    if args.json {
        print_json(&report)?;
    }
    Ok(match (report.interrupted, report.failed) {
        (true, _) => interrupt::EXIT_INTERRUPTED as u8,
        (false, 0) => 0,
        (false, _) => super::EXIT_FAILED as u8,
    })
}

fn print_tables(report: &CompareReport) {
    eprintln!("\n{}", page::results(report).text());
    eprintln!("\npeak device memory by category\n{}", page::memory(report).text());
    if !report.comparisons.is_empty() {
        eprintln!("\n{}", page::comparisons(report).text());
    }
    eprintln!();
    for note in &report.cut {
        eprintln!("{note}");
    }
    let failed = report.methods.iter().filter_map(|run| Some((run, run.error.as_ref()?)));
    for (run, error) in failed {
        eprintln!("failed: {}, seed {}: {error}", run.method, run.seed);
    }
    if report.interrupted {
        eprintln!("interrupted after {} runs; what there is was kept", report.methods.len());
    }
    eprintln!("written to {}: compare.html, compare.json", report.out);
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;
    use crate::cli::args::{Bits, Cli, Command};
    use crate::testing::message;

    fn args(line: &str) -> CompareArgs {
        let line = format!("edge-runtime compare {line}");
        match Cli::try_parse_from(line.split_whitespace()).unwrap().command {
            Command::Compare(args) => *args,
            _ => unreachable!(),
        }
    }

    #[test]
    fn each_method_has_its_own_options_over_common_ones() {
        let line = "--methods lora,edge,e4=edge --rank 4 --set e4.bits=4 --set e4.rank=2 \
                    --seeds 3,5 --max-tokens 9 --max-seconds 2";
        let resolved = resolve(&args(line)).unwrap();
        assert_eq!(resolved.seeds, [3, 5]);
        let found: Vec<_> = resolved.contenders.iter().map(|(_, f)| (f.rank, f.bits)).collect();
        let eight = Some(Bits::Eight);
        assert_eq!(found, [(Some(4), None), (Some(4), eight), (Some(2), Some(Bits::Four))]);
        assert_eq!(resolved.contenders[0].1.evals, Some(6));
        let entries: Vec<Entry> = resolved.contenders.into_iter().map(|(entry, _)| entry).collect();
        let budgets = resolved.budgets.resolve(&entries, 10).unwrap();
        assert_eq!(budgets, Budgets { tokens: Some(9), seconds: Seconds::Given(2.0) });
    }

    #[test]
    fn budgets_have_defaults() {
        let entries = parse_entries(&["edge".into(), "base=lora".into()]).unwrap();
        let resolve = |choice, tokens, seconds, entries: &[Entry]| {
            BudgetArgs { choice, tokens, seconds }.resolve(entries, 10)
        };
        let both = resolve(BudgetChoice::Both, None, None, &entries).unwrap();
        assert_eq!(both, Budgets { tokens: Some(2000), seconds: Seconds::Of(1) });
        let time = resolve(BudgetChoice::Seconds, None, Some(3.0), &entries).unwrap();
        assert_eq!(time, Budgets { tokens: None, seconds: Seconds::Given(3.0) });
        let alone = &entries[..1];
        assert!(message(resolve(BudgetChoice::Both, None, None, alone)).contains("--max-seconds"));
        assert!(resolve(BudgetChoice::Tokens, None, None, alone).is_ok());
        assert!(resolve(BudgetChoice::Seconds, None, None, &entries).is_err());
        assert!(resolve(BudgetChoice::Seconds, Some(1), Some(1.0), &entries).is_err());
        assert!(resolve(BudgetChoice::Tokens, None, Some(1.0), &entries).is_err());
    }

    #[test]
    fn flags_of_a_single_run_are_refused() {
        for flag in ["--steps", "--epochs", "--seed", "--eval-every"] {
            let error = resolve(&args(&format!("{flag} 1"))).err().unwrap();
            assert!(error.is::<Usage>() && error.to_string().contains(flag), "{error}");
        }
        let error = resolve(&args("--methods lora --set edge.lr=1")).err().unwrap();
        assert!(error.to_string().contains("edge"), "{error}");
    }
}
