//! A model of which as many blocks are on the device as fit: all of them, or one, whose weights
//! are read from the checkpoint's file when its turn comes. Any projection can be run with a
//! packed matrix instead of its own; a packed matrix is multiplied by the kernels of its format
//! and never unpacked on the device.

use std::collections::BTreeMap;
use std::sync::Arc;

use anyhow::{Result, ensure};
use edge_gpu::Device;
use edge_kernels::Format;
use edge_kernels::pack::PackedHost;
use edge_scheduler::calibrate::all_moment_parts;
use edge_scheduler::plan::max_shard_bytes;
use edge_scheduler::{BlockFormats, Calibration, Job, ModelShape, Plan, Projection, Shard};

use super::states::{HostCharge, HostMeter, Spill, States};
use super::text::CalibrationSet;
use crate::checkpoint::Checkpoint;
use crate::config::ModelConfig;
use crate::family::names::{EMBEDDING, HEAD, weight_name};
use crate::model::linear::Matrix;
use crate::model::load::{dense_format, stored_rows};
use crate::model::{LoraInit, Model, check_ids, device_facts};
use crate::session::mebibytes;

/// Tokens of a micro-batch where memory allows: enough to keep the kernels busy, and no more.
const MICRO_BATCH_TOKENS: usize = 2048;

/// How a runner is built.
#[derive(Clone, Debug)]
pub struct RunnerOptions {
    /// Formats that projections will be run in, beside the checkpoint's own numbers.
    pub candidates: Vec<Format>,
    /// Formats of embedding and head that [`Runner::set_tables`] goes over to; `None`: it changes
    /// nothing.
    pub tables: Option<[Format; 2]>,
    /// Tokens of a sequence.
    pub seq_len: usize,
    /// Sequences that there will be: a micro-batch has no more.
    pub sequences: usize,
    /// Most bytes of device memory; `None`: all blocks are kept on the device.
    pub budget_bytes: Option<u64>,
    /// Bytes of host memory that go off it where the second moments of a block's inputs are summed
    /// in one pass, beyond those of one input.
    pub moments_bytes: u64,
    /// Where large hidden states go; `None`: they stay in memory.
    pub spill: Option<Spill>,
}

impl RunnerOptions {
    /// For these sequences, everything in memory.
    pub fn new(candidates: &[Format], set: &CalibrationSet) -> Self {
        Self {
            candidates: candidates.to_vec(),
            tables: None,
            seq_len: set.seq_len(),
            sequences: set.sequences(),
            budget_bytes: None,
            moments_bytes: 0,
            spill: None,
        }
    }
}

/// A matrix in place of a projection's own.
struct Replaced {
    version: u64,
    /// `None`: it is on the device, and stays there.
    host: Option<(Arc<PackedHost>, HostCharge)>,
}

/// What lies in the buffers of a block on the device.
#[derive(Clone, Copy)]
struct Resident {
    block: u32,
    /// [`Replaced::version`] of each projection's matrix, [`OWN`] or [`UNKNOWN`].
    versions: [u64; 7],
}

/// The version of the checkpoint's own weights.
const OWN: u64 = 0;

/// The version of what a failed upload leaves behind.
const UNKNOWN: u64 = u64::MAX;

/// A model that runs block by block.
pub struct Runner<'a> {
    checkpoint: &'a Checkpoint,
    config: ModelConfig,
    shape: ModelShape,
    pub(super) model: Model,
    own: BlockFormats,
    spill: Option<Spill>,
    meter: HostMeter,
    resident: Vec<Resident>,
    replaced: BTreeMap<(u32, Projection), Replaced>,
    versions: u64,
    /// Whether the model has the tables of what is made of it.
    made_tables: bool,
}

