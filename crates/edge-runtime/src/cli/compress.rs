//! `compress`: measures sensitivity, chooses a policy, writes a compressed model.

use std::path::PathBuf;

use anyhow::{Result, ensure};
use clap::Args;
use edge_gpu::Options as DeviceOptions;
use edge_scheduler::policy::{Template, bits, matrix_bytes, sparsity};
use edge_scheduler::profiles::DeviceProfile;
use edge_scheduler::{Layer, ModelShape};
use serde::Serialize;

use super::Usage;
use super::args::ByteSize;
use super::parts::device_profile;
use super::report::print_json;
use crate::batch::check_seq_len;
use crate::compress::calibrate::Granularity;
use crate::compress::method::Method;
use crate::compress::options::{Aim, Elsewhere, Measured, Options, TableBits, Wanted};
use crate::compress::policy_file::sparsity_name;
use crate::compress::run::{Compressed, Outcome, mean_error, run as compress};
use crate::data::Columns;
use crate::interrupt;
use crate::session::{Source, demo_dir, mebibytes};

/// Options of `compress`.
#[derive(Clone, Debug, Args)]
pub struct CompressArgs {
    /// Hugging Face model folder or GGUF file [default: the bundled demo model]
    #[arg(long, value_name = "DIR", requires = "calibration")]
    pub model: Option<PathBuf>,
    /// Text to calibrate on: a file, or a directory with train.*; may be repeated
    #[arg(long, value_name = "PATH")]
    pub calibration: Vec<PathBuf>,
    /// Names of JSON columns, ours=theirs, such as prompt=question,completion=answer
    #[arg(long, value_name = "OURS=THEIRS,...")]
    pub columns: Option<Columns>,
    /// Held-out text for perplexity [default: the last tenth of the calibration text]
    #[arg(long, value_name = "PATH")]
    pub valid: Option<PathBuf>,
    /// Folder to write
    #[arg(long, value_name = "DIR")]
    pub out: PathBuf,
    /// luc, uniform, random, paper, or a policy as a .json file
    #[arg(long, default_value = "luc", value_name = "NAME|FILE")]
    pub policy: Wanted,
    /// Mean bits of a stored value, 2 to 16 [default: 4]
    #[arg(long, value_name = "BITS", conflicts_with_all = ["target_bytes", "target_step_ms"])]
    pub target_bits: Option<f64>,
    /// Size of the compressed file at most, such as 500MB
    #[arg(long, value_name = "SIZE", conflicts_with = "target_step_ms")]
    pub target_bytes: Option<ByteSize>,
    /// Time of the projections' products in a training step at most, as measured on the device
    #[arg(long, value_name = "MS")]
    pub target_step_ms: Option<f64>,
    /// Tokens of that step
    #[arg(long, default_value_t = 256, requires = "target_step_ms")]
    pub step_tokens: u32,
    /// Take that time from the data sheet of a device that is not here, such as apple-m2
    #[arg(long, value_name = "NAME", requires = "target_step_ms", value_parser = device_profile)]
    pub device_profile: Option<&'static DeviceProfile>,
    /// Count that blocks are streamed from storage there, beside compute
    #[arg(long, requires = "device_profile")]
    pub streamed: bool,
    /// Mean share of the weights to leave out, 0 to 0.5 [default: none; with a target in
    /// bytes or time any]
    #[arg(long, value_name = "SHARE")]
    pub target_sparsity: Option<f64>,
    /// Round each weight for itself, with searched scales: many times faster, less exact
    #[arg(long, conflicts_with = "method")]
    pub fast: bool,
    /// How weights are pruned and rounded
    #[arg(long, value_enum, default_value = "second-order")]
    pub method: Method,
    /// Let rows share the positions that are kept, so that multiplications are saved as well
    #[arg(long)]
    pub row_grouped: bool,
    /// Weights that share a scale: 32 or 64 [default: 32]
    #[arg(long)]
    pub group_size: Option<u32>,
    /// Store a minimum beside each scale
    #[arg(long)]
    pub zero_point: bool,
    /// Bits of the embedding and the head: 8 or 16
    #[arg(long, value_enum, default_value = "8", value_name = "BITS")]
    pub table_bits: TableBits,
    /// Let luc choose for blocks or for projections
    #[arg(long, value_parser = granularity, default_value = "block")]
    #[arg(value_name = "block|projection")]
    pub granularity: Granularity,
    /// What luc measures [default: divergence where the model fits into memory, else output]
    #[arg(long, value_enum)]
    pub measure: Option<Measured>,
    /// Evaluations of the whole model to refine luc with [default: by the size of the model]
    #[arg(long, value_name = "N")]
    pub refine: Option<usize>,
    /// Sequences to calibrate on
    #[arg(long, default_value_t = 64)]
    pub sequences: usize,
    /// Sequences of them to measure sensitivity on
    #[arg(long, default_value_t = 16)]
    pub probe_sequences: usize,
    /// Tokens of a sequence [default: 256, or the model's context if shorter]
    #[arg(long)]
    pub seq_len: Option<usize>,
    /// Most memory to use, on device and host together, such as 1GiB
    #[arg(long, value_name = "SIZE")]
    pub memory_budget: Option<ByteSize>,
    /// Where measured sensitivity is kept [default: a file in the user's cache folder]
    #[arg(long, value_name = "FILE")]
    pub sensitivity: Option<PathBuf>,
    /// Seed of --policy random
    #[arg(long, default_value_t = 0)]
    pub seed: u64,
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

fn granularity(text: &str) -> Result<Granularity, String> {
    match text {
        "block" => Ok(Granularity::Block),
        "projection" => Ok(Granularity::Projection),
        _ => Err("give block or projection".to_owned()),
    }
}

/// `compress --json`; the keys in this order.
#[derive(Clone, Debug, Default, Serialize)]
pub struct CompressReport {
    /// The blocks.
    pub layers: Vec<LayerReport>,
    /// Bits of a stored value, mean over the weights of all projections.
    pub average_bits: f64,
    /// Share of those weights that are not stored.
    pub average_sparsity: f64,
    /// Size of the compressed file.
    pub bytes: u64,
    /// On held-out text, before and after; null without such text.
    pub perplexity_before: Option<f64>,
    /// After.
    pub perplexity_after: Option<f64>,
    /// `KL(before ‖ after)` on held-out text, nats a position.
    pub divergence: Option<f64>,
    /// Size of the tensors that were compressed.
    pub bytes_before: u64,
    /// Name of the policy.
    pub policy: String,
    /// How weights were pruned and rounded.
    pub method: String,
    /// Evaluations of the whole model that refining the policy took.
    pub evaluations: usize,
    /// Error of the whole model on the probes before refining, nats.
    pub error_unrefined: Option<f64>,
    /// And after.
    pub error_refined: Option<f64>,
    /// Most device memory in use at once, bytes.
    pub peak_device_bytes: u64,
    /// Most host memory that was counted at once, bytes.
    pub peak_host_bytes: u64,
    /// Duration, seconds.
    pub seconds: f64,
    /// The folder.
    pub out: String,
}

/// A block or a projection.
#[derive(Clone, Debug, Default, Serialize)]
pub struct LayerReport {
    /// As in the checkpoint.
    pub name: String,
    /// Bits of a stored value; of a block the mean over its weights.
    pub bits: f64,
    /// Share of the weights that are not stored.
    pub sparsity: f64,
    /// `dense`, `2:4` or `2:4 row-grouped`; of a block with several, `mixed`.
    pub pattern: String,
    /// Squared change of the output relative to it; of a block the mean over projections.
    pub error: f64,
    /// Bytes stored.
    pub bytes: u64,
    /// The projections of a block.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub projections: Vec<LayerReport>,
}

impl LayerReport {
    fn block(shape: &ModelShape, block: u32, parts: &[Compressed]) -> Self {
        let (mut weights, mut all_bits, mut left_out) = (0.0, 0.0, 0.0);
        let mut projections = Vec::new();
        for part in parts {
            let (n, k) = shape.projection(part.projection);
            let count = f64::from(n) * f64::from(k);
            weights += count;
            all_bits += count * f64::from(bits(part.format));
            left_out += count * sparsity(part.format);
            projections.push(Self {
                name: Layer { block, projection: Some(part.projection) }.to_string(),
                bits: f64::from(bits(part.format)),
                sparsity: sparsity(part.format),
                pattern: sparsity_name(part.format).to_owned(),
                error: part.error,
                bytes: matrix_bytes(n, k, part.format),
                projections: Vec::new(),
            });
        }
        let pattern = match projections.iter().all(|p| p.pattern == projections[0].pattern) {
            true => projections[0].pattern.clone(),
            false => "mixed".to_owned(),
        };
        Self {
            name: Layer { block, projection: None }.to_string(),
            bits: all_bits / weights,
            sparsity: left_out / weights,
            pattern,
            error: mean_error(parts),
            bytes: projections.iter().map(|p| p.bytes).sum(),
            projections,
        }
    }
}

impl CompressArgs {
    /// Refuses targets beside a policy that says everything itself.
    fn check_file(&self) -> Result<()> {
        let Wanted::File(path) = &self.policy else { return Ok(()) };
        let given = [
            ("--target-bits", self.target_bits.is_some()),
            ("--target-bytes", self.target_bytes.is_some()),
            ("--target-step-ms", self.target_step_ms.is_some()),
            ("--target-sparsity", self.target_sparsity.is_some()),
            ("--row-grouped", self.row_grouped),
            ("--group-size", self.group_size.is_some()),
            ("--zero-point", self.zero_point),
        ];
        let Some((flag, _)) = given.into_iter().find(|(_, given)| *given) else { return Ok(()) };
        Err(anyhow::Error::new(Usage(format!(
            "{flag} does not go with the policy in {}, which has formats of its own: leave it out",
            path.display()
        ))))
    }

