//! Which policy: by name, from a file, or by measured errors.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::{Context, Result, ensure};
use edge_kernels::Format;
use edge_kernels::pack::PackedHost;
use edge_scheduler::allocate::AllocateError;
use edge_scheduler::luc::{Budget, Choice, Choices, luc, policy, problem};
use edge_scheduler::policy::Target;
use edge_scheduler::refine::refine;
use edge_scheduler::{Layer, Policy, Projection};

use super::calibrate::sensitivity::{self, pack_block};
use super::calibrate::{
    CalibrationSet, Divergence, Granularity, Measure, Mode, Runner, Sensitivity, States,
};
use super::layout::Layout;
use super::method::Method;
use super::options::{Aim, Measured, Named, Options, Wanted};
use super::packs::PackStore;
use super::policy_file;
use super::solve::Weight;
use super::time::StepTimes;
use crate::cli::report::Progress;
use crate::interrupt;

/// Evaluations for refining a model that is read block by block.
const STREAMED_EVALUATIONS: usize = 6;

/// Evaluations for each layer of a model that is on the device, and at most.
const EVALUATIONS_A_LAYER: usize = 5;
const MOST_EVALUATIONS: usize = 300;

/// Bytes of a compressed file for each section beside its tensors: padding and header.
const SECTION_BYTES: u64 = 4096;

/// A policy, and what is known of it.
#[derive(Clone, Debug)]
pub struct Chosen {
    /// The formats.
    pub policy: Policy,
    /// Error of the whole model on the probes with all layers compressed, each from the
    /// uncompressed model's inputs, before and after refining, nats; `None`: not measured.
    pub error: Option<(f64, f64)>,
    /// Evaluations of the whole model that refining took.
    pub evaluations: usize,
}

impl Chosen {
    /// A policy of which nothing was measured.
    pub fn unmeasured(policy: Policy) -> Self {
        Self { policy, error: None, evaluations: 0 }
    }
}

/// What choosing goes by.
pub struct Chooser<'a, 'r> {
    /// Times of a step's products, where the target is one.
    pub times: Option<&'a StepTimes>,
    /// The model.
    pub runner: &'a mut Runner<'r>,
    /// Text that sensitivity is measured on.
    pub probes: &'a CalibrationSet,
    /// What was asked for.
    pub options: &'a Options,
    /// Of the model folder.
    pub model_hash: &'a str,
    /// Formats of embedding and head.
    pub tables: [Format; 2],
    /// A folder for temporary files.
    pub scratch: &'a Path,
}

/// The policy that does not need a model, if it is one of those.
///
/// # Errors
/// The file is no policy of this model, or the target cannot be met.
pub fn known(options: &Options, shape: &edge_scheduler::ModelShape) -> Result<Option<Policy>> {
    let target = target(options);
    let blocks = shape.num_blocks as usize;
    Ok(Some(match &options.policy {
        Wanted::File(path) => policy_file::read(path, blocks)?,
        Wanted::Named(Named::Uniform) => Policy::uniform(blocks, &target)?,
        Wanted::Named(Named::Random) => Policy::random(shape, &target, options.seed)?,
        Wanted::Named(_) => return Ok(None),
    }))
}

fn target(options: &Options) -> Target {
    let bits = match options.aim {
        Aim::Bits(bits) => bits,
        Aim::Bytes(_) | Aim::StepMs { .. } => 4.0,
    };
    Target { bits, sparsity: options.sparsity.unwrap_or(0.0), template: options.template }
}

/// Formats whose errors the rule of the paper goes by: quantised alone, pruned alone.
pub fn paper_formats(options: &Options) -> Vec<Format> {
    let target = target(options);
    let (low, _, _) = target.widths();
    vec![options.template.format(low, false), options.template.format(16, true)]
}

impl Chooser<'_, '_> {
    /// The policy that was asked for, one that [`known`] does not have.
    ///
    /// # Errors
    /// The target cannot be met; the device or a file fails; or Ctrl-C.
    pub fn choose(mut self) -> Result<Chosen> {
        match self.options.policy {
            Wanted::Named(Named::Paper) => self.paper().map(Chosen::unmeasured),
            _ => self.luc(),
        }
    }