impl<'a> Runner<'a> {
    /// What a runner will allocate on a device: all blocks where the budget allows that, else
    /// one, and the largest micro-batch that fits.
    ///
    /// # Errors
    /// Not even one block with one sequence fits; the sentence says what is needed. Or the
    /// checkpoint lacks a tensor.
    pub fn plan(
        device: &Device,
        checkpoint: &Checkpoint,
        config: &ModelConfig,
        options: &RunnerOptions,
    ) -> Result<(Job, Plan)> {
        let shape = config.shape();
        let tokens = MICRO_BATCH_TOKENS / options.seq_len.max(1);
        let most = tokens.clamp(1, options.sequences.max(1)) as u32;
        let own = own_formats(checkpoint, config)?;
        let tables = [EMBEDDING, if shape.tied_head { EMBEDDING } else { HEAD }];
        let mut table_formats = [Format::F32; 2];
        for (format, name) in table_formats.iter_mut().zip(tables) {
            *format = dense_format(checkpoint.tensor(name)?.dtype);
        }
        let facts = device_facts(device);
        let parts = all_moment_parts(&shape, max_shard_bytes(facts)).len() as u32;
        let mut smallest = u64::MAX;
        for blocks in [shape.num_blocks, 1] {
            for batch in halves(most) {
                for moment_buffers in (1..=parts).rev() {
                    let candidates = options.candidates.clone();
                    let made = options.tables.filter(|made| *made != table_formats);
                    let calibration = Calibration { candidates, moment_buffers, tables: made };
                    let seq_len = options.seq_len as u32;
                    let job = job(own, table_formats, blocks, (batch, seq_len), calibration);
                    let shape = ModelShape { num_blocks: blocks, ..shape.clone() };
                    let plan = Plan::new(&shape, &job, facts);
                    let beside = if moment_buffers == parts { options.moments_bytes } else { 0 };
                    let bytes = plan.bytes() + beside;
                    if options.budget_bytes.is_none_or(|budget| bytes <= budget) {
                        return Ok((job, plan));
                    }
                    smallest = smallest.min(bytes);
                }
            }
        }
        anyhow::bail!(
            "calibration with sequences of {} tokens needs {} of device memory with one block at \
             a time and --memory-budget leaves {} for that: raise it, or take shorter sequences",
            options.seq_len,
            mebibytes(smallest),
            mebibytes(options.budget_bytes.unwrap_or(0))
        )
    }

    /// Loads a model as [`Runner::plan`] says. Nothing beyond that plan is allocated on the
    /// device, then or later.
    ///
    /// # Errors
    /// As [`Runner::plan`]; the checkpoint lacks a tensor or has one of another shape; the device
    /// is out of memory.
    pub fn open(
        device: &Device,
        checkpoint: &'a Checkpoint,
        config: &ModelConfig,
        options: &RunnerOptions,
        progress: &mut dyn FnMut(usize),
    ) -> Result<Self> {
        let (job, _) = Self::plan(device, checkpoint, config, options)?;
        let blocks = job.windows[0].end;
        // The model is one of as many blocks as there is room for.
        let mut part = config.clone();
        part.num_hidden_layers = blocks as usize;
        let model = Model::load(device, checkpoint, &part, &job, LoraInit::NONE, progress)?;
        let resident = |block| Resident { block, versions: [OWN; 7] };
        Ok(Self {
            checkpoint,
            config: config.clone(),
            shape: config.shape(),
            own: job.blocks[0],
            model,
            spill: options.spill.clone(),
            meter: HostMeter::default(),
            resident: (0..blocks).map(resident).collect(),
            replaced: BTreeMap::new(),
            versions: OWN,
            made_tables: false,
        })
    }

    /// The whole model's shape.
    pub fn shape(&self) -> &ModelShape {
        &self.shape
    }

    /// The whole model's configuration.
    pub fn config(&self) -> &ModelConfig {
        &self.config
    }

    /// Blocks of the whole model.
    pub fn num_blocks(&self) -> u32 {
        self.shape.num_blocks
    }

    /// Whether all blocks are on the device.
    pub fn is_resident(&self) -> bool {
        self.resident.len() as u32 == self.shape.num_blocks
    }

    /// What is allocated on the device: its bytes are the peak.
    pub fn device_plan(&self) -> &Plan {
        &self.model.plan
    }

    /// Host memory that is held.
    pub fn host(&self) -> &HostMeter {
        &self.meter
    }

    /// Whether [`Runner::hessians`] needs one pass for all inputs.
    pub fn sums_moments_together(&self) -> bool {
        let parts = all_moment_parts(&self.shape, self.model.plan.max_shard_bytes);
        let buffers = self.model.workspace.calibration.as_ref().map(|c| c.moments.len());
        buffers == Some(parts.len())
    }

