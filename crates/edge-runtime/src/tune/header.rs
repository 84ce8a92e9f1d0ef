//! What a run is, before its first step: printed, kept as `header.json`, and what its report begins
//! with.

use std::path::Path;

use anyhow::{Context, Result};
use clap::ValueEnum;
use edge_gpu::Device;
use edge_kernels::Category;
use edge_scheduler::policy::{bits, sparsity};
use edge_scheduler::{Job, Plan, Projection, Trained};
use serde::{Deserialize, Serialize};

use super::course::Budget;
use crate::cli::args::Method;
use crate::cli::options::TuneOptions;
use crate::data::Dataset;
use crate::packing::Packing;
use crate::plan::choose::{Chosen, describe};
use crate::session::{Source, mebibytes};
use crate::whole_file::{self, SETTINGS};

/// File name in a run directory.
pub const FILE: &str = "header.json";

/// How a projection's weights are stored.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Stored {
    /// Bits of a value.
    pub bits: u32,
    /// Share of the weights that is left out.
    pub sparsity: f64,
}

/// A run before its first step.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Header {
    /// Version of this program.
    pub program_version: String,
    /// Name of the device.
    pub device: String,
    /// API that it is reached through.
    pub backend: String,
    /// Its driver, with version.
    pub driver: String,
    /// The model folder.
    pub model: String,
    /// Its blocks.
    pub blocks: u32,
    /// Its parameters.
    pub parameters: u64,
    /// How its weights are stored, in a few words.
    pub precision: String,
    /// The same for each projection ([`Projection::ALL`]) of each block.
    pub layers: Vec<Vec<Stored>>,
    /// `lora`, `full`, `qlora`, `partial` or `edge`.
    pub method: String,
    /// What is trained, in a few words.
    pub trained: String,
    /// Parameters that are trained, of all windows.
    pub trained_parameters: u64,
    /// First and last block of each window, from 1.
    pub windows: Vec<[u32; 2]>,
    /// How windows take turns, and how exits are combined; empty with a single window.
    pub turns: String,
    /// What ends the run: `600 steps`.
    pub budget: String,
    /// Sequences a step.
    pub batch_size: usize,
    /// Sequences at once.
    pub micro_batch: usize,
    /// Tokens of a sequence.
    pub seq_len: usize,
    /// Optimizer, learning rate and its schedule.
    pub optimizer: String,
    /// Files of the training data.
    pub data: String,
    /// Its tokens.
    pub train_tokens: usize,
    /// Its sequences.
    pub train_sequences: usize,
    /// What of its examples is cut or left out; `None` where nothing is.
    pub train_cut: Option<String>,
    /// What packing makes of its examples, where they are packed.
    pub packing: Option<Packing>,
    /// What of the examples that are validated on is cut or left out.
    pub valid_cut: Option<String>,
    /// Tokens to validate on; `None`: there are no validation data.
    pub valid_tokens: Option<usize>,
    /// What is planned to be in use at once, bytes.
    pub planned_bytes: u64,
    /// The same by category.
    pub planned_bytes_by_category: Vec<(String, u64)>,
    /// `--memory-budget`.
    pub budget_bytes: Option<u64>,
    /// The schedule that was chosen to keep to it.
    pub schedule: Option<String>,
    /// What a step is predicted to take, ms; `None` where the device was not measured.
    pub predicted_step_ms: Option<f64>,
}

/// What a header is made of.
pub struct Parts<'a> {
    /// The options.
    pub options: &'a TuneOptions,
    /// The model.
    pub source: &'a Source,
    /// The device.
    pub device: &'a Device,
    /// The data.
    pub data: &'a Dataset,
    /// What ends the run.
    pub budget: Budget,
    /// Sequences in an epoch.
    pub sequences: usize,
    /// What packing makes of examples, where they are packed.
    pub packing: Option<Packing>,
    /// The job.
    pub job: &'a Job,
    /// Its plan.
    pub plan: &'a Plan,
    /// The schedule, where one was searched.
    pub chosen: Option<&'a Chosen>,
    /// What a step is predicted to take, seconds.
    pub step_s: Option<f64>,
}

