//! A compression from beginning to end: calibrate, choose, compress block by block, write.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::{Context, Result, bail, ensure};
use edge_gpu::Device;
use edge_kernels::Format;
use edge_kernels::pack::PackedHost;
use edge_scheduler::{Layer, LinearInput, ModelShape, Policy, Projection};

use super::calibrate::hash::model_hash;
use super::calibrate::{CalibrationSet, Divergence, Runner, RunnerOptions, Spill, States};
use super::choose::{Chooser, Chosen, known, paper_formats};
use super::header::About;
use super::options::{Aim, Named, Options, TableBits, Wanted};
use super::solve::Weight;
use super::time::StepTimes;
use super::write::Writer;
use crate::cli::report::Progress;
use crate::data::{DataSpec, Dataset, Stream, load_eval};
use crate::interrupt;
use crate::run_dir::RunDir;
use crate::session::{Source, mebibytes};

/// Share of the calibration text that is held out where no other text is given.
const HELD_OUT: f64 = 0.1;

/// Most windows of held-out text that perplexity is measured on, and no more than there are
/// sequences of calibration: whoever takes few has little time.
const HELD_OUT_WINDOWS: usize = 64;

/// What a process takes beside buffers that are counted: code, driver, tokenizer, and what the
/// allocator keeps.
const PROCESS_BYTES: u64 = 128 << 20;

/// Hidden states of more bytes than this go to a file where there is a budget.
const SPILL_ABOVE_BYTES: u64 = 8 << 20;

/// A projection that was compressed.
#[derive(Clone, Debug)]
pub struct Compressed {
    /// Which.
    pub projection: Projection,
    /// How it is stored.
    pub format: Format,
    /// Squared change of its output on the calibration, relative to the output.
    pub error: f64,
}

/// What a compression did.
#[derive(Clone, Debug)]
pub struct Outcome {
    /// The policy and how it was found.
    pub chosen: Chosen,
    /// The projections of each block.
    pub blocks: Vec<Vec<Compressed>>,
    /// Bytes of the written weights' file.
    pub bytes: u64,
    /// Bytes of the tensors that it was made of.
    pub bytes_before: u64,
    /// The compressed model against the original one on held-out text; `None`: there was none.
    pub held_out: Option<Divergence>,
    /// Most device memory in use at once.
    pub peak_device_bytes: u64,
    /// Most host memory that was counted at once: hidden states, matrices, what solving takes.
    pub peak_host_bytes: u64,
}

/// The texts of a compression.
struct Texts {
    set: CalibrationSet,
    probes: CalibrationSet,
    held_out: Option<CalibrationSet>,
}

impl Texts {
    fn load(options: &Options, source: &Source) -> Result<Self> {
        let spec = DataSpec {
            data: options.calibration.clone(),
            val_fraction: if options.valid.is_none() { HELD_OUT } else { 0.0 },
            columns: options.columns.clone(),
            quiet: options.quiet,
            ..DataSpec::default()
        };
        let mut data = Dataset::load(&spec, &source.tokenizer)?;
        // Weights see prompts and answers alike.
        data.train = data.train.into_text();
        let valid = match &options.valid {
            Some(path) => {
                let spec = DataSpec { data: vec![path.clone()], ..spec };
                Some(load_eval(&spec, &source.tokenizer)?.into_text())
            }
            None => data.valid.map(Stream::into_text),
        };
        let seq_len = options.seq_len;
        let of = |count| CalibrationSet::of_stream(&data.train, seq_len, count, None);
        let windows = data.train.windows(seq_len);
        ensure!(
            windows >= 1,
            "{} has {} tokens and calibration needs at least one sequence of {seq_len}: add text, \
             or lower --seq-len",
            data.train.source,
            data.train.ids.len()
        );
        let count = options.sequences.min(windows);
        let probes = options.probes.min(count);
        if count < options.sequences && !options.quiet {
            Progress::new("", 0, false).say(&format!(
                "{} has {windows} sequences of {seq_len} tokens: calibrating on all of them",
                data.train.source
            ));
        }
        let held_out = match valid {
            Some(stream) if options.valid_named && stream.windows(seq_len) == 0 => bail!(
                "{} has {} tokens and --valid needs at least one sequence of {seq_len}: add text, \
                 or lower --seq-len",
                stream.source,
                stream.ids.len()
            ),
            Some(stream) if stream.windows(seq_len) >= 1 => {
                let most = HELD_OUT_WINDOWS.min(options.sequences);
                let count = stream.windows(seq_len).min(most);
                Some(CalibrationSet::of_stream(&stream, seq_len, count, None)?)
            }
            _ => None,
        };
        Ok(Self { set: of(count)?, probes: of(probes)?, held_out })
    }
}