    fn paper(&mut self) -> Result<Policy> {
        let formats = paper_formats(self.options);
        let measure = self.measure(formats.clone(), Mode::Output, Granularity::Block);
        let mut store = PackStore::new(self.scratch)?;
        let measured = self.sensitivity(&measure, &mut store)?;
        let errors = |format: Format| -> Result<Vec<f64>> {
            let of = |block| measured.get(block, None, format).map(|entry| entry.output_mse);
            let all = (0..self.runner.num_blocks()).map(of).collect::<Option<_>>();
            all.context("an error for each block")
        };
        let (quant, prune) = (errors(formats[0])?, errors(formats[1])?);
        Ok(Policy::paper(&quant, &prune, &target(self.options))?)
    }

    fn luc(&mut self) -> Result<Chosen> {
        let by_size = match self.runner.is_resident() {
            true => Measured::Divergence,
            false => Measured::Output,
        };
        let measured_by = self.options.measured.unwrap_or(by_size);
        let mode = match measured_by {
            Measured::Output => Mode::Output,
            Measured::Loss | Measured::Divergence => Mode::Loss,
        };
        let candidates = self.options.candidates();
        let measure = self.measure(candidates.clone(), mode, self.options.granularity);
        let mut store = PackStore::new(self.scratch)?;
        let (budget, fixed) = self.budget()?;
        let shape = self.runner.shape().clone();
        let options = self.options;
        let choose = |layers: &[Choices]| {
            let found = luc(&shape, layers, budget, options.sparsity);
            found.map_err(|error| unmet(options.aim, &error, fixed))
        };
        // What cannot be met cannot be met with any errors.
        choose(&self.layers(&candidates, |_, _, _| Some(0.0))?)?;
        let measured = self.sensitivity(&measure, &mut store)?;
        let layers = self.layers(&candidates, |block, projection, format| {
            let entry = measured.get(block, projection, format)?;
            Some(match measured_by {
                Measured::Output => entry.relative_mse,
                Measured::Divergence => entry.kl?,
                Measured::Loss => entry.loss? - measured.reference_loss?,
            })
        })?;
        let (first, found) = choose(&layers)?;
        let evaluations = self.evaluations(layers.len());
        if evaluations <= 1 {
            return Ok(Chosen::unmeasured(first));
        }
        self.fill(&measure, &mut store)?;
        let problem = problem(&shape, &layers, budget, self.options.sparsity);
        let mut progress = Progress::new("refine", evaluations as u64, self.options.quiet);
        let mut joint = Joint::new(self.runner, self.probes, &layers, &mut store)?;
        let mut best = f64::INFINITY;
        let refined = refine(&problem, &found.choice, evaluations, &mut |choice| {
            interrupt::check()?;
            let moved = joint.divergence(choice)?;
            let error = match measured_by {
                Measured::Loss => moved.loss - moved.reference_loss,
                Measured::Divergence | Measured::Output => moved.kl,
            };
            best = best.min(error);
            progress.step(|| format!("error {error:.5}, least {best:.5} nats"));
            Ok::<f64, anyhow::Error>(error)
        })?;
        progress.finish();
        self.runner.restore_all();
        Ok(Chosen {
            policy: policy(&layers, &refined.choice),
            error: Some((refined.first_error, refined.error)),
            evaluations: refined.evaluations,
        })
    }

    fn measure(&self, candidates: Vec<Format>, mode: Mode, granularity: Granularity) -> Measure {
        let method = self.options.method;
        let hessians = method.needs_moments();
        let method = method.name().to_owned();
        Measure { candidates, mode, granularity, hessians, method }
    }

    /// Measured, or read from the file that an earlier measurement left. What is packed on the
    /// way goes to the store.
    fn sensitivity(&mut self, measure: &Measure, store: &mut PackStore) -> Result<Sensitivity> {
        let key = measure.key(self.model_hash, self.probes);
        let blocks = self.runner.num_blocks();
        if let Some(path) = &self.options.sensitivity {
            // Hours of measuring are not to be replaced by others, nor to be for nothing.
            ensure!(
                !path.exists() || Sensitivity::load(path, measure, &key, blocks).is_some(),
                "{} holds no sensitivity of this model with these settings: give --sensitivity \
                 another path, or remove it",
                path.display()
            );
            sensitivity::make_folder(path)?;
            let dir = path.parent().filter(|dir| !dir.as_os_str().is_empty());
            tempfile::tempfile_in(dir.unwrap_or(Path::new("."))).with_context(|| {
                format!("cannot write {}: give --sensitivity another path", path.display())
            })?;
        }
        let path = self.options.sensitivity.clone().or_else(|| cache_path(&key));
        let count = measure.count(self.runner.num_blocks()) as u64;
        let mut progress = Progress::new("measure", count, self.options.quiet);
        let mut pack = packer(self.options.method, store);
        let mut step = |_, _| {
            progress.step(String::new);
            interrupt::check()
        };
        let (work, hash) = ((&mut *self.runner, self.probes), self.model_hash);
        let (measured, unsaved) = match path {
            Some(path) => Sensitivity::cached(&path, work, measure, hash, &mut pack, &mut step)?,
            None => (Sensitivity::measure(work, measure, hash, &mut pack, &mut step)?, None),
        };
        progress.finish();
        if let Some(error) = unsaved {
            let text = format!("what was measured is not kept for another time: {error:#}");
            Progress::new("", 0, self.options.quiet).say(&text);
        }
        Ok(measured)
    }