impl Header {
    /// Puts it together.
    pub fn new(parts: &Parts) -> Self {
        let Parts { options, source, device, job, plan, .. } = *parts;
        let (info, shape) = (device.info(), source.config.shape());
        let stored = |block: usize| {
            let format = |p: &Projection| job.blocks[block].get(*p);
            let stored = |format| Stored { bits: bits(format), sparsity: sparsity(format) };
            Projection::ALL.iter().map(|p| stored(format(p))).collect()
        };
        let train = &parts.data.train;
        let driver = format!("{} {}", info.driver, info.driver_info);
        Self {
            program_version: env!("CARGO_PKG_VERSION").into(),
            device: info.name.clone(),
            backend: info.backend.clone(),
            driver: driver.trim().into(),
            model: source.dir.display().to_string(),
            blocks: shape.num_blocks,
            parameters: shape.parameters(),
            precision: match options.method {
                Method::Full => "32 bit while it is trained".into(),
                _ => source.precision(options.bits),
            },
            layers: (0..job.blocks.len()).map(stored).collect(),
            method: options.method.name().into(),
            trained: trained(options, job),
            trained_parameters: plan.groups.iter().map(|group| group.parameters()).sum(),
            windows: job.windows.iter().map(|window| [window.first + 1, window.end]).collect(),
            turns: turns(options, job),
            budget: parts.budget.to_string(),
            batch_size: options.batch_size,
            micro_batch: job.batch as usize,
            seq_len: job.seq_len as usize,
            optimizer: optimizer(options),
            data: train.source.clone(),
            train_tokens: train.ids.len(),
            train_sequences: parts.sequences,
            train_cut: train.cut_note(job.seq_len as usize),
            packing: parts.packing,
            valid_cut: parts
                .data
                .valid
                .as_ref()
                .and_then(|stream| stream.cut_note(job.seq_len as usize)),
            valid_tokens: parts.data.valid.as_ref().map(|stream| stream.ids.len()),
            planned_bytes: plan.bytes(),
            planned_bytes_by_category: Category::ALL
                .iter()
                .zip(plan.bytes_by_category())
                .map(|(category, bytes)| (category.name().into(), bytes))
                .collect(),
            budget_bytes: options.memory_budget.map(|budget| budget.0),
            schedule: parts.chosen.map(|chosen| {
                let text = describe(&chosen.schedule);
                text.strip_prefix("schedule: ").unwrap_or(&text).to_owned()
            }),
            predicted_step_ms: parts.step_s.map(|step_s| 1e3 * step_s),
        }
    }

    /// That of a run directory.
    ///
    /// # Errors
    /// It is absent or damaged.
    pub fn read(dir: &Path) -> Result<Self> {
        let path = dir.join(FILE);
        let shown = path.display();
        let text = whole_file::text(&path, SETTINGS)
            .with_context(|| format!("cannot read {shown}: give a directory that tune wrote"))?;
        serde_json::from_str(&text)
            .map_err(|error| anyhow::anyhow!("{shown} is damaged ({error}): tune again"))
    }

    /// For people: what a line is about, and the line.
    pub fn facts(&self) -> Vec<(&'static str, String)> {
        let driver = match self.driver.as_str() {
            "" => String::new(),
            driver => format!(", driver {driver}"),
        };
        let million = |count: u64| count as f64 / 1e6;
        let mut facts = vec![
            ("device", format!("{} ({}{driver})", self.device, self.backend)),
            (
                "model",
                format!(
                    "{}: {} blocks, {:.2} M parameters, {}",
                    self.model,
                    self.blocks,
                    million(self.parameters),
                    self.precision
                ),
            ),
            (
                "method",
                format!(
                    "{}: {:.3} M parameters trained, {}",
                    self.method,
                    million(self.trained_parameters),
                    self.trained
                ),
            ),
        ];
        if !self.turns.is_empty() {
            facts.push(("windows", format!("{}, {}", self.windows_text(), self.turns)));
        }
        let valid = match self.valid_tokens {
            Some(tokens) => format!("{tokens} tokens to validate on"),
            None => "no validation data".into(),
        };
        facts.push((
            "data",
            format!(
                "{}: {} tokens, {} sequences; {valid}",
                self.data, self.train_tokens, self.train_sequences
            ),
        ));
        if let Some(note) = &self.train_cut {
            facts.push(("training", note.clone()));
        }
        if let Some(packing) = &self.packing {
            facts.push(("packing", packing.text()));
        }
        if let Some(note) = &self.valid_cut {
            facts.push(("validated", note.clone()));
        }
        let micro = match self.micro_batch {
            micro if micro == self.batch_size => String::new(),
            micro => format!(" in micro-batches of {micro}"),
        };
        let (budget, batch, seq_len) = (&self.budget, self.batch_size, self.seq_len);
        facts.push((
            "plan",
            format!("{budget} of {batch} x {seq_len} tokens{micro}; {}", self.optimizer),
        ));
        if let Some(schedule) = &self.schedule {
            facts.push(("schedule", schedule.clone()));
        }
        facts.push(("predicted", self.predicted()));
        facts
    }