/// Compresses a model into the folder `options.out`.
///
/// # Errors
/// A file is not usable, the target cannot be met, nothing fits into the budget, the device or a
/// disk fails, or Ctrl-C. Nothing is left behind then.
pub fn run(options: &Options, source: &Source, device: &Device) -> Result<Outcome> {
    options.check()?;
    RunDir::check(Some(&options.out))?;
    ensure!(
        source.checkpoint.compressed().is_none(),
        "{} is compressed already: give --model the original checkpoint",
        source.dir.display()
    );
    let shape = source.config.shape();
    let fixed = known(options, &shape)?;
    let texts = Texts::load(options, source)?;
    let formats = formats(options, fixed.as_ref());
    // Before the model is there: what is timed has buffers of its own.
    let times = match options.aim {
        Aim::StepMs { tokens, .. } if fixed.is_none() => Some(match &options.elsewhere {
            Some(elsewhere) => StepTimes::predict(elsewhere, &shape, &formats, tokens),
            None => StepTimes::measure(device, &shape, &formats, tokens, options.quiet)?,
        }),
        _ => None,
    };
    let together = measured_formats(options, fixed.as_ref());
    let tables = tables(options, source)?;
    let mut runner_options = runner_options(options, &shape, &texts, (formats, together))?;
    runner_options.tables = Some(tables);
    let tensors = 7 * u64::from(shape.num_blocks) + 1;
    let mut loading = Progress::new("load", tensors, options.quiet);
    let mut runner =
        Runner::open(device, &source.checkpoint, &source.config, &runner_options, &mut |_| {
            loading.step(String::new);
        })?;
    loading.finish();
    announce(options, source, &runner, &texts);
    let source_hash = model_hash(&source.dir, &source.checkpoint)?;
    let scratch = scratch(&options.out);
    let chooser = Chooser {
        times: times.as_ref(),
        runner: &mut runner,
        probes: &texts.probes,
        options,
        model_hash: &source_hash,
        tables,
        scratch: &scratch,
    };
    let chosen = match fixed {
        Some(policy) => Chosen::unmeasured(policy),
        None => chooser.choose()?,
    };
    let about = About {
        policy: chosen.policy.clone(),
        embedding: tables[0],
        head: tables[1],
        calibration_hash: texts.set.hash(),
        source_hash,
        program_version: env!("CARGO_PKG_VERSION").to_owned(),
    };
    let mut writer = Writer::create(&options.out, source, about)?;
    let mut assembly = Assembly::new(&mut runner, options, &texts)?;
    let (blocks, held_out) = assembly.run(&chosen.policy, &mut writer)?;
    interrupt::check()?;
    let bytes = writer.finish()?;
    Ok(Outcome {
        chosen,
        blocks,
        bytes,
        bytes_before: bytes_of(source),
        held_out,
        peak_device_bytes: device.memory().peak_total,
        peak_host_bytes: runner.host().peak_bytes(),
    })
}

/// Bytes of all tensors of a checkpoint.
fn bytes_of(source: &Source) -> u64 {
    let tensors = source.checkpoint.shards.iter().flat_map(|shard| shard.tensors.values());
    tensors.map(|info| (info.data_offsets.1 - info.data_offsets.0) as u64).sum()
}

