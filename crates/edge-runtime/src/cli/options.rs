//! What a run of `tune` does once flags, file and defaults are put together.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use serde::{Deserialize, Serialize};

use super::args::{
    Bits, ByteSize, Method, OptimizerName, PlanParts, Semantics, Shares, TrunkCache, TuneFlags,
    WindowOrder,
};
use super::schema::explain;
use crate::adapter::{self, Targets};
use crate::compress::read::is_compressed;
use crate::data::Columns;
use crate::exits::Vote;
use crate::schedule::Schedule;
use crate::session::{Source, refuse_formats};
use crate::tune::course::Budget;
use crate::whole_file::{self, SETTINGS};

/// All options of a run. Written to `config.resolved.yaml`, which `--config` reads again.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct TuneOptions {
    /// Model folder; `None`: the bundled demo model.
    pub model: Option<PathBuf>,
    /// Data; empty: the bundled demo text.
    pub data: Vec<PathBuf>,
    /// Validation data; with it, `val_fraction` is 0.
    pub valid: Option<PathBuf>,
    /// Share of the data to validate on.
    pub val_fraction: f64,
    /// Documents to validate on, instead of a share.
    #[serde(default)]
    pub val_items: Option<usize>,
    /// Whether prompts of examples are trained as well.
    #[serde(default)]
    pub train_on_prompt: bool,
    /// Whether a sequence holds several examples.
    #[serde(default)]
    pub packing: bool,
    /// Which columns of JSON data stand for which names of ours.
    #[serde(default)]
    pub columns: Option<Columns>,
    /// Run directory; `None`: a new one below `runs/`.
    pub out: Option<PathBuf>,
    /// Device selector.
    pub device: String,
    /// Most device memory, bytes.
    pub memory_budget: Option<ByteSize>,
    /// What of the schedule is not to be chosen.
    #[serde(default)]
    pub plan: Option<PlanParts>,
    /// Seed of initial values and data order.
    pub seed: u64,
    /// What is trained.
    pub method: Method,
    /// Optimiser steps; `None` where something else counts.
    pub steps: Option<u64>,
    /// Passes over the data; `None` where something else counts.
    pub epochs: Option<f64>,
    /// Seconds of training; `None` where something else counts.
    #[serde(default)]
    pub max_seconds: Option<f64>,
    /// Tokens; `None` where something else counts.
    #[serde(default)]
    pub max_tokens: Option<u64>,
    /// Sequences a step.
    pub batch_size: usize,
    /// Sequences at once, a divisor of `batch_size`.
    pub micro_batch: usize,
    /// Whether a schedule may choose another one, to keep to the memory budget.
    #[serde(skip)]
    pub auto_micro_batch: bool,
    /// Tokens of a sequence; `None`: 256 or the model's context, whichever is less.
    pub seq_len: Option<usize>,
    /// Peak learning rate.
    pub lr: f64,
    /// Learning rate over the steps.
    pub schedule: Schedule,
    /// Steps of rising learning rate; `None`: 5 % of the steps.
    pub warmup_steps: Option<u64>,
    /// How the optimizer stores its moments.
    #[serde(default)]
    pub optimizer: OptimizerName,
    /// AdamW's decoupled weight decay.
    pub weight_decay: f64,
    /// Largest norm of the gradient; 0: any.
    pub clip: f64,
    /// PEFT adapter to start from; `None`: adapters that change nothing.
    #[serde(default)]
    pub adapter: Option<PathBuf>,
    /// LoRA rank.
    pub rank: usize,
    /// LoRA alpha.
    pub alpha: f64,
    /// Layers with an adapter.
    pub targets: Targets,
    /// Windows, each with an exit.
    pub windows: usize,
    /// Which window a step trains.
    pub window_order: WindowOrder,
    /// What lies below a window while it is trained.
    pub semantics: Semantics,
    /// Shares of the run that windows in phases get; `None`: most for the top one.
    #[serde(default)]
    pub window_shares: Option<Shares>,
    /// Where hidden states below a window that is trained alone are kept.
    #[serde(default)]
    pub trunk_cache: TrunkCache,
    /// Rank of each exit's low-rank term beside the head; 0: none.
    #[serde(default)]
    pub exit_rank: usize,
    /// How exits are combined.
    pub vote: Vote,
    /// Bits of the frozen weights; `None`: as the checkpoint stores them.
    #[serde(default)]
    pub bits: Option<Bits>,
    /// Weights that share a scale; `None`: 32, or as a compressed checkpoint has it.
    #[serde(default)]
    pub group_size: Option<usize>,
    /// Keep only the inputs of blocks for the backward pass.
    #[serde(default)]
    pub recompute: bool,
    /// Steps between validations; 0: only before and after.
    pub eval_every: u64,
    /// Validations at equal shares of the run, the last of them after it.
    #[serde(default)]
    pub evals: u64,
    /// Validations without improvement behind which the run ends; `None`: any number.
    #[serde(default)]
    pub early_stopping: Option<u64>,
    /// Steps between checkpoints; 0: only where the run is interrupted.
    #[serde(default = "checkpoint_every")]
    pub checkpoint_every: u64,
    /// Checkpoints that are kept.
    #[serde(default = "keep_checkpoints")]
    pub keep_checkpoints: usize,
    /// Charge of the battery below which the run rests, percent.
    #[serde(default)]
    pub pause_below_battery: Option<f64>,
    /// Temperature above which the run rests, degrees Celsius.
    #[serde(default)]
    pub pause_above_temperature: Option<f64>,
    /// Time each kernel.
    pub profile: bool,
    /// Write the timeline of a step.
    #[serde(skip)]
    pub trace: bool,
}

