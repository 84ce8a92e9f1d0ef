//! The runs of a comparison, one after the other in this process.

use std::collections::HashSet;
use std::path::Path;
use std::time::Instant;

use anyhow::{Context, Result, anyhow, ensure};
use edge_gpu::{Device, DeviceKind};

use super::page;
use super::summary::{BudgetKind, CompareReport, Run, median};
use crate::cli::args::{Shares, TrunkCache, WindowOrder};
use crate::cli::listen::Terminal;
use crate::cli::options::TuneOptions;
use crate::cli::report::{Progress, reset_peak_host};
use crate::data::Dataset;
use crate::interrupt;
use crate::run_dir::write_atomically;
use crate::session::{Source, duration};
use crate::tune::run::{Outcome, run_on};

/// A method that takes part.
pub struct Contender {
    /// Its name.
    pub name: String,
    /// Its options; seed, budget and run directory are set for each run.
    pub options: TuneOptions,
    /// Its model, an index of [`Compare::sources`].
    pub source: usize,
}

/// What every method may use.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Budgets {
    /// Tokens; `None`: there are no runs of equal tokens.
    pub tokens: Option<u64>,
    /// Time.
    pub seconds: Seconds,
}

/// A budget in seconds.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Seconds {
    /// There are no runs of equal time.
    None,
    /// That many.
    Given(f64),
    /// The median over seeds of what this contender needs for the tokens.
    Of(usize),
}

/// A comparison.
pub struct Compare<'a> {
    /// Who takes part.
    pub contenders: &'a [Contender],
    /// Their models.
    pub sources: &'a [Source],
    /// What they are trained and judged on.
    pub data: &'a Dataset,
    /// Where they run.
    pub device: &'a Device,
    /// Seeds; each run has one.
    pub seeds: &'a [u64],
    /// What they may use.
    pub budgets: Budgets,
    /// The folder that everything is written to.
    pub out: &'a Path,
    /// Nothing on stderr.
    pub quiet: bool,
}

/// A budget and its size.
#[derive(Clone, Copy)]
enum Limit {
    Tokens(u64),
    Seconds(f64),
}

/// The comparison while it goes on.
struct Course<'a> {
    compare: &'a Compare<'a>,
    report: CompareReport,
    started: Instant,
    total: usize,
}

impl Compare<'_> {
    /// The methods' names.
    pub fn names(&self) -> Vec<String> {
        self.contenders.iter().map(|contender| contender.name.clone()).collect()
    }

    /// What of the examples the methods' sequences do not hold.
    fn cut_notes(&self) -> Vec<String> {
        let mut notes = Vec::new();
        for Contender { options, source, .. } in self.contenders {
            let config = &self.sources[*source].config;
            let seq_len = options.seq_len_for(config.max_position_embeddings);
            let train = self.data.train.cut_note(seq_len).map(|note| format!("training: {note}"));
            let valid = self.data.valid.as_ref().and_then(|stream| stream.cut_note(seq_len));
            notes.extend(train.into_iter().chain(valid.map(|note| format!("validation: {note}"))));
        }
        let mut seen = HashSet::new();
        notes.retain(|note| seen.insert(note.clone()));
        notes
    }

    /// Runs everything. A run that fails is recorded with its sentence, and the others go on.
    ///
    /// # Errors
    /// The folder cannot be written.
    pub fn run(&self) -> Result<CompareReport> {
        std::fs::create_dir_all(self.out).with_context(|| {
            format!("cannot create {}: give --out another path", self.out.display())
        })?;
        let budgets = [self.budgets.tokens.is_some(), self.budgets.seconds != Seconds::None];
        let budgets = budgets.into_iter().filter(|is| *is).count();
        let report = CompareReport {
            device: self.device.info().name.clone(),
            model: self.sources[0].dir.display().to_string(),
            data: self.data.train.source.clone(),
            cut: self.cut_notes(),
            max_tokens: self.budgets.tokens,
            seeds: self.seeds.to_vec(),
            out: self.out.display().to_string(),
            ..CompareReport::default()
        };
        let total = budgets * self.seeds.len() * self.contenders.len();
        let mut course = Course { compare: self, report, started: Instant::now(), total };
        if let Some(tokens) = self.budgets.tokens {
            course.all(Ok(Limit::Tokens(tokens)))?;
        }
        match self.budgets.seconds {
            Seconds::None => {}
            Seconds::Given(seconds) => course.all(Ok(Limit::Seconds(seconds)))?,
            Seconds::Of(index) => {
                let name = &self.contenders[index].name;
                let runs = course.report.methods.iter();
                let runs = runs.filter(|run| run.method == *name && run.is_whole());
                let seconds = median(runs.map(|run| run.seconds).collect());
                course.all(seconds.map(Limit::Seconds).ok_or(format!(
                    "no run of {name} came to its end, so that the time of all is not known: give \
                     --max-seconds"
                )))?;
            }
        }
        course.write()?;
        Ok(course.report)
    }
}

