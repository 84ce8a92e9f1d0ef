//! A model on a device: built from a checkpoint and a plan, run as recorded dispatches.
//!
//! * [`linear`] — weight matrices in shards, LoRA.
//! * `attention` — queries, keys, values and what becomes of them, forward and backward.
//! * [`block`] — a block, forward and backward.
//! * `exit` — what belongs to exits, in and out: norms, low-rank terms, temperatures.
//! * [`head`] — exits: norm, head, loss, votes, never with all logits.
//! * [`load`] — from a checkpoint to device memory.
//! * [`stream`] — blocks whose weights come when they are needed.
//! * `turns` — adapters that take turns on the device.
//! * `window` — blocks that are trained, forward and backward, by micro-batch.
//! * [`workspace`] — activations and scratch, allocated from the plan.

mod attention;
pub mod block;
pub(crate) mod counted;
mod exit;
pub mod head;
pub mod linear;
pub mod load;
pub mod stream;
mod turns;
mod window;
pub mod workspace;

use std::ops::Range;
use std::sync::Mutex;

use anyhow::{Context, Result, ensure};
use edge_gpu::{Device, Recorder, Slice, UploadSlot};
use edge_kernels::ops::embedding::embedding_gather;
use edge_kernels::ops::optim::adamw_8bit;
use edge_scheduler::{
    BlockVector, DeviceFacts, Group, Job, ModelShape, Optimizer, Plan, Projection, Streaming,
    Trained,
};

use self::block::{Geometry, Onward};
pub use self::exit::Exit;
use self::linear::{Linear, Matrix};
use self::load::Loader;
use self::stream::Streamer;
use self::turns::Turns;
use self::workspace::{Pool, Slot, Workspace};
use crate::adapter::{AdapterConfig, AdapterTensors};
use crate::batch::Batch;
use crate::checkpoint::Checkpoint;
use crate::config::ModelConfig;
use crate::vote::Learned;

/// The weight of an RMSNorm, or a bias.
#[derive(Clone, Debug)]
pub struct Norm {
    /// `[d]`, or as many as what it is applied to has columns.
    pub weight: Slice,
    /// Where its gradient accumulates, if it is trained.
    pub grad: Option<Slice>,
}

/// A block's parameters.
#[derive(Clone, Debug)]
pub struct Block {
    /// Norms and biases by [`BlockVector`]; `None`: the family has none.
    pub vectors: [Option<Norm>; BlockVector::ALL.len()],
    /// By [`Projection::index`].
    pub linears: Vec<Linear>,
    /// Whether queries see a window alone.
    pub windowed: bool,
}

impl Block {
    /// A projection of the block.
    pub fn linear(&self, projection: Projection) -> &Linear {
        &self.linears[projection.index()]
    }

    /// A norm or bias that blocks of this family have.
    ///
    /// # Panics
    /// When they have not.
    pub fn vector(&self, which: BlockVector) -> &Norm {
        self.find(which).expect("a vector that the model's shape lists")
    }

    /// A norm or bias, where blocks of this family have it.
    pub fn find(&self, which: BlockVector) -> Option<&Norm> {
        self.vectors[which as usize].as_ref()
    }
}

/// The arenas of a parameter group.
#[derive(Clone, Debug, Default)]
pub struct GroupBuffers {
    /// Values.
    pub values: Vec<Slice>,
    /// Gradients, shared with the other groups; empty without training.
    pub gradients: Vec<Slice>,
    /// First moments.
    pub m: Vec<Slice>,
    /// Second moments.
    pub v: Vec<Slice>,
    /// Largest moments by block, where moments are in 8 bits.
    pub largest: Vec<Slice>,
}