/// Tokens of a sequence where neither flag nor file says.
const SEQ_LEN: usize = 256;

/// Steps between checkpoints where neither flag nor file says.
const fn checkpoint_every() -> u64 {
    50
}

/// The newest, and the one before it in case that it is damaged.
const fn keep_checkpoints() -> usize {
    2
}

/// Windows are trained one after the other (`docs/windows.md`) unless an order is asked for, which
/// those that have a part of the run each cannot have.
fn default_semantics(order: Option<WindowOrder>) -> Semantics {
    if order.is_some() { Semantics::Stacked } else { Semantics::Progressive }
}

/// Full tuning moves all weights at once and needs smaller steps.
fn default_lr(method: Method) -> f64 {
    if method == Method::Full { 2e-5 } else { 2e-4 }
}

/// Time and memory that windows save are best spent on rank (`docs/windows.md`).
fn default_rank(method: Method) -> usize {
    if method == Method::Edge { 64 } else { 8 }
}

impl TuneFlags {
    /// Reads a YAML file of options.
    ///
    /// # Errors
    /// It is absent, no YAML, or has an unknown key or wrong value (named with its line).
    pub fn load(path: &Path) -> Result<Self> {
        let shown = path.display();
        let text = whole_file::text(path, SETTINGS)
            .with_context(|| format!("cannot read {shown}: correct the path of --config"))?;
        if text.lines().all(|line| line.trim().is_empty() || line.trim_start().starts_with('#')) {
            return Ok(Self::default());
        }
        serde_norway::from_str(&text).map_err(|error| {
            anyhow::anyhow!("{shown} is not usable ({}): correct that line", explain(&error))
        })
    }

