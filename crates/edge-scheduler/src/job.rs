//! What is to be run, as far as memory and order go.

use edge_kernels::Format;

use crate::calibrate::{Calibration, widest};
use crate::logits::LOGITS_BYTES;
use crate::shape::{BlockFormats, ModelShape, Projection, Shard, Window};
use crate::stream::Streaming;

/// Which parameters exist beside the base.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Trained {
    /// The base alone.
    Nothing,
    /// LoRA on these projections, in each window.
    Lora {
        /// Rank `r`.
        rank: u32,
        /// Projections with an adapter.
        targets: Vec<Projection>,
    },
    /// All weights, f32 masters (one window over all blocks).
    Full,
}

/// How the moments of trained parameters are stored.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Optimizer {
    /// AdamW, two f32 a parameter.
    #[default]
    AdamW,
    /// AdamW, two bytes a parameter and 8 bytes a block of them.
    AdamW8bit,
}

/// What is to be run, as far as memory is concerned.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Job {
    /// Formats of each block's projections.
    pub blocks: Vec<BlockFormats>,
    /// Format of the embedding table (and of a tied head).
    pub embedding: Format,
    /// Format of an untied head.
    pub head: Format,
    /// Parameters beside the base.
    pub trained: Trained,
    /// How the moments of what is trained are stored.
    pub optimizer: Optimizer,
    /// Windows from the bottom up; each ends in an exit, the last one at the top.
    pub windows: Vec<Window>,
    /// Whether every exit has a norm of its own (trained when `training`).
    pub exit_norms: bool,
    /// Rank of the low-rank term that every exit has beside the head (trained when `training`); 0:
    /// none. Only with `exit_norms`.
    pub exit_rank: u32,
    /// Whether gradients and moments exist and blocks keep activations.
    pub training: bool,
    /// Sequences in a pass (micro-batch).
    pub batch: u32,
    /// Sequences in a pass that compares exits: their residual streams are all kept.
    pub eval_batch: u32,
    /// Tokens of a sequence in a pass.
    pub seq_len: u32,
    /// Positions of the key-value cache of each block, for generation.
    pub cache: Option<u32>,
    /// Highest position + 1 (rows of the RoPE table).
    pub positions: u32,
    /// Whether exits are compared or vote.
    pub vote: bool,
    /// What calibration needs, where the job is one.
    pub calibration: Option<Calibration>,
    /// Whether blocks keep only their input for the backward pass, which runs them forward again
    /// (Chen et al. 2016, arXiv 1604.06174).
    pub recompute: bool,
    /// Whether each window is trained in a phase of its own and is finished behind it, so that one
    /// window's moments suffice.
    pub phases: bool,
    /// Whether a window's adapters see a trunk without adapters, so that exits have streams of
    /// their own beside the base's.
    pub isolated: bool,
    /// Blocks that are not kept on the device; `None`: all are.
    pub streaming: Option<Streaming>,
    /// Residual streams that are kept for micro-batches which wait for each other; 0: micro-batches
    /// go through the model one after the other.
    pub streams: u32,
    /// Whether each of those micro-batches keeps the inputs of the window's blocks and its own
    /// gradient, so that they go through the window block by block too.
    pub columns: bool,
    /// Bytes of a chunk of logits, at least 64 tokens' and never more than the pass has:
    /// [`LOGITS_BYTES`] where memory does not matter ([`crate::logits`]).
    pub logits_bytes: u64,
}

impl Job {
    /// A run of a model as it is, without adapters: one exit behind the last block, everything on
    /// the device.
    pub fn new(
        blocks: Vec<BlockFormats>,
        [embedding, head]: [Format; 2],
        batch: u32,
        seq_len: u32,
    ) -> Self {
        let windows = vec![Window { first: 0, end: blocks.len() as u32 }];
        Self {
            blocks,
            embedding,
            head,
            trained: Trained::Nothing,
            optimizer: Optimizer::default(),
            windows,
            exit_norms: false,
            exit_rank: 0,
            training: false,
            batch,
            eval_batch: batch,
            seq_len,
            cache: None,
            positions: seq_len,
            vote: false,
            calibration: None,
            recompute: false,
            phases: false,
            isolated: false,
            streaming: None,
            streams: 0,
            columns: false,
            logits_bytes: LOGITS_BYTES,
        }
    }

    /// Format of the matrix that makes logits.
    pub fn head_format(&self, shape: &ModelShape) -> Format {
        if shape.tied_head { self.embedding } else { self.head }
    }

    /// Whether a block's weights are in a transfer slot.
    pub fn streams_block(&self, block: u32) -> bool {
        self.streaming.as_ref().is_some_and(|streaming| streaming.streams(block))
    }

    /// Whether adapters take turns on the device: isolated windows need those of no other one, so
    /// that in phases only those of the window that is trained lie there.
    pub fn in_turns(&self) -> bool {
        self.training && self.isolated && self.phases
    }

    /// Blocks of the deepest window.
    pub fn depth(&self) -> u32 {
        self.windows.iter().map(|window| window.depth()).max().unwrap_or(1)
    }

    /// Key-value caches of a model of `num_blocks` blocks: with isolated windows the base's stream
    /// has its own behind those of the exits' streams.
    pub fn caches(&self, num_blocks: u32) -> u32 {
        match (self.cache, self.isolated) {
            (None, _) => 0,
            (Some(_), false) => num_blocks,
            (Some(_), true) => 2 * num_blocks,
        }
    }

    /// Sets of activations: one for each block of a window that keeps them, else one for all.
    pub fn slots(&self) -> u32 {
        if self.training && !self.recompute { self.depth() } else { 1 }
    }

    /// Inputs of blocks that are kept for recomputation. The top block's is in its slot, unless
    /// micro-batches take turns with each block: then each keeps all of its own.
    pub fn kept_inputs(&self) -> u32 {
        match (self.training && self.recompute, self.columns) {
            (false, _) => 0,
            (true, false) => self.depth() - 1,
            (true, true) => self.depth() * self.streams,
        }
    }

    /// The formats that the matrix of a projection of this block may be in, the first one first.
    pub fn projection_formats(
        &self,
        block: u32,
        projection: Projection,
    ) -> impl Iterator<Item = Format> {
        let others = self.calibration.iter().flat_map(|c| c.candidates.iter().copied());
        std::iter::once(self.blocks[block as usize].get(projection)).chain(others)
    }

    /// The shards of the matrix of a projection of this block: below the largest one in any of
    /// its formats.
    pub fn projection_shards(
        &self,
        shape: &ModelShape,
        block: u32,
        projection: Projection,
        max_shard_bytes: u64,
    ) -> Vec<Shard> {
        let (n, k) = shape.projection(projection);
        let format = widest(self.projection_formats(block, projection), k);
        Shard::split(n, k, format, max_shard_bytes, u32::MAX)
    }
}