    /// The formats of weights that are not replaced: the checkpoint's own numbers, or f32 where
    /// blocks differ in them.
    pub fn own_formats(&self) -> BlockFormats {
        self.own
    }

    /// A projection's own weight, `[n, k]`, whatever is in its place now.
    ///
    /// # Errors
    /// The checkpoint lacks it.
    pub fn own_weight(&self, block: u32, projection: Projection) -> Result<Vec<f32>> {
        self.checkpoint.weight(&self.config, block as usize, projection)?.to_f32()
    }

    /// Runs a projection with another matrix from now on. The matrix is kept on the host until
    /// its block runs next or [`Runner::settle`] is called, and where only some blocks are on the
    /// device for longer.
    ///
    /// # Errors
    /// It is not of the projection's shape, or of a format that the plan has no room for.
    pub fn set_weight(
        &mut self,
        block: u32,
        projection: Projection,
        weight: impl Into<Arc<PackedHost>>,
    ) -> Result<()> {
        let weight = weight.into();
        let place = || weight_name(block as usize, projection);
        ensure!(block < self.num_blocks(), "there is no block {block} to put a weight into");
        let want = self.shape.projection(projection);
        ensure!(
            (weight.rows, weight.cols) == want,
            "{} has shape {want:?}, and the weight for it {:?}",
            place(),
            (weight.rows, weight.cols)
        );
        let calibration = self.model.job.calibration.as_ref();
        let planned = calibration.is_some_and(|c| c.candidates.contains(&weight.format));
        ensure!(
            planned || weight.format == self.own.get(projection),
            "a weight of format {} for {} is none of the candidates that the runner was opened \
             with",
            weight.format.name(),
            place()
        );
        let words = weight.values.len() + weight.scales.len();
        self.versions += 1;
        let charge = self.meter.charge(4 * words as u64);
        let replaced = Replaced { version: self.versions, host: Some((weight, charge)) };
        self.replaced.insert((block, projection), replaced);
        Ok(())
    }

    /// Puts a block's matrices on the device at once, where all blocks have a place there: a
    /// compressed model is not to be on the host as well.
    ///
    /// # Errors
    /// The checkpoint cannot be read, or the device fails.
    pub fn settle(&mut self, block: u32) -> Result<()> {
        if self.is_resident() {
            self.prepare(block)?;
        }
        Ok(())
    }

    /// Runs a projection with its own weight again.
    pub fn restore(&mut self, block: u32, projection: Projection) {
        self.replaced.remove(&(block, projection));
    }

    /// Runs everything with its own weights again.
    pub fn restore_all(&mut self) {
        self.replaced.clear();
    }

    /// Goes over to the tables of [`RunnerOptions::tables`], for good: they are what embeddings are
    /// looked up in and what makes the logits that are compared. Those of the reference stay the
    /// checkpoint's own.
    pub fn set_tables(&mut self) {
        self.made_tables = self.model.made_head.is_some();
    }

    /// The embeddings `[ids, d]` of some tokens, looked up in the file: a table on the device would
    /// have to lie there all the time.
    pub(super) fn lookup(&self, ids: &[u32]) -> Result<Vec<f32>> {
        let (rows, cols) = (self.shape.vocab_size, self.shape.hidden_size);
        check_ids(ids, rows)?;
        let tensor = self.checkpoint.expect(EMBEDDING, &[rows as usize, cols as usize])?;
        let made = self.model.job.calibration.as_ref().and_then(|made| made.tables);
        let made = made.filter(|_| self.made_tables).map(|[embedding, _]| embedding);
        let format = made.unwrap_or(self.model.job.embedding);
        let scale = self.config.embedding_scale;
        let mut found = Vec::with_capacity(ids.len() * cols as usize);
        for &id in ids {
            let row = stored_rows(&tensor, Shard { row0: id, rows: 1 }, format)?.unpack();
            found.extend(row.into_iter().map(|value| scale * value));
        }
        Ok(found)
    }