/// A model on a device, ready to run a job.
pub struct Model {
    /// What the checkpoint says of itself.
    pub config: ModelConfig,
    /// The same, as far as sizes go.
    pub shape: ModelShape,
    /// What it was built for.
    pub job: Job,
    /// What was allocated.
    pub plan: Plan,
    /// Where it lives.
    pub device: Device,
    /// The embedding table, which a tied head shares; without shards where calibration looks
    /// embeddings up in the file.
    pub embedding: Matrix,
    /// An untied head.
    pub head: Option<Matrix>,
    /// That of the compressed model that is being made, where it is stored otherwise.
    pub made_head: Option<Matrix>,
    /// The blocks.
    pub blocks: Vec<Block>,
    /// The exits, from the bottom up.
    pub exits: Vec<Exit>,
    /// Parameter groups, one per window.
    pub groups: Vec<GroupBuffers>,
    /// Cosines and sines.
    pub rope: Slice,
    /// The same for blocks with a window, where they have others.
    pub local_rope: Option<Slice>,
    /// Activations and scratch.
    pub workspace: Workspace,
    /// The exits' norms over their temperatures, where exits vote.
    vote_norms: Vec<Slice>,
    /// Temperatures and weights, once they are known.
    learned: Option<Learned>,
    /// Where the adapters are that are not on the device, where they take turns there.
    turns: Option<Mutex<Turns>>,
    /// What brings blocks that do not stay on the device.
    streamer: Option<Streamer>,
}

/// Token ids lie within a vocabulary.
pub(crate) fn check_ids(ids: &[u32], vocab_size: u32) -> Result<()> {
    let outside = ids.iter().find(|&&id| id >= vocab_size);
    if let Some(id) = outside {
        anyhow::bail!(
            "token id {id} lies outside the model's vocabulary of {vocab_size}: use the tokenizer \
             that belongs to this model"
        );
    }
    Ok(())
}

/// A compressed checkpoint comes in formats of its own.
fn check_formats(checkpoint: &Checkpoint, shape: &ModelShape, job: &Job) -> Result<()> {
    let Some(compressed) = checkpoint.compressed() else { return Ok(()) };
    let (about, shown) = (&compressed.about, compressed.path.display());
    ensure!(
        job.trained != Trained::Full,
        "{shown} is compressed and its weights cannot be trained: give --model the original \
         checkpoint, or use --method edge or lora"
    );
    let tables = job.embedding == about.embedding && (shape.tied_head || job.head == about.head);
    ensure!(
        tables && job.blocks == about.policy.formats(),
        "{shown} is stored in other formats than were asked for: leave the choice to the model"
    );
    Ok(())
}

/// What a device contributes to a plan.
pub fn device_facts(device: &Device) -> DeviceFacts {
    DeviceFacts {
        max_binding_bytes: device.info().max_binding_bytes,
        staging_bytes: device.staging_bytes(),
    }
}

impl Model {
    /// Loads a model for a job: allocates all that its plan lists, uploads the weights, and starts
    /// the adapters as peft does.
    ///
    /// # Errors
    /// The checkpoint lacks a tensor or has one of another shape; the device is out of memory.
    pub fn load(
        device: &Device,
        checkpoint: &Checkpoint,
        config: &ModelConfig,
        job: &Job,
        adapter: LoraInit,
        progress: &mut dyn FnMut(usize),
    ) -> Result<Self> {
        check_formats(checkpoint, &config.shape(), job)?;
        Self::build(device, Some(checkpoint), config, job, adapter, progress)
    }

    /// A model of zeros: for a dry device, or to measure how fast a device is.
    ///
    /// # Errors
    /// The device is out of memory.
    pub fn hollow(device: &Device, config: &ModelConfig, job: &Job) -> Result<Self> {
        Self::build(device, None, config, job, LoraInit::NONE, &mut |_| ())
    }