    /// These options, and those of `file` where these are not given.
    pub fn or(self, file: Self) -> Self {
        // Alternatives exclude each other across both sources: a flag replaces the file's choice.
        let counted = self.is_counted();
        let validated =
            self.valid.is_some() || self.val_fraction.is_some() || self.val_items.is_some();
        Self {
            model: self.model.or(file.model),
            data: self.data.or(file.data),
            valid: if validated { self.valid } else { file.valid },
            val_fraction: if validated { self.val_fraction } else { file.val_fraction },
            val_items: if validated { self.val_items } else { file.val_items },
            train_on_prompt: self.train_on_prompt.or(file.train_on_prompt),
            packing: self.packing.or(file.packing),
            columns: self.columns.or(file.columns),
            out: self.out.or(file.out),
            device: self.device.or(file.device),
            memory_budget: self.memory_budget.or(file.memory_budget),
            plan: self.plan.or(file.plan),
            seed: self.seed.or(file.seed),
            method: self.method.or(file.method),
            steps: if counted { self.steps } else { file.steps },
            epochs: if counted { self.epochs } else { file.epochs },
            max_seconds: if counted { self.max_seconds } else { file.max_seconds },
            max_tokens: if counted { self.max_tokens } else { file.max_tokens },
            batch_size: self.batch_size.or(file.batch_size),
            micro_batch: self.micro_batch.or(file.micro_batch),
            seq_len: self.seq_len.or(file.seq_len),
            lr: self.lr.or(file.lr),
            schedule: self.schedule.or(file.schedule),
            warmup_steps: self.warmup_steps.or(file.warmup_steps),
            optimizer: self.optimizer.or(file.optimizer),
            weight_decay: self.weight_decay.or(file.weight_decay),
            clip: self.clip.or(file.clip),
            rank: self.rank.or(file.rank),
            alpha: self.alpha.or(file.alpha),
            targets: self.targets.or(file.targets),
            windows: self.windows.or(file.windows),
            window_order: self.window_order.or(file.window_order),
            semantics: self.semantics.or(file.semantics),
            window_shares: self.window_shares.or(file.window_shares),
            trunk_cache: self.trunk_cache.or(file.trunk_cache),
            exit_rank: self.exit_rank.or(file.exit_rank),
            vote: self.vote.or(file.vote),
            bits: self.bits.or(file.bits),
            group_size: self.group_size.or(file.group_size),
            eval_every: self.eval_every.or(file.eval_every),
            evals: self.evals.or(file.evals),
            early_stopping: self.early_stopping.or(file.early_stopping),
            recompute: self.recompute.or(file.recompute),
            adapter: self.adapter.or(file.adapter),
            pause_below_battery: self.pause_below_battery.or(file.pause_below_battery),
            pause_above_temperature: self.pause_above_temperature.or(file.pause_above_temperature),
            checkpoint_every: self.checkpoint_every.or(file.checkpoint_every),
            keep_checkpoints: self.keep_checkpoints.or(file.keep_checkpoints),
            profile: self.profile.or(file.profile),
        }
    }

    /// Fills in what depends on files where it is not given: the bits of a method's base, and rank,
    /// alpha and layers of the adapter that is started from.
    ///
    /// # Errors
    /// Bits are given for a compressed model, which has formats of its own; or the adapter is of
    /// another rank, alpha or model than is asked for.
    pub fn choose_by_files(&mut self) -> Result<()> {
        let compressed = self.model.as_deref().filter(|model| is_compressed(model));
        if let Some(model) = compressed {
            refuse_formats(model, self.bits, self.group_size)?;
        } else if self.bits.is_none() {
            self.bits = match self.method.unwrap_or_default() {
                Method::Full | Method::Lora => None,
                Method::Qlora => Some(Bits::Four),
                // The method's point is a packed base; 8 bit costs nearly nothing in loss.
                Method::Edge | Method::Partial => Some(Bits::Eight),
            };
        }
        self.choose_adapter()
    }

    fn choose_adapter(&mut self) -> Result<()> {
        let Some(dir) = &self.adapter else { return Ok(()) };
        let shown = dir.display();
        ensure!(
            self.method != Some(Method::Full),
            "--adapter {shown} goes with methods that train adapters: export it merged, and give \
             --method full that model"
        );
        let model = self.model.as_deref();
        let model = model.with_context(|| format!("--adapter {shown} needs --model: its base"))?;
        let (found, _) = adapter::load(dir, &Source::open(model)?.config)?;
        let (rank, alpha) = (self.rank.unwrap_or(found.r), self.alpha.unwrap_or(found.lora_alpha));
        ensure!(
            rank == found.r && alpha == found.lora_alpha,
            "the adapter in {shown} has rank {} and alpha {}, and --rank {rank} --alpha {alpha} \
             were asked for: leave them out",
            found.r,
            found.lora_alpha
        );
        (self.rank, self.alpha) = (Some(rank), Some(alpha));
        if self.targets.is_none() {
            self.targets = Some(Targets::of(found.target_modules));
        }
        Ok(())
    }

    /// Whether it is said what ends the run.
    pub fn is_counted(&self) -> bool {
        self.steps.is_some()
            || self.epochs.is_some()
            || self.max_seconds.is_some()
            || self.max_tokens.is_some()
    }