    /// What makes the logits that are compared.
    pub(super) fn head(&self) -> &Matrix {
        let made = self.model.made_head.as_ref().filter(|_| self.made_tables);
        made.unwrap_or(self.model.head_matrix())
    }

    /// Hidden states for all sequences of a set.
    pub(super) fn states(&self, sequences: usize) -> Result<States> {
        let stride = self.model.job.seq_len as usize * self.shape.hidden_size as usize;
        States::new(sequences, stride, self.spill.as_ref(), &self.meter)
    }

    /// Makes sure that a block is on the device with the weights that it is to run with. Returns
    /// its number there.
    pub(super) fn prepare(&mut self, block: u32) -> Result<u32> {
        assert!(block < self.num_blocks(), "there is no block {block}");
        let slot = if self.is_resident() { block } else { 0 };
        let moved = self.resident[slot as usize].block != block;
        if moved {
            self.resident[slot as usize] = Resident { block, versions: [UNKNOWN; 7] };
            let parts = &mut self.model.blocks[slot as usize];
            parts.windowed = self.config.windowed[block as usize];
            for (which, _) in self.shape.vectors() {
                let values = self.checkpoint.vector(&self.config, block as usize, which)?;
                let weight = &parts.vector(which).weight;
                self.model.device.write(weight, bytemuck::cast_slice(&values))?;
            }
        }
        for projection in Projection::ALL {
            let replaced = self.replaced.get(&(block, projection));
            let wanted = replaced.map_or(OWN, |replaced| replaced.version);
            let found = &mut self.resident[slot as usize].versions[projection.index()];
            if *found == wanted {
                continue;
            }
            *found = UNKNOWN;
            let host = replaced.and_then(|replaced| replaced.host.as_ref());
            let weight = host.map(|(weight, _)| Arc::clone(weight));
            self.upload(slot, block, projection, weight.as_deref())?;
            self.resident[slot as usize].versions[projection.index()] = wanted;
            if self.is_resident()
                && let Some(replaced) = self.replaced.get_mut(&(block, projection))
            {
                replaced.host = None;
            }
        }
        Ok(slot)
    }

    fn upload(
        &mut self,
        slot: u32,
        block: u32,
        projection: Projection,
        weight: Option<&PackedHost>,
    ) -> Result<()> {
        let tensor = self.checkpoint.weight(&self.config, block as usize, projection)?;
        let (device, own) = (self.model.device.clone(), self.own.get(projection));
        let matrix = &mut self.model.blocks[slot as usize].linears[projection.index()].matrix;
        let whole = matrix.shards.len() == 1;
        for part in &mut matrix.shards {
            let shard = part.shard;
            match weight {
                Some(weight) if whole => part.replace(&device, weight)?,
                Some(weight) => {
                    let rows = weight.take_rows(shard.row0..shard.row0 + shard.rows);
                    part.replace(&device, &rows)?;
                }
                None => part.replace(&device, &stored_rows(&tensor, shard, own)?)?,
            }
        }
        Ok(())
    }
}

/// A number, its half, and so on down to 1.
fn halves(number: u32) -> impl Iterator<Item = u32> {
    let next = |number: &u32| Some(number / 2).filter(|half| *half > 0);
    std::iter::successors(Some(number.max(1)), next)
}

/// For each projection the format that holds it exactly in all blocks: theirs where they agree.
fn own_formats(checkpoint: &Checkpoint, config: &ModelConfig) -> Result<BlockFormats> {
    let mut formats = BlockFormats::uniform(Format::F32);
    for projection in Projection::ALL {
        let mut found = Vec::new();
        for block in 0..config.num_hidden_layers {
            let tensor = checkpoint.weight(config, block, projection)?;
            found.push(dense_format(tensor.dtype));
        }
        found.dedup();
        if let [format] = found[..] {
            formats.set(projection, format);
        }
    }
    Ok(formats)
}

fn job(
    own: BlockFormats,
    tables: [Format; 2],
    blocks: u32,
    (batch, seq_len): (u32, u32),
    calibration: Calibration,
) -> Job {
    let blocks = vec![own; blocks as usize];
    Job { calibration: Some(calibration), ..Job::new(blocks, tables, batch, seq_len) }
}