    fn build(
        device: &Device,
        checkpoint: Option<&Checkpoint>,
        config: &ModelConfig,
        job: &Job,
        adapter: LoraInit,
        progress: &mut dyn FnMut(usize),
    ) -> Result<Self> {
        let shape = config.shape();
        let plan = Plan::new(&shape, job, device_facts(device));
        let mut pool = Pool::new(device, &plan);
        let (rope, local_rope) = attention::ropes(&mut pool, config, job)?;
        let groups = groups(&mut pool, &plan, job)?;
        let (slot_of, slots) = slots(&mut pool, job)?;
        let mut loader = Loader {
            device,
            checkpoint,
            config,
            job,
            plan: &plan,
            pool: &mut pool,
            groups,
            slots,
            slot_of,
            pieces: Vec::new(),
            lora_scale: adapter.scale,
            progress,
            loaded: 0,
        };
        let (embedding, head) = loader.tables()?;
        let made_head = loader.made_head(head.as_ref().unwrap_or(&embedding))?;
        let blocks = (0..shape.num_blocks).map(|b| loader.block(b)).collect::<Result<Vec<_>>>()?;
        let exits = loader.exits()?;
        let groups = std::mem::take(&mut loader.groups);
        let Loader { slots, slot_of, pieces, .. } = loader;
        let ahead = job.streaming.as_ref().is_some_and(|streaming| streaming.ahead);
        let streamed = !slots.is_empty();
        let streamer = || Streamer::new(device, slot_of, slots, pieces, ahead);
        let streamer = streamed.then(streamer).transpose()?;
        let workspace = Workspace::new(&mut pool, job, &shape)?;
        let voters = if job.vote { job.windows.len() } else { 0 };
        let vote_norms = (0..voters)
            .map(|exit| pool.zeroed(&format!("vote.{exit}.norm")))
            .collect::<Result<Vec<_>>>()?;
        pool.finish()?;
        if checkpoint.is_some() {
            load::init(&blocks, &exits, device, adapter.seed)?;
        }
        let turns = job.in_turns().then(|| Mutex::new(Turns::new(job.windows.len(), adapter.seed)));
        Ok(Self {
            config: config.clone(),
            shape,
            job: job.clone(),
            plan,
            device: device.clone(),
            embedding,
            head,
            made_head,
            blocks,
            exits,
            groups,
            rope,
            local_rope,
            workspace,
            vote_norms,
            learned: None,
            turns,
            streamer,
        })
    }

    /// The matrix that makes logits.
    pub fn head_matrix(&self) -> &Matrix {
        self.head.as_ref().unwrap_or(&self.embedding)
    }

    /// Writes a batch's ids, samples and targets to the device.
    ///
    /// # Errors
    /// The batch is larger than the plan, an id lies outside the vocabulary, or the device fails.
    pub fn set_batch(&self, batch: &Batch) -> Result<Geometry> {
        let g = Geometry::sequences(batch.sequences as u32, batch.seq_len as u32);
        self.set_ids(&batch.ids)?;
        self.set_segments(&batch.segments, g)?;
        self.write_head(&self.workspace.targets, &batch.targets)?;
        Ok(g)
    }

    /// Writes token ids to the device.
    ///
    /// # Errors
    /// As [`Model::set_batch`].
    pub fn set_ids(&self, ids: &[u32]) -> Result<()> {
        check_ids(ids, self.shape.vocab_size)?;
        self.write_head(&self.workspace.ids, ids)
    }

    /// Overwrites the first words of a buffer.
    pub(crate) fn write_head(&self, slice: &Slice, words: &[u32]) -> Result<()> {
        let len = words.len() as u64;
        ensure!(
            len <= slice.words(),
            "{len} words do not fit '{}', which the plan gave {} words",
            slice.buffer().label(),
            slice.words()
        );
        let part = slice.buffer().slice(slice.offset_words(), len);
        Ok(self.device.write(&part, words)?)
    }

    /// Looks the ids up: `x [rows, d]`.
    pub(crate) fn embed(&self, recorder: &mut Recorder, rows: u32, x: &Slice) {
        let table = &self.embedding;
        for part in &table.shards {
            let params = embedding_gather::Params {
                tokens: rows,
                cols: table.cols,
                row0: part.shard.row0,
                rows: part.shard.rows,
                scale: self.config.embedding_scale,
            };
            let (ids, weight) = (self.workspace.ids.clone(), part.weight.clone());
            recorder.push(embedding_gather::dispatch(params, ids, x.clone(), weight));
        }
    }