    /// Fills in the defaults and checks the values.
    ///
    /// # Errors
    /// A value makes no sense; the flag is named.
    pub fn resolve(self) -> Result<TuneOptions> {
        let counted = self.is_counted();
        let semantics = self.semantics.unwrap_or(default_semantics(self.window_order));
        let method = self.method.unwrap_or_default();
        let (batch_size, rank) =
            (self.batch_size.unwrap_or(4), self.rank.unwrap_or(default_rank(method)));
        let options = TuneOptions {
            model: self.model,
            data: self.data.unwrap_or_default(),
            val_fraction: self.val_fraction.unwrap_or(match (&self.valid, self.val_items) {
                (None, None) => 0.1,
                _ => 0.0,
            }),
            val_items: self.val_items,
            train_on_prompt: self.train_on_prompt.unwrap_or(false),
            packing: self.packing.unwrap_or(false),
            columns: self.columns,
            valid: self.valid,
            out: self.out,
            device: self.device.unwrap_or_else(|| "auto".to_owned()),
            memory_budget: self.memory_budget,
            plan: self.plan,
            seed: self.seed.unwrap_or(0),
            method,
            steps: if counted { self.steps } else { Some(200) },
            epochs: self.epochs,
            max_seconds: self.max_seconds,
            max_tokens: self.max_tokens,
            batch_size,
            micro_batch: self.micro_batch.unwrap_or(batch_size),
            auto_micro_batch: self.micro_batch.is_none()
                && (self.memory_budget.is_some() || self.plan.is_some()),
            seq_len: self.seq_len,
            lr: self.lr.unwrap_or(default_lr(method)),
            schedule: self.schedule.unwrap_or_default(),
            warmup_steps: self.warmup_steps,
            optimizer: self.optimizer.unwrap_or_default(),
            weight_decay: self.weight_decay.unwrap_or(0.0),
            clip: self.clip.unwrap_or(1.0),
            rank,
            alpha: self.alpha.unwrap_or(2.0 * rank as f64),
            targets: self.targets.unwrap_or_else(Targets::all),
            windows: self.windows.unwrap_or(3),
            window_order: self.window_order.unwrap_or(match semantics {
                Semantics::Stacked => WindowOrder::RoundRobin,
                Semantics::Progressive | Semantics::Isolated => WindowOrder::Sequential,
            }),
            semantics,
            window_shares: self.window_shares,
            trunk_cache: self.trunk_cache.unwrap_or_default(),
            exit_rank: self.exit_rank.unwrap_or(0),
            vote: self.vote.unwrap_or_default(),
            bits: self.bits,
            group_size: self.group_size,
            eval_every: self.eval_every.unwrap_or(0),
            evals: self.evals.unwrap_or(0),
            early_stopping: self.early_stopping,
            recompute: self.recompute.unwrap_or(false),
            adapter: self.adapter,
            pause_below_battery: self.pause_below_battery,
            pause_above_temperature: self.pause_above_temperature,
            checkpoint_every: self.checkpoint_every.unwrap_or(checkpoint_every()),
            keep_checkpoints: self.keep_checkpoints.unwrap_or(keep_checkpoints()),
            profile: self.profile.unwrap_or(false),
            trace: false,
        };
        options.check()?;
        Ok(options)
    }
}

impl TuneOptions {
    /// Sequence length for a model with a context of `max_position_embeddings`.
    pub fn seq_len_for(&self, max_position_embeddings: usize) -> usize {
        self.seq_len.unwrap_or(SEQ_LEN.min(max_position_embeddings))
    }

    /// What ends the run, where an epoch has `windows` sequences.
    pub fn budget(&self, windows: usize) -> Budget {
        match (self.steps, self.max_seconds, self.max_tokens) {
            (Some(steps), ..) => Budget::Steps(steps),
            (_, Some(seconds), _) => Budget::Seconds(seconds),
            (.., Some(tokens)) => Budget::Tokens(tokens),
            _ => {
                let sequences = self.epochs.unwrap_or(1.0) * windows as f64;
                Budget::Steps((sequences / self.batch_size as f64).ceil().max(1.0) as u64)
            }
        }
    }

