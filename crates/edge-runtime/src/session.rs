//! What every command opens first: a model folder, what to run with it, and where.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail, ensure};
use edge_gpu::{Device, Options};
use edge_kernels::{Format, Packing};
use edge_scheduler::search::fit;
use edge_scheduler::{BlockFormats, Job, Plan, Trained, Window};

use crate::adapter::{self, AdapterConfig, AdapterTensors};
use crate::autotune;
use crate::checkpoint::Checkpoint;
use crate::cli::args::{Bits, ByteSize, Method};
use crate::cli::options::TuneOptions;
use crate::cli::{Misfit, Usage};
use crate::compress::read::is_compressed;
use crate::config::ModelConfig;
use crate::exits::{Exits, Vote};
use crate::family::names::EMBEDDING;
use crate::gguf::{self, folder};
use crate::model::load::dense_format;
use crate::model::{LoraInit, Model, device_facts};
use crate::plan::choose::{can_stream, remedy};
use crate::tokenizer::Tokenizer;
use crate::tune::save::COMPANIONS;
use crate::whole_file::{self, LARGE, SETTINGS};

/// A model, opened.
pub struct Source {
    /// The folder, or the GGUF file.
    pub dir: PathBuf,
    /// `config.json`.
    pub config: ModelConfig,
    /// The weights, read when they are asked for.
    pub checkpoint: Checkpoint,
    /// The tokenizer.
    pub tokenizer: Tokenizer,
}

/// How a model's weights are stored on the device.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Formats {
    /// Projections, by block.
    pub blocks: Vec<BlockFormats>,
    /// Embedding table, and a tied head.
    pub embedding: Format,
    /// Untied head.
    pub head: Format,
}

/// The bundled demo: model and texts.
///
/// # Errors
/// It lies neither beside the program, as in what is released, nor in the repository.
pub fn demo_dir() -> Result<PathBuf> {
    let program = std::env::current_exe().ok();
    let beside = program.and_then(|program| Some(program.parent()?.join("demo")));
    let dir = beside
        .filter(|dir| dir.join("model").is_dir())
        .unwrap_or_else(|| Path::new(env!("CARGO_MANIFEST_DIR")).join("demo"));
    ensure!(
        dir.join("model").is_dir(),
        "the bundled demo is not at {}: run from a clone of the repository, or give --model",
        dir.display()
    );
    // A path below the working directory is shorter to type in the next command.
    let here = std::env::current_dir().unwrap_or_default();
    Ok(dir.strip_prefix(&here).map(Path::to_path_buf).unwrap_or(dir))
}

impl Source {
    /// Opens a model folder or a GGUF file.
    ///
    /// # Errors
    /// A file is absent or not usable; the sentence names it.
    pub fn open(dir: &Path) -> Result<Self> {
        if let Some(file) = gguf::locate(dir)? {
            let (config, checkpoint, tokenizer) = folder::open(&file)?;
            return Ok(Self { dir: file, config, checkpoint, tokenizer });
        }
        ensure!(
            dir.is_dir(),
            "{} is neither a folder nor a GGUF file: give --model a Hugging Face model folder or \
             a .gguf file",
            dir.display()
        );
        let config = ModelConfig::load(dir)?;
        Ok(Self {
            dir: dir.to_path_buf(),
            tokenizer: Tokenizer::for_model(dir, &config)?,
            checkpoint: match is_compressed(dir) {
                true => Checkpoint::open_compressed(dir, &config)?,
                false => Checkpoint::open(dir)?,
            },
            config,
        })
    }

    /// Configuration, tokenizer and chat template as the files of a model folder, by their names
    /// there: those that there are.
    ///
    /// # Errors
    /// A file cannot be read.
    pub fn companions(&self) -> Result<Vec<(&'static str, Vec<u8>)>> {
        if self.dir.is_file() {
            return folder::companions(&self.dir);
        }
        let files = COMPANIONS.into_iter().map(|name| (name, self.dir.join(name)));
        let read = |(name, path): (&'static str, PathBuf)| {
            let bytes = whole_file::bytes(&path, LARGE);
            Ok((name, bytes.with_context(|| format!("cannot read {}", path.display()))?))
        };
        files.filter(|(_, path)| path.is_file()).map(read).collect()
    }

    /// Formats of blocks, embedding table and head: those of a compressed model, or with `bits` of
    /// a value and columns in a `group`. With 16 bits, or none given, everything keeps the
    /// checkpoint's own numbers; packed blocks go with 16-bit tables.
    ///
    /// # Errors
    /// The checkpoint has no embedding table, or bits or group are given for a compressed model.
    pub fn formats(&self, bits: Option<Bits>, group: Option<usize>) -> Result<Formats> {
        if let Some(compressed) = self.checkpoint.compressed() {
            refuse_formats(&self.dir, bits, group)?;
            let about = &compressed.about;
            let blocks = about.policy.formats();
            return Ok(Formats { blocks, embedding: about.embedding, head: about.head });
        }
        let group = group.unwrap_or(32) as u32;
        let own = dense_format(self.checkpoint.tensor(EMBEDDING)?.dtype);
        let table = if own == Format::F32 { Format::F16 } else { own };
        let (block, table) = match u32::from(bits.unwrap_or_default()) {
            16 => (own, own),
            bits => (Packing::new(bits).group_size(group).format(), table),
        };
        let blocks = vec![BlockFormats::uniform(block); self.config.num_hidden_layers];
        Ok(Formats { blocks, embedding: table, head: table })
    }