    /// What the plan says of memory and time.
    fn predicted(&self) -> String {
        let within = match self.budget_bytes {
            Some(budget) => format!(" of {} allowed", mebibytes(budget)),
            None => String::new(),
        };
        let memory = format!("{} of device memory{within}", mebibytes(self.planned_bytes));
        match self.predicted_step_ms {
            Some(ms) => {
                let speed = self.tokens_per_step() as f64 / ms * 1e3;
                format!("{memory}; {ms:.0} ms a step, {speed:.0} tokens/s")
            }
            None => {
                format!(
                    "{memory}; a step's time is not known before `plan` has measured the device"
                )
            }
        }
    }

    /// For a terminal.
    pub fn text(&self) -> String {
        let lines = self.facts().into_iter().map(|(name, text)| format!("{name:<9}  {text}"));
        lines.collect::<Vec<_>>().join("\n")
    }

    /// Tokens that go through the model in a step.
    pub fn tokens_per_step(&self) -> usize {
        self.batch_size * self.seq_len
    }

    fn windows_text(&self) -> String {
        let each = self.windows.iter().map(|[first, last]| match first == last {
            true => first.to_string(),
            false => format!("{first}-{last}"),
        });
        format!("{} of blocks {}", self.windows.len(), each.collect::<Vec<_>>().join(", "))
    }
}

fn trained(options: &TuneOptions, job: &Job) -> String {
    match &job.trained {
        Trained::Lora { rank, .. } => {
            format!("LoRA of rank {rank}, alpha {} on {}", options.alpha, options.targets)
        }
        _ => "all weights".into(),
    }
}

/// The name that a value has on the command line.
fn name(value: impl ValueEnum) -> String {
    value.to_possible_value().map(|value| value.get_name().to_owned()).unwrap_or_default()
}

fn turns(options: &TuneOptions, job: &Job) -> String {
    if job.windows.len() < 2 {
        return String::new();
    }
    let (semantics, order) = (name(options.semantics), name(options.window_order));
    format!("{semantics}, {order}; vote {}", options.vote.name())
}

fn optimizer(options: &TuneOptions) -> String {
    let (optimizer, schedule) = (name(options.optimizer), name(options.schedule));
    format!("{optimizer}, learning rate {} {schedule}", options.lr)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_header_says_what_is_known() {
        let mut header = Header {
            device: "llvmpipe".into(),
            backend: "vulkan".into(),
            driver: "Mesa 22".into(),
            windows: vec![[1, 2], [3, 3]],
            turns: "stacked, round-robin; vote learned".into(),
            batch_size: 8,
            micro_batch: 4,
            seq_len: 100,
            budget: "5 steps".into(),
            planned_bytes: 3 << 20,
            ..Header::default()
        };
        let text = header.text();
        assert!(text.contains("llvmpipe (vulkan, driver Mesa 22)"), "{text}");
        assert!(
            text.contains("2 of blocks 1-2, 3, stacked") && text.contains("micro-batches of 4")
        );
        assert!(text.contains("no validation data") && text.contains("before `plan` has measured"));
        header.predicted_step_ms = Some(400.0);
        header.budget_bytes = Some(4 << 20);
        header.windows.pop();
        header.turns.clear();
        header.train_cut = Some("2 of 9 examples are cut".into());
        header.valid_cut = Some("1 of 4 examples are cut".into());
        let text = header.text();
        assert!(text.contains("3.0 MiB of device memory of 4.0 MiB allowed; 400 ms"), "{text}");
        assert!(text.contains("training   2 of 9") && text.contains("validated  1 of 4"), "{text}");
        assert!(text.contains("2000 tokens/s") && !text.contains("windows"), "{text}");
        let dir = tempfile::tempdir().unwrap();
        assert!(crate::testing::message(Header::read(dir.path())).contains(FILE));
        let json = serde_json::to_string(&header).unwrap();
        std::fs::write(dir.path().join(FILE), json).unwrap();
        assert_eq!(Header::read(dir.path()).unwrap(), header);
    }
}