    /// Options of windows must go together.
    fn check_windows(&self) -> Result<()> {
        let phases = self.semantics.has_phases();
        ensure!(
            !phases || self.window_order == WindowOrder::Sequential,
            "--semantics progressive and isolated train windows one after the other: leave \
             --window-order out"
        );
        ensure!(
            self.warmup_steps.is_none() || self.max_seconds.is_none() && self.max_tokens.is_none(),
            "--warmup-steps goes with --steps or --epochs: leave it out (5 % of the run)"
        );
        let Some(Shares(shares)) = &self.window_shares else { return Ok(()) };
        ensure!(
            phases,
            "--window-shares goes with --semantics progressive or isolated, whose windows have a \
             part of the run each: leave it out"
        );
        ensure!(
            shares.len() == self.windows,
            "--window-shares has {} shares and there are {} --windows: give one for each",
            shares.len(),
            self.windows
        );
        Ok(())
    }

    fn check_validation(&self) -> Result<()> {
        ensure!(
            self.valid.is_none() || self.val_fraction == 0.0,
            "both --valid and --val-fraction are given: keep one"
        );
        ensure!(
            self.val_items.is_none() || self.valid.is_none() && self.val_fraction == 0.0,
            "--val-items goes without --valid and --val-fraction: keep one"
        );
        ensure!(self.early_stopping != Some(0), "--early-stopping is 0: give at least 1");
        ensure!(
            self.early_stopping.is_none() || self.eval_every > 0 || self.evals > 0,
            "--early-stopping needs validations between the steps: give --eval-every or --evals"
        );
        ensure!(self.val_items != Some(0), "--val-items is 0: give at least 1");
        Ok(())
    }

    /// Checks that values make sense and go together.
    ///
    /// # Errors
    /// They do not; the flag is named.
    pub fn check(&self) -> Result<()> {
        let TuneOptions { batch_size, micro_batch, rank, windows, .. } = *self;
        let group_size = self.group_size.unwrap_or(32);
        let counts = [
            self.steps.is_some(),
            self.epochs.is_some(),
            self.max_seconds.is_some(),
            self.max_tokens.is_some(),
        ];
        ensure!(
            counts.into_iter().filter(|given| *given).count() <= 1,
            "more than one of --steps, --epochs, --max-seconds, --max-tokens is given: keep one"
        );
        ensure!(self.max_tokens != Some(0), "--max-tokens is 0: give at least 1");
        self.check_windows()?;
        self.check_validation()?;
        ensure!(self.steps != Some(0), "--steps is 0: give at least 1");
        for (flag, value, most) in [
            ("--batch-size", batch_size, 1 << 20),
            ("--micro-batch", micro_batch, 1 << 20),
            ("--rank", rank, 4096),
            ("--windows", windows, 1024),
            ("--keep-checkpoints", self.keep_checkpoints, 1 << 20),
        ] {
            ensure!((1..=most).contains(&value), "{flag} is {value}: give a number in 1..={most}");
        }
        ensure!(
            self.exit_rank <= 4096,
            "--exit-rank is {}: give a number in 0..=4096",
            self.exit_rank
        );
        ensure!(
            batch_size % micro_batch == 0,
            "--batch-size {batch_size} is no multiple of --micro-batch {micro_batch}: make it one"
        );
        ensure!(
            group_size == 32 || group_size == 64,
            "--group-size is {group_size}: give 32 or 64"
        );
        ensure!(self.seq_len.is_none_or(|len| len >= 2), "--seq-len is below 2: give at least 2");
        for (flag, value, below) in [
            ("--lr", self.lr, 1e3),
            ("--alpha", self.alpha, 1e9),
            ("--epochs", self.epochs.unwrap_or(1.0), 1e9),
            ("--max-seconds", self.max_seconds.unwrap_or(1.0), 1e9),
            ("--pause-below-battery", self.pause_below_battery.unwrap_or(1.0), 100.0),
            ("--pause-above-temperature", self.pause_above_temperature.unwrap_or(1.0), 1e3),
        ] {
            ensure!(
                value > 0.0 && value < below,
                "{flag} is {value}: give a number above 0 and below {below}"
            );
        }
        for (flag, value, below) in [
            ("--weight-decay", self.weight_decay, 1e3),
            ("--clip", self.clip, 1e9),
            ("--val-fraction", self.val_fraction, 1.0),
        ] {
            ensure!(
                (0.0..below).contains(&value),
                "{flag} is {value}: give a number of at least 0 and below {below}"
            );
        }
        Ok(())
    }
}

#[cfg(test)]
#[path = "options_tests.rs"]
mod tests;