/// The folder that exists above the one to be written: on the disk that has to have room anyway.
fn scratch(out: &Path) -> PathBuf {
    let absolute = std::path::absolute(out).unwrap_or_else(|_| out.to_owned());
    let found = absolute.ancestors().find(|dir| dir.is_dir());
    found.map_or_else(std::env::temp_dir, Path::to_path_buf)
}

/// The formats of embedding and head: an untied head's is the embedding's.
fn tables(options: &Options, source: &Source) -> Result<[Format; 2]> {
    let of_16_bits = source.formats(Some(crate::cli::args::Bits::Four), None)?;
    Ok(match options.table_bits {
        TableBits::Eight => [Format::Q8; 2],
        TableBits::Sixteen => [of_16_bits.embedding, of_16_bits.head],
    })
}

/// All formats that projections may be run in.
fn formats(options: &Options, fixed: Option<&Policy>) -> Vec<Format> {
    let mut formats: Vec<Format> = match (fixed, &options.policy) {
        (Some(policy), _) => policy.formats().iter().flat_map(|block| block.0).collect(),
        (None, Wanted::Named(Named::Paper)) => {
            // Whatever its rule comes to.
            let of = |bits| [false, true].map(|sparse| options.template.format(bits, sparse));
            let all = edge_scheduler::policy::WIDTHS.into_iter().flat_map(of);
            all.chain(paper_formats(options)).collect()
        }
        _ => options.candidates(),
    };
    formats.sort_by_key(|format| format.name());
    formats.dedup();
    formats
}

/// The formats whose errors a policy is chosen by: a block is held in all of them at once.
fn measured_formats(options: &Options, fixed: Option<&Policy>) -> Vec<Format> {
    match (fixed, &options.policy) {
        (Some(_), _) => Vec::new(),
        (None, Wanted::Named(Named::Paper)) => paper_formats(options),
        _ => options.candidates(),
    }
}

fn runner_options(
    options: &Options,
    shape: &ModelShape,
    texts: &Texts,
    (formats, together): (Vec<Format>, Vec<Format>),
) -> Result<RunnerOptions> {
    let mut runner = RunnerOptions::new(&formats, &texts.set);
    let Some(budget) = options.memory_budget else { return Ok(runner) };
    let block = options.method.block_bytes(shape, &formats, &together);
    let host = PROCESS_BYTES + block + 2 * SPILL_ABOVE_BYTES;
    let left = budget.checked_sub(host).with_context(|| {
        format!(
            "compressing a block takes {} of host memory and --memory-budget allows {}: raise it, \
             or use --fast",
            mebibytes(host),
            mebibytes(budget)
        )
    })?;
    runner.budget_bytes = Some(left);
    if options.method.needs_moments() {
        let square = |input: LinearInput| {
            let size = input.projections().next().map_or(0, |part| shape.projection(part).1);
            4 * u64::from(size) * u64::from(size)
        };
        let squares = LinearInput::ALL.map(square);
        // The largest is counted with the solver.
        runner.moments_bytes =
            squares.iter().sum::<u64>() - squares.iter().max().copied().unwrap_or(0);
    }
    runner.spill = Some(Spill { dir: scratch(&options.out), above_bytes: SPILL_ABOVE_BYTES });
    Ok(runner)
}

fn announce(options: &Options, source: &Source, runner: &Runner<'_>, texts: &Texts) {
    let place = match runner.is_resident() {
        true => "all blocks on the device",
        false => "one block at a time on the device",
    };
    Progress::new("", 0, options.quiet).say(&format!(
        "{}: {} blocks, {:.2} M parameters; calibrating on {} sequences of {} tokens, {place} ({} \
         planned)",
        source.dir.display(),
        runner.num_blocks(),
        runner.shape().parameters() as f64 / 1e6,
        texts.set.sequences(),
        texts.set.seq_len(),
        mebibytes(runner.device_plan().bytes())
    ));
}

/// The pass that compresses: each block sees the outputs of compressed ones.
struct Assembly<'a, 'r> {
    runner: &'a mut Runner<'r>,
    options: &'a Options,
    /// Inputs of the next block.
    states: States,
    /// Held-out text: inputs of the next block, and the output of the uncompressed model.
    held_out: Option<(States, States)>,
    texts: &'a Texts,
}