    /// Embeds the current ids and runs blocks `0..end` in place on slot 0, calling `at_exit`
    /// behind the last block of every window.
    pub(crate) fn trunk(
        &self,
        recorder: &mut Recorder,
        end: u32,
        g: Geometry,
        mut at_exit: impl FnMut(&mut Recorder, usize, &Slice),
    ) {
        self.embed(recorder, g.rows(), self.stream());
        self.climb(recorder, 0..end, g, &mut at_exit);
    }

    /// Runs these blocks in place on [`Model::stream`], calling `at_exit` behind the last block of
    /// every window.
    pub(crate) fn climb(
        &self,
        recorder: &mut Recorder,
        blocks: Range<u32>,
        g: Geometry,
        at_exit: &mut impl FnMut(&mut Recorder, usize, &Slice),
    ) {
        for block in blocks {
            self.run_blocks(recorder, block..block + 1, g);
            if let Some(exit) = self.exits.iter().position(|exit| exit.after == block + 1) {
                at_exit(recorder, exit, self.stream());
            }
        }
    }

    /// Runs these blocks in place on [`Model::stream`].
    pub(crate) fn run_blocks(&self, recorder: &mut Recorder, blocks: Range<u32>, g: Geometry) {
        for block in blocks {
            self.run_on(recorder, block, &self.workspace.slots[0], g);
        }
    }

    /// Runs a block in place on the residual stream of a slot.
    pub(crate) fn run_on(&self, recorder: &mut Recorder, block: u32, slot: &Slot, g: Geometry) {
        self.block_forward(recorder, block, slot, Onward::InPlace, false, g);
    }

    /// The residual stream that blocks work on in place: `[rows, d]`.
    pub(crate) fn stream(&self) -> &Slice {
        &self.workspace.slots[0].x
    }

    /// Runs block `index` in place on [`Model::stream`], showing `tap` the inputs of its linear
    /// layers.
    pub(crate) fn run_block(
        &self,
        recorder: &mut Recorder,
        index: u32,
        g: Geometry,
        tap: block::Tap<'_>,
    ) {
        let slot = &self.workspace.slots[0];
        self.block_forward_tapped(recorder, index, slot, Onward::InPlace, false, g, tap);
    }

    /// Puts an adapter's tensors into the model.
    ///
    /// # Errors
    /// The adapter has a layer that the model was not built with.
    pub fn set_adapter(&self, tensors: &AdapterTensors) -> Result<()> {
        for (&(layer, projection), (a, b)) in tensors {
            self.bring_layer(layer)?;
            let lora = self.blocks[layer].linear(projection).lora.as_ref();
            let lora = lora.with_context(|| {
                format!("the model was built without an adapter on layer {layer} {projection:?}")
            })?;
            self.device.write(&lora.a.value, bytemuck::cast_slice(a))?;
            self.device.write(&lora.b.value, bytemuck::cast_slice(b))?;
            self.adapters_changed();
        }
        Ok(())
    }

    /// The adapter's tensors.
    ///
    /// # Errors
    /// The device fails.
    pub fn adapter(&self) -> Result<AdapterTensors> {
        let mut tensors = AdapterTensors::new();
        for (layer, projection) in self.adapted() {
            let read = |matrix| self.adapter_matrix(layer, projection, matrix);
            tensors.insert((layer, projection), (read('A')?, read('B')?));
        }
        Ok(tensors)
    }

    /// The layers and projections with an adapter.
    pub(crate) fn adapted(&self) -> Vec<(usize, Projection)> {
        let blocks = self.blocks.iter().enumerate();
        let all = blocks.flat_map(|(layer, block)| Projection::ALL.map(|p| (layer, p, block)));
        let adapted = all.filter(|(_, p, block)| block.linear(*p).lora.is_some());
        adapted.map(|(layer, p, _)| (layer, p)).collect()
    }

    /// Matrix `A` or `B` of an adapter.
    ///
    /// # Errors
    /// The layer has no adapter, or the device fails.
    pub(crate) fn adapter_matrix(
        &self,
        layer: usize,
        projection: Projection,
        matrix: char,
    ) -> Result<Vec<f32>> {
        self.bring_layer(layer)?;
        let lora = self.blocks[layer].linear(projection).lora.as_ref();
        let lora = lora.with_context(|| format!("layer {layer} has no adapter"))?;
        let part = if matrix == 'A' { &lora.a } else { &lora.b };
        Ok(self.device.read_f32(&part.value)?)
    }
}