    /// How the base is stored, for people: `8 bit`, or what a compressed model's policy comes to.
    pub fn precision(&self, bits: Option<Bits>) -> String {
        match self.checkpoint.compressed() {
            Some(compressed) => {
                let policy = &compressed.about.policy;
                let averages = policy.averages(&self.config.shape());
                let sparse = 100.0 * averages.sparsity;
                format!("{:.2} bit, {sparse:.0} % sparse ({})", averages.bits, policy.name)
            }
            None => format!("{} bit", u32::from(bits.unwrap_or_default())),
        }
    }

    /// A job without adapters that runs `batch` sequences of `seq_len` tokens.
    pub fn job(&self, formats: Formats, batch: u32, seq_len: u32) -> Job {
        let Formats { blocks, embedding, head } = formats;
        Job::new(blocks, [embedding, head], batch, seq_len)
    }
}

/// Refuses flags that say how the base is to be stored, for the compressed model in `dir`.
///
/// # Errors
/// [`Usage`], if one is given.
pub fn refuse_formats(dir: &Path, bits: Option<Bits>, group: Option<usize>) -> Result<()> {
    let flag = match (bits, group) {
        (Some(_), _) => "--bits",
        (_, Some(_)) => "--group-size",
        _ => return Ok(()),
    };
    Err(anyhow::Error::new(Usage(format!(
        "{flag} does not go with {}, a compressed model in formats of its own: leave it out",
        dir.display()
    ))))
}

/// Opens a device with the kernels that were chosen for it. The sentence, if there is one, says why
/// what was chosen is not used.
///
/// # Errors
/// There is no such device.
pub fn open_device(
    selector: &str,
    options: &Options,
) -> Result<(Device, Option<String>), edge_gpu::Error> {
    let device = Device::open(selector, options)?;
    let notice = autotune::apply(&device);
    Ok((device, notice))
}

/// A model and what tuning left for it: those of a run directory, a model with or without a PEFT
/// adapter folder, or by default the bundled demo model.
///
/// # Errors
/// A file is absent or does not belong to the model.
pub fn open_tuned(
    model: Option<&Path>,
    adapter: Option<&Path>,
    run: Option<&Path>,
) -> Result<(Source, Tuned)> {
    let options = run.map(run_options).transpose()?;
    if let (Some(run), Some(options)) = (run, &options) {
        let (file, others) = match options.method {
            Method::Full => ("model.safetensors", "its best/, if it has one"),
            _ => (adapter::CONFIG_FILE, "its best/ or a folder of its checkpoints/"),
        };
        ensure!(
            run.join(file).exists(),
            "{} has no {file}, its run is not at its end: go on with tune --resume, or give --run \
             {others}",
            run.display()
        );
    }
    let full = run.filter(|run| run.join("model.safetensors").exists());
    let dir = match (model, full, &options) {
        (Some(dir), ..) => dir.to_path_buf(),
        (None, Some(run), _) => run.to_path_buf(),
        (None, None, Some(options)) if options.model.is_some() => {
            options.model.clone().unwrap_or_default()
        }
        _ => demo_dir()?.join("model"),
    };
    let source = Source::open(&dir)?;
    let tuned = match (adapter, run) {
        (Some(dir), _) => Tuned::adapter(dir, &source.config)?,
        (None, Some(dir)) => Tuned::run(dir, &source.config)?,
        (None, None) => Tuned::default(),
    };
    Ok((source, tuned))
}

/// What tuning left behind, to be used with a model.
#[derive(Default)]
pub struct Tuned {
    /// A LoRA adapter.
    pub adapter: Option<(AdapterConfig, AdapterTensors)>,
    /// Exits with norms of their own.
    pub exits: Option<Exits>,
    /// Options of the run that made them.
    pub options: Option<TuneOptions>,
}

impl Tuned {
    /// From a PEFT adapter folder.
    ///
    /// # Errors
    /// A file is absent or does not belong to the model.
    pub fn adapter(dir: &Path, config: &ModelConfig) -> Result<Self> {
        Ok(Self { adapter: Some(adapter::load(dir, config)?), ..Self::default() })
    }

    /// From a run directory: adapter, exits, options.
    ///
    /// # Errors
    /// As [`Tuned::adapter`].
    pub fn run(dir: &Path, config: &ModelConfig) -> Result<Self> {
        let options = run_options(dir)?;
        let adapter = match dir.join(adapter::CONFIG_FILE).exists() {
            true => Some(adapter::load(dir, config)?),
            false => None,
        };
        let exits = Exits::load(dir, config)?;
        Ok(Self { adapter, exits, options: Some(options) })
    }