    /// The options, with the demo's where no model is named.
    fn options(&self) -> Result<(PathBuf, Options)> {
        let (model, mut calibration) = match &self.model {
            Some(model) => (model.clone(), self.calibration.clone()),
            None => (demo_dir()?.join("model"), self.calibration.clone()),
        };
        let mut valid = self.valid.clone();
        if calibration.is_empty() {
            calibration = vec![demo_dir()?.join("train.txt")];
            valid = valid.or(Some(demo_dir()?.join("valid.txt")));
        }
        let group_size = self.group_size.unwrap_or(32);
        ensure!(
            group_size == 32 || group_size == 64,
            "--group-size is {group_size}: give 32 or 64"
        );
        self.check_file()?;
        let sparsity = match self.row_grouped {
            true => edge_kernels::Sparsity::RowGrouped,
            false => edge_kernels::Sparsity::TwoFour,
        };
        let zero_point = self.zero_point;
        let aim = match (self.target_bytes, self.target_step_ms) {
            (Some(ByteSize(bytes)), _) => Aim::Bytes(bytes),
            (None, Some(ms)) => Aim::StepMs { ms, tokens: self.step_tokens },
            (None, None) => Aim::Bits(self.target_bits.unwrap_or(4.0)),
        };
        let options = Options {
            policy: self.policy.clone(),
            aim,
            sparsity: self.target_sparsity,
            template: Template { group_size, zero_point, sparsity, ..Template::default() },
            elsewhere: self
                .device_profile
                .map(|profile| Elsewhere { profile, streamed: self.streamed }),
            table_bits: self.table_bits,
            method: if self.fast { Method::Nearest } else { self.method },
            granularity: self.granularity,
            measured: self.measure,
            refine: self.refine,
            calibration,
            columns: self.columns.clone(),
            valid,
            valid_named: self.valid.is_some(),
            sequences: self.sequences,
            probes: self.probe_sequences,
            seq_len: self.seq_len.unwrap_or(256),
            memory_budget: self.memory_budget.map(u64::from),
            sensitivity: self.sensitivity.clone(),
            seed: self.seed,
            out: self.out.clone(),
            quiet: self.quiet,
        };
        Ok((model, options))
    }
}

pub(super) fn run(args: &CompressArgs) -> Result<()> {
    let started = std::time::Instant::now();
    interrupt::install()?;
    let (model, mut options) = args.options()?;
    options.check()?;
    let source = Source::open(&model)?;
    let context = source.config.max_position_embeddings;
    match args.seq_len {
        Some(seq_len) => check_seq_len(seq_len, context)?,
        None => options.seq_len = options.seq_len.min(context),
    }
    let device = super::open_device(&args.device, &DeviceOptions::default())?;
    let outcome = compress(&options, &source, &device)?;
    let report = report(&options, &source, outcome, started.elapsed().as_secs_f64());
    if !args.quiet {
        print_table(&report);
        let device = &args.device;
        eprintln!(
            "next: cargo run --release -p edge-runtime -- tune --model {} --device {device} \
             --data TEXT",
            report.out
        );
    }
    if args.json {
        print_json(&report)?;
    }
    Ok(())
}

fn report(options: &Options, source: &Source, outcome: Outcome, seconds: f64) -> CompressReport {
    let shape = source.config.shape();
    let averages = outcome.chosen.policy.averages(&shape);
    let blocks = (0..).zip(&outcome.blocks);
    let error = outcome.chosen.error;
    CompressReport {
        layers: blocks.map(|(block, parts)| LayerReport::block(&shape, block, parts)).collect(),
        average_bits: averages.bits,
        average_sparsity: averages.sparsity,
        bytes: outcome.bytes,
        perplexity_before: outcome.held_out.map(|held_out| held_out.reference_perplexity()),
        perplexity_after: outcome.held_out.map(|held_out| held_out.perplexity()),
        divergence: outcome.held_out.map(|held_out| held_out.kl),
        bytes_before: outcome.bytes_before,
        policy: outcome.chosen.policy.name.clone(),
        method: options.method.name().to_owned(),
        evaluations: outcome.chosen.evaluations,
        error_unrefined: error.map(|(first, _)| first),
        error_refined: error.map(|(_, refined)| refined),
        peak_device_bytes: outcome.peak_device_bytes,
        peak_host_bytes: outcome.peak_host_bytes,
        seconds,
        out: options.out.display().to_string(),
    }
}

/// Widest bar of an error.
const BAR: f64 = 20.0;

fn print_table(report: &CompressReport) {
    let most = report.layers.iter().map(|layer| layer.error).fold(f64::MIN_POSITIVE, f64::max);
    eprintln!("{:<18} {:>5}  {:<15} {:>10} {:>8}", "layer", "bits", "sparsity", "bytes", "error");
    for layer in &report.layers {
        let bar = "#".repeat((BAR * layer.error / most).round() as usize);
        let error = format!("{:.2} %", 100.0 * layer.error);
        let (name, bits, pattern, bytes) = (&layer.name, layer.bits, &layer.pattern, layer.bytes);
        eprintln!("{name:<18} {bits:>5.2}  {pattern:<15} {bytes:>10} {error:>8} {bar}");
        for part in layer.projections.iter().filter(|part| {
            part.bits != layer.projections[0].bits || part.pattern != layer.projections[0].pattern
        }) {
            let name = part.name.trim_start_matches(&layer.name);
            let error = format!("{:.2} %", 100.0 * part.error);
            let (bits, pattern, bytes) = (part.bits, &part.pattern, part.bytes);
            eprintln!("{name:<18} {bits:>5.2}  {pattern:<15} {bytes:>10} {error:>8}");
        }
    }
    if let (Some(first), Some(refined)) = (report.error_unrefined, report.error_refined) {
        eprintln!(
            "policy refined by {} evaluations: error {first:.5} -> {refined:.5} nats",
            report.evaluations
        );
    }
    if let (Some(before), Some(after)) = (report.perplexity_before, report.perplexity_after) {
        eprintln!("perplexity on held-out text {before:.3} -> {after:.3}");
    }
    eprintln!(
        "{} -> {} ({:.2} x smaller); {:.3} bits a value, {:.1} % left out; {:.0} s, peak {} on the \
         device and {} counted on the host",
        mebibytes(report.bytes_before),
        mebibytes(report.bytes),
        report.bytes_before as f64 / report.bytes.max(1) as f64,
        report.average_bits,
        100.0 * report.average_sparsity,
        report.seconds,
        mebibytes(report.peak_device_bytes),
        mebibytes(report.peak_host_bytes)
    );
    eprintln!("written to {}", report.out);
}