impl Course<'_> {
    /// Runs every method with every seed under a limit, or says why there is none.
    fn all(&mut self, limit: Result<Limit, String>) -> Result<()> {
        if let Ok(Limit::Seconds(seconds)) = limit {
            self.report.max_seconds = Some(seconds);
        }
        for &seed in self.compare.seeds {
            for contender in self.compare.contenders {
                if self.report.interrupted || interrupt::requested() {
                    self.report.interrupted = true;
                    return Ok(());
                }
                let run = match &limit {
                    Ok(limit) => self.one(contender, seed, *limit),
                    Err(error) => Run {
                        budget: Some(BudgetKind::Seconds),
                        error: Some(error.clone()),
                        ..named(contender, seed)
                    },
                };
                self.report.interrupted |= run.interrupted;
                self.report.methods.push(run);
                self.write()?;
            }
        }
        Ok(())
    }

    fn one(&mut self, contender: &Contender, seed: u64, limit: Limit) -> Run {
        let (budget, shown) = match limit {
            Limit::Tokens(tokens) => (BudgetKind::Tokens, format!("{tokens} tokens")),
            Limit::Seconds(seconds) => (BudgetKind::Seconds, format!("{seconds:.1} s")),
        };
        let name = &contender.name;
        self.announce(&format!("{name}, seed {seed}, {shown}"));
        let dir = self.compare.out.join(format!("{}-{name}-{seed}", budget.name()));
        let mut options = TuneOptions { seed, out: Some(dir.clone()), ..contender.options.clone() };
        (options.steps, options.epochs) = (None, None);
        (options.max_tokens, options.max_seconds) = match limit {
            Limit::Tokens(tokens) => (Some(tokens), None),
            Limit::Seconds(seconds) => (None, Some(seconds)),
        };
        let run = Run { budget: Some(budget), ..named(contender, seed) };
        let seen = self.report.methods.iter().any(|run| run.method == *name);
        if !seen && self.compare.device.info().kind != DeviceKind::Host {
            self.warm_up(contender, &options);
        }
        let resets = reset_peak_host();
        match self.tune(contender, &options, self.compare.data, self.compare.quiet) {
            Ok(outcome) => finished(run, outcome, resets),
            Err(error) => {
                let interrupted = error.is::<interrupt::Interrupted>();
                let error = format!("{error:#}");
                self.say(&format!("{name}, seed {seed}, {shown} failed: {error}"));
                let run_dir = dir.exists().then(|| dir.display().to_string());
                let run_dir = run_dir.unwrap_or_default();
                Run { error: Some(error), interrupted, run_dir, ..run }
            }
        }
    }

    fn tune(
        &self,
        contender: &Contender,
        options: &TuneOptions,
        data: &Dataset,
        quiet: bool,
    ) -> Result<Outcome> {
        let device = self.compare.device;
        let source = &self.compare.sources[contender.source];
        let mut terminal = Terminal::new(quiet);
        run_on(data, options, source, device, &mut |event| terminal.hear(event), None)
    }

    /// A step of each window, so that no run's clock has the compilation of kernels. If it fails,
    /// the run does so too, and says why.
    fn warm_up(&self, contender: &Contender, options: &TuneOptions) {
        let dir = self.compare.out.join("warm-up");
        let mut options = TuneOptions { out: Some(dir.clone()), ..options.clone() };
        (options.steps, options.max_tokens, options.max_seconds) =
            (Some(options.windows as u64), None, None);
        // There are no validation data, which early stopping asks for.
        options.early_stopping = None;
        match options.semantics.has_phases() {
            true => options.window_shares = Some(Shares(vec![1.0; options.windows])),
            false => options.window_order = WindowOrder::RoundRobin,
        }
        if matches!(options.trunk_cache, TrunkCache::Folder(_)) {
            options.trunk_cache = TrunkCache::Auto;
        }
        let data = Dataset { valid: None, ..self.compare.data.clone() };
        let result = self.tune(contender, &options, &data, true);
        tracing::debug!(ok = result.is_ok(), "warm-up of {}", contender.name);
        let removed = std::fs::remove_dir_all(&dir);
        tracing::debug!(ok = removed.is_ok(), "removal of the warm-up's files");
    }

    /// Says which run comes now, and about how long the rest will take.
    fn announce(&self, run: &str) {
        let done = self.report.methods.len();
        let left = match done {
            0 => String::new(),
            _ => {
                let each = self.started.elapsed().as_secs_f64() / done as f64;
                format!(", about {} left", duration(each * (self.total - done) as f64))
            }
        };
        self.say(&format!("\n[{}/{}] {run}{left}", done + 1, self.total));
    }

    fn say(&self, text: &str) {
        Progress::new("", 0, self.compare.quiet).say(text);
    }

    /// Writes what there is.
    fn write(&mut self) -> Result<()> {
        let names = self.compare.names();
        self.report.summarise(&names);
        let json = serde_json::to_string_pretty(&self.report).context("laying out the report")?;
        write_atomically(&self.compare.out.join("compare.json"), json.as_bytes())?;
        let html = page::render(&self.report, &names);
        write_atomically(&self.compare.out.join("compare.html"), html.as_bytes())
    }
}