impl<'a, 'r> Assembly<'a, 'r> {
    fn new(runner: &'a mut Runner<'r>, options: &'a Options, texts: &'a Texts) -> Result<Self> {
        runner.restore_all();
        let reference = match &texts.held_out {
            Some(set) => {
                let mut last = runner.embed(set)?;
                let blocks = runner.num_blocks();
                let mut progress = Progress::new("before", u64::from(blocks), options.quiet);
                for block in 0..blocks {
                    interrupt::check()?;
                    runner.advance(block..block + 1, &mut last)?;
                    progress.step(String::new);
                }
                progress.finish();
                Some((set, last))
            }
            None => None,
        };
        runner.set_tables();
        let states = runner.embed(&texts.set)?;
        let held_out = match reference {
            Some((set, last)) => Some((runner.embed(set)?, last)),
            None => None,
        };
        Ok(Self { runner, options, states, held_out, texts })
    }

    fn run(
        &mut self,
        policy: &Policy,
        writer: &mut Writer<'_>,
    ) -> Result<(Vec<Vec<Compressed>>, Option<Divergence>)> {
        let blocks = self.runner.num_blocks();
        let mut progress = Progress::new("compress", u64::from(blocks), self.options.quiet);
        let mut done = Vec::with_capacity(blocks as usize);
        for block in 0..blocks {
            let (parts, matrices) = self.block(block, policy)?;
            writer.block(&matrices)?;
            self.runner.advance(block..block + 1, &mut self.states)?;
            if let Some((states, _)) = &mut self.held_out {
                self.runner.advance(block..block + 1, states)?;
            }
            drop(matrices);
            self.runner.restore_all();
            progress.step(|| format!("error {:.2} %", 100.0 * mean_error(&parts)));
            done.push(parts);
        }
        progress.finish();
        let divergence = match (&self.held_out, &self.texts.held_out) {
            (Some((states, last)), Some(set)) => {
                Some(self.runner.divergence(blocks, states, last, set)?)
            }
            _ => None,
        };
        Ok((done, divergence))
    }

    /// Compresses the projections of a block in the order in which they run, so that each sees
    /// what those before it put out.
    fn block(
        &mut self,
        block: u32,
        policy: &Policy,
    ) -> Result<(Vec<Compressed>, Vec<Arc<PackedHost>>)> {
        let method = self.options.method;
        let mut solved = vec![None; Projection::ALL.len()];
        for input in LinearInput::ALL {
            interrupt::check()?;
            let hessian = match method.needs_moments() {
                true => self.runner.hessians(block, &self.states, &[input])?.pop(),
                false => None,
            };
            for projection in input.projections() {
                let format = policy.blocks[block as usize].get(projection);
                let (n, k) = self.runner.shape().projection(projection);
                let (rows, cols) = (n as usize, k as usize);
                let data = self.runner.own_weight(block, projection)?;
                let weight = Weight { rows, cols, data: &data };
                let needed = method.bytes(format, rows, cols);
                let charge = self.runner.host().charge(needed);
                let name = || Layer { block, projection: Some(projection) }.to_string();
                let mut one =
                    method.solve(weight, &[format], hessian.as_ref()).with_context(name)?;
                drop(charge);
                let one = one.pop().context("a matrix for the format")?;
                let matrix = Arc::new(one.packed);
                self.runner.set_weight(block, projection, Arc::clone(&matrix))?;
                let part = Compressed { projection, format, error: one.error };
                solved[projection.index()] = Some((part, matrix));
            }
        }
        let all = solved.into_iter().collect::<Option<Vec<_>>>();
        Ok(all.context("a matrix for each projection")?.into_iter().unzip())
    }
}

/// The mean of the errors of some projections.
pub fn mean_error(parts: &[Compressed]) -> f64 {
    parts.iter().map(|part| part.error).sum::<f64>() / parts.len().max(1) as f64
}