    /// Makes sure that all candidates are in the store, which they are not where sensitivity was
    /// read from a file.
    fn fill(&mut self, measure: &Measure, store: &mut PackStore) -> Result<()> {
        let blocks = self.runner.num_blocks();
        let last = store.get(blocks - 1, Projection::Down, measure.candidates[0])?;
        if last.is_some() {
            return Ok(());
        }
        let mut progress = Progress::new("pack", u64::from(blocks), self.options.quiet);
        let mut pack = packer(self.options.method, store);
        let mut input = self.runner.embed(self.probes)?;
        for block in 0..blocks {
            pack_block(self.runner, (block, &input), measure, &mut pack)?;
            self.runner.advance(block..block + 1, &mut input)?;
            progress.step(String::new);
        }
        progress.finish();
        Ok(())
    }

    /// The layers with an error for each candidate.
    fn layers(
        &self,
        candidates: &[Format],
        error: impl Fn(u32, Option<Projection>, Format) -> Option<f64>,
    ) -> Result<Vec<Choices>> {
        let parts: Vec<Option<Projection>> = match self.options.granularity {
            Granularity::Block => vec![None],
            Granularity::Projection => Projection::ALL.map(Some).into(),
        };
        let mut layers = Vec::new();
        let step_ms = |projection: Option<Projection>, format: Format| match self.times {
            Some(times) => projections(projection).map(|part| times.get(part, format)).sum(),
            None => Some(0.0),
        };
        for block in 0..self.runner.num_blocks() {
            for &projection in &parts {
                let choice = |format: &Format| {
                    let error = error(block, projection, *format)?;
                    let step_ms = step_ms(projection, *format)?;
                    Some(Choice { format: *format, error, step_ms })
                };
                let choices = candidates.iter().map(choice).collect::<Option<_>>();
                layers.push((
                    Layer { block, projection },
                    choices.context("an error for each candidate")?,
                ));
            }
        }
        Ok(layers)
    }

    /// What the projections may take, and the bytes of what else is in the file.
    fn budget(&self) -> Result<(Budget, u64)> {
        let bytes = match self.options.aim {
            Aim::Bits(bits) => return Ok((Budget::AverageBits(bits), 0)),
            Aim::StepMs { ms, .. } => return Ok((Budget::StepMs(ms), 0)),
            Aim::Bytes(bytes) => bytes,
        };
        let shape = self.runner.shape();
        let any = Policy::uniform(shape.num_blocks as usize, &target(self.options))?;
        let layout = Layout::new(self.runner.config(), &any, self.tables);
        let whole: u64 = layout.tensors.iter().map(|tensor| tensor.end - tensor.start).sum();
        let fixed =
            whole - any.averages(shape).bytes + SECTION_BYTES * (layout.sections.len() as u64 + 1);
        let left = bytes.checked_sub(fixed).with_context(|| {
            format!(
                "--target-bytes {bytes} is less than what embedding, norms and header take \
                 ({fixed}): raise it"
            )
        })?;
        Ok((Budget::Bytes(left), fixed))
    }

    fn evaluations(&self, layers: usize) -> usize {
        let by_size = match self.runner.is_resident() {
            true => (EVALUATIONS_A_LAYER * layers).min(MOST_EVALUATIONS),
            false => STREAMED_EVALUATIONS,
        };
        self.options.refine.unwrap_or(by_size)
    }
}