/// How adapters start.
#[derive(Clone, Copy, Debug)]
pub struct LoraInit {
    /// `alpha / r`.
    pub scale: f32,
    /// Seed of `A`.
    pub seed: u64,
}

impl LoraInit {
    /// For a model without adapters.
    pub const NONE: Self = Self { scale: 1.0, seed: 0 };

    /// For an adapter that will be overwritten.
    pub fn of(config: &AdapterConfig) -> Self {
        Self { scale: config.scale(), seed: 0 }
    }
}

/// The slot of each block that does not stay on the device, and the slots.
fn slots(pool: &mut Pool<'_>, job: &Job) -> Result<(Vec<Option<usize>>, Vec<UploadSlot>)> {
    let slot_of = job.streaming.as_ref().map(Streaming::slot_of).unwrap_or_default();
    let count = slot_of.iter().flatten().max().map_or(0, |most| most + 1);
    let slots = (0..count).map(|slot| pool.slot(&Streaming::slot_name(slot)));
    let slots = slots.collect::<Result<Vec<_>>>()?;
    Ok((slot_of, slots))
}

fn groups(pool: &mut Pool<'_>, plan: &Plan, job: &Job) -> Result<Vec<GroupBuffers>> {
    let eight = job.optimizer == Optimizer::AdamW8bit;
    let most = plan.groups.iter().map(|group| group.arenas.len()).max().unwrap_or(0);
    let mut take = |what: &str, arenas: usize| {
        let names = (0..arenas).map(|arena| format!("{what}.{arena}"));
        names.map(|name| pool.zeroed(&name)).collect::<Result<Vec<_>>>()
    };
    let gradients = take("gradients", if job.training { most } else { 0 })?;
    let mut moments = |owner: &str, arenas: usize| {
        let arenas = if job.training { arenas } else { 0 };
        let (m, v) = (take(&format!("{owner}.m"), arenas)?, take(&format!("{owner}.v"), arenas)?);
        let largest = take(&format!("{owner}.largest"), if eight { arenas } else { 0 })?;
        Ok::<_, anyhow::Error>([m, v, largest])
    };
    let shared = if job.phases { Some(moments("phase", most)?) } else { None };
    let mut own = Vec::new();
    for (index, group) in plan.groups.iter().enumerate() {
        own.push(match &shared {
            Some(shared) => shared.clone(),
            None => moments(&format!("group.{index}"), group.arenas.len())?,
        });
    }
    let in_turns = job.in_turns();
    let shared = plan.groups.iter().filter(|_| in_turns).map(Group::shared_arenas).max();
    let shared = shared.unwrap_or(0);
    let shared = take("phase.values", shared)?;
    let mut groups = Vec::new();
    for (index, (group, [m, v, largest])) in plan.groups.iter().zip(own).enumerate() {
        let words = |word_count: fn(u64) -> u64, slices: Vec<Slice>| -> Vec<Slice> {
            let arenas = slices.iter().zip(&group.arenas);
            arenas.map(|(slice, &words)| slice.buffer().slice(0, word_count(words))).collect()
        };
        let (moment, largest_words): (fn(u64) -> u64, _) = match eight {
            true => (adamw_8bit::moment_words, adamw_8bit::largest_words),
            false => (|words| words, adamw_8bit::largest_words),
        };
        let values = group.arenas.iter().enumerate().map(|(arena, &words)| {
            match group.is_shared(arena, job.in_turns()) {
                true => Ok(shared[arena].buffer().slice(0, words)),
                false => pool.zeroed(&format!("group.{index}.values.{arena}")),
            }
        });
        let values = values.collect::<Result<Vec<_>>>()?;
        groups.push(GroupBuffers {
            values,
            m: words(moment, m),
            v: words(moment, v),
            largest: words(largest_words, largest),
            gradients: words(|words| words, gradients.clone()),
        });
    }
    Ok(groups)
}