fn named(contender: &Contender, seed: u64) -> Run {
    let kind = contender.options.method.name().to_owned();
    Run { method: contender.name.clone(), kind, seed, ..Run::default() }
}

/// What a run came to. `resets`: the process's peak was reset before it.
fn finished(run: Run, outcome: Outcome, resets: bool) -> Run {
    let Outcome { report, seconds, curve } = outcome;
    let last = curve.last();
    Run {
        seconds,
        steps: report.steps,
        tokens: report.tokens,
        tokens_per_second: report.tokens_per_second,
        step_ms_median: report.step_ms_median,
        peak_device_bytes: report.peak_device_bytes,
        peak_device_bytes_by_category: report.peak_device_bytes_by_category,
        peak_host_bytes: report.peak_host_bytes.filter(|_| resets),
        val_loss_before: curve.first().map(|point| point.val_loss),
        val_loss: last.and_then(|point| point.val_exits.last().copied()),
        best_exit_val_loss: last.map(|point| point.val_loss),
        vote_val_loss: report.vote.as_ref().map(|vote| vote.val_loss),
        exits: report.exits,
        vote: report.vote,
        held_out_exits: report.held_out_exits,
        votes: report.votes,
        curve,
        run_dir: report.run_dir,
        interrupted: report.interrupted,
        ..run
    }
}

/// Refuses data that nothing can be compared on.
///
/// # Errors
/// There are no validation data.
pub fn check_data(data: &Dataset) -> Result<()> {
    ensure!(
        data.valid.is_some(),
        "there are no validation data, which a comparison needs: give --valid, or --val-fraction \
         above 0"
    );
    Ok(())
}

/// Refuses models whose losses do not compare: a token must be the same for all.
///
/// # Errors
/// Their tokenizers differ.
pub fn check_tokenizers(sources: &[Source]) -> Result<()> {
    let text = |source: &Source| {
        let files = source.companions().unwrap_or_default();
        files.into_iter().find(|(name, _)| *name == "tokenizer.json").map(|(_, text)| text)
    };
    let [first, others @ ..] = sources else { return Ok(()) };
    for other in others {
        if text(first) != text(other) {
            return Err(anyhow!(
                "{} and {} have different tokenizers, so that losses per token do not compare: \
                 give models of one family",
                first.dir.display(),
                other.dir.display()
            ));
        }
    }
    Ok(())
}