/// Says what a target would have to be; `fixed`: bytes of what is not for the search to choose.
fn unmet(aim: Aim, error: &AllocateError, fixed: u64) -> anyhow::Error {
    match (error, aim) {
        (AllocateError::OverBudget { least, .. }, Aim::Bytes(bytes)) => anyhow::anyhow!(
            "--target-bytes {bytes} cannot be met: the least possible is {}, raise it",
            least.ceil() as u64 + fixed
        ),
        (error, aim) => anyhow::anyhow!("{error}: change {}", aim.flag()),
    }
}

/// Makes a layer in each of some formats, and keeps them in the store as well.
fn packer(
    method: Method,
    store: &mut PackStore,
) -> impl FnMut(&sensitivity::Layer<'_>, &[Format]) -> Result<Vec<Arc<PackedHost>>> {
    move |layer, formats| {
        interrupt::check()?;
        let (rows, cols) = (layer.shape.0 as usize, layer.shape.1 as usize);
        let weight = Weight { rows, cols, data: layer.weight };
        let solved = method.solve(weight, formats, layer.hessian).with_context(|| {
            Layer { block: layer.block, projection: Some(layer.projection) }.to_string()
        })?;
        let mut packed = Vec::with_capacity(formats.len());
        for solved in solved {
            store.put(layer.block, layer.projection, &solved.packed)?;
            packed.push(Arc::new(solved.packed));
        }
        Ok(packed)
    }
}

/// One projection, or all of a block.
fn projections(own: Option<Projection>) -> impl Iterator<Item = Projection> {
    Projection::ALL.into_iter().filter(move |part| own.is_none_or(|own| own == *part))
}

/// Where a measurement is kept: in the user's cache folder, by what it depends on.
fn cache_path(key: &str) -> Option<PathBuf> {
    let hash = super::calibrate::hash::Fnv::default().bytes(key.as_bytes()).hex();
    Some(dirs::cache_dir()?.join("edge-llm").join("sensitivity").join(format!("{hash}.json")))
}

/// The model with all layers compressed.
struct Joint<'a, 'r> {
    runner: &'a mut Runner<'r>,
    probes: &'a CalibrationSet,
    layers: &'a [Choices],
    store: &'a mut PackStore,
    input: States,
    reference: States,
    current: Vec<Option<usize>>,
}

impl<'a, 'r> Joint<'a, 'r> {
    fn new(
        runner: &'a mut Runner<'r>,
        probes: &'a CalibrationSet,
        layers: &'a [Choices],
        store: &'a mut PackStore,
    ) -> Result<Self> {
        runner.restore_all();
        let input = runner.embed(probes)?;
        let mut reference = runner.copy(&input)?;
        runner.advance(0..runner.num_blocks(), &mut reference)?;
        let current = vec![None; layers.len()];
        Ok(Self { runner, probes, layers, store, input, reference, current })
    }

    /// How far the model's distribution moves with each layer in its candidate.
    fn divergence(&mut self, choice: &[usize]) -> Result<Divergence> {
        if self.runner.is_resident() {
            for index in 0..self.layers.len() {
                let block = self.layers[index].0.block;
                self.set(index, choice)?;
                if self.layers.get(index + 1).is_none_or(|(next, _)| next.block != block) {
                    self.runner.settle(block)?;
                }
            }
            return self.runner.divergence(0, &self.input, &self.reference, self.probes);
        }
        // The compressed model may be larger than the budget as well.
        let mut states = self.runner.copy(&self.input)?;
        let blocks = self.runner.num_blocks();
        for block in 0..blocks {
            for index in 0..self.layers.len() {
                if self.layers[index].0.block == block {
                    self.set(index, choice)?;
                }
            }
            self.runner.advance(block..block + 1, &mut states)?;
            self.runner.restore_all();
            self.current.fill(None);
        }
        self.runner.divergence(blocks, &states, &self.reference, self.probes)
    }

    /// Puts the candidate of a layer into its place, unless it is there.
    fn set(&mut self, index: usize, choice: &[usize]) -> Result<()> {
        if self.current[index] == Some(choice[index]) {
            return Ok(());
        }
        let (layer, choices) = &self.layers[index];
        let format = choices[choice[index]].format;
        for part in projections(layer.projection) {
            let matrix = self.store.get(layer.block, part, format)?;
            let matrix = matrix.context("a matrix for each candidate")?;
            self.runner.set_weight(layer.block, part, matrix)?;
        }
        self.current[index] = Some(choice[index]);
        Ok(())
    }
}