    /// The formats of the base that a run was made with; the checkpoint's own without a run, or
    /// where the checkpoint is compressed.
    ///
    /// # Errors
    /// As [`Source::formats`].
    pub fn formats(&self, source: &Source) -> Result<Formats> {
        let own = source.checkpoint.compressed().is_some();
        let options = self.options.as_ref().filter(|_| !own);
        source.formats(options.and_then(|o| o.bits), options.and_then(|o| o.group_size))
    }

    /// The run's own rule to combine exits; the last exit's where there are none.
    pub fn vote(&self) -> Vote {
        self.exits.as_ref().map_or(Vote::Last, |exits| exits.vote)
    }

    /// Adds adapter and exits to a job.
    pub fn apply(&self, job: &mut Job) {
        if let Some((config, _)) = &self.adapter {
            let targets = config.target_modules.clone();
            job.trained = Trained::Lora { rank: config.r as u32, targets };
        }
        if let Some(exits) = &self.exits {
            let mut first = 0;
            job.windows.clear();
            for &after in &exits.after_block {
                job.windows.push(Window { first, end: after as u32 });
                first = after as u32;
            }
            job.exit_norms = true;
            job.exit_rank = exits.terms.as_ref().map_or(0, |terms| terms.rank as u32);
            job.vote = job.windows.len() > 1;
            job.isolated = exits.isolated;
        }
    }

    /// Loads the model for a job with adapter and exits in place.
    ///
    /// # Errors
    /// As [`Model::load`].
    pub fn load(
        &self,
        device: &Device,
        source: &Source,
        job: &Job,
        progress: &mut dyn FnMut(usize),
    ) -> Result<Model> {
        let init = self.adapter.as_ref().map_or(LoraInit::NONE, |(c, _)| LoraInit::of(c));
        let (checkpoint, config) = (&source.checkpoint, &source.config);
        let mut model = Model::load(device, checkpoint, config, job, init, progress)?;
        if let Some((_, tensors)) = &self.adapter {
            model.set_adapter(tensors)?;
        }
        if let Some(exits) = &self.exits {
            model.set_exits(exits)?;
            if let Some(learned) = exits.learned.clone().filter(|_| job.vote) {
                model.set_learned(learned)?;
            }
        }
        Ok(model)
    }
}

/// The options that a run was made with.
///
/// # Errors
/// The folder is no run directory.
pub fn run_options(dir: &Path) -> Result<TuneOptions> {
    let path = dir.join("config.resolved.yaml");
    let text = whole_file::text(&path, SETTINGS).with_context(|| {
        format!("cannot read {}: give --run a directory that tune wrote", path.display())
    })?;
    serde_norway::from_str(&text)
        .map_err(|error| anyhow::anyhow!("{} is not usable: {error}", path.display()))
}

/// The job within a memory budget: with blocks streamed where they do not all fit.
///
/// # Errors
/// Not even that fits; the sentence says what the least would be and what would help.
pub fn within_budget(
    source: &Source,
    job: Job,
    device: &Device,
    budget: Option<ByteSize>,
) -> Result<(Job, Plan)> {
    let (shape, facts) = (source.config.shape(), device_facts(device));
    let plan = |job: &Job| Plan::new(&shape, job, facts);
    let whole = plan(&job);
    let Some(ByteSize(budget)) = budget.filter(|budget| budget.0 < whole.bytes()) else {
        return Ok((job, whole));
    };
    let staged = device.stages_uploads();
    let fitting = match can_stream(source, &job) {
        true => fit(&shape, &job, facts, staged, budget),
        false => None,
    };
    let Some(fitting) = fitting else {
        let remedy = match can_stream(source, &job) {
            true => "even one block at a time is too much: raise it, or take shorter sequences",
            false => remedy(source, &job),
        };
        bail!(Misfit(format!(
            "all blocks together need {} of device memory and --memory-budget allows {}: {}",
            mebibytes(whole.bytes()),
            mebibytes(budget),
            remedy
        )));
    };
    let plan = plan(&fitting);
    Ok((fitting, plan))
}

/// A byte count for people.
pub fn mebibytes(bytes: u64) -> String {
    let mib = bytes as f64 / f64::from(1 << 20);
    if mib >= 1024.0 { format!("{:.2} GiB", mib / 1024.0) } else { format!("{mib:.1} MiB") }
}

/// A time for people: `40 s`, `12 min`, `1 h 5 min`.
pub fn duration(seconds: f64) -> String {
    let minutes = (seconds / 60.0).round() as u64;
    match minutes {
        0 | 1 => format!("{seconds:.0} s"),
        2..60 => format!("{minutes} min"),
        _ => format!("{} h {} min", minutes / 60, minutes % 60),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_short() {
        let shown = [0.4, 89.0, 90.0, 725.0, 3900.0].map(duration);
        assert_eq!(shown, ["0 s", "89 s", "2 min", "12 min", "1 h 5 min"]);
    }
}
