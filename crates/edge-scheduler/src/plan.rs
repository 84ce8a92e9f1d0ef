//! Every buffer of a run, by name, category and size: the runtime allocates exactly this list, so
//! the predicted peak is arithmetic and not an estimate.

use edge_kernels::ops::matmul::matmul_tn;
use edge_kernels::ops::optim::adamw_8bit;
use edge_kernels::{Category, Format};

use crate::calibrate::{Calibration, moment_buffers};
use crate::job::{Job, Optimizer, Trained};
use crate::logits::{LogitsChunk, VOCAB_CHUNK, VOTE_TOKENS, widest_shard};
use crate::params::{ExitTensors, Group};
use crate::shape::{ModelShape, Projection, Shard};
use crate::stream::{Streaming, slot_words};

/// What of a device decides sizes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DeviceFacts {
    /// Largest storage binding in bytes.
    pub max_binding_bytes: u64,
    /// What the device itself keeps for uploads, read-backs and parameters.
    pub staging_bytes: u64,
}

/// Shards stay below this many bytes also where the device would bind more: one dispatch over a
/// shard stays short, and one upload stays small.
pub const MAX_SHARD_BYTES: u64 = 64 << 20;

/// Row blocks in the first pass of the gradient of a norm's weight or of a bias.
pub const NORM_GRAD_PARTS: u32 = 16;

/// Workgroups of the first pass of the gradient norm, per arena.
pub const NORM_PARTS: u32 = 64;

/// A buffer that the runtime will allocate.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PlannedBuffer {
    /// Unique name; also the label on the device.
    pub name: String,
    /// What it is charged to.
    pub category: Category,
    /// Size in 4-byte words.
    pub words: u64,
}

/// All that a run will allocate.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Plan {
    /// The buffers.
    pub buffers: Vec<PlannedBuffer>,
    /// Parameter groups, one per window.
    pub groups: Vec<Group>,
    /// Bytes that the device itself keeps for staging.
    pub staging_bytes: u64,
    /// How logits are cut.
    pub logits: LogitsChunk,
    /// Largest shard in bytes.
    pub max_shard_bytes: u64,
}

impl Plan {
    /// The plan of a job.
    pub fn new(shape: &ModelShape, job: &Job, facts: DeviceFacts) -> Self {
        let max_shard_bytes = max_shard_bytes(facts);
        let mut builder = Builder { shape, job, max_shard_bytes, buffers: Vec::new() };
        let groups = builder.groups();
        builder.weights();
        builder.parameters(&groups);
        let logits = builder.logits();
        builder.activations();
        if job.training {
            builder.backward(&groups, logits.tokens);
        }
        if let Some(calibration) = &job.calibration {
            builder.calibration(calibration, logits);
        }
        Self {
            buffers: builder.buffers,
            groups,
            staging_bytes: facts.staging_bytes,
            logits,
            max_shard_bytes,
        }
    }

    /// Bytes by category, in the order of [`Category::ALL`], staging included.
    pub fn bytes_by_category(&self) -> [u64; 7] {
        let mut bytes = [0; 7];
        for buffer in &self.buffers {
            bytes[buffer.category.index()] += 4 * buffer.words;
        }
        bytes[Category::Staging.index()] += self.staging_bytes;
        bytes
    }

    /// Bytes in all: the predicted peak, since nothing is freed before the run ends.
    pub fn bytes(&self) -> u64 {
        self.bytes_by_category().iter().sum()
    }

    /// Words of a buffer.
    pub fn words(&self, name: &str) -> Option<u64> {
        self.buffers.iter().find(|buffer| buffer.name == name).map(|buffer| buffer.words)
    }
}

/// The most bytes of a shard on a device.
pub fn max_shard_bytes(facts: DeviceFacts) -> u64 {
    MAX_SHARD_BYTES.min(facts.max_binding_bytes)
}

/// The shards of a projection's weight.
pub fn projection_shards(n: u32, k: u32, format: Format, max_shard_bytes: u64) -> Vec<Shard> {
    Shard::split(n, k, format, max_shard_bytes, u32::MAX)
}

/// The shards of an embedding table or head.
pub fn table_shards(shape: &ModelShape, format: Format, max_shard_bytes: u64) -> Vec<Shard> {
    Shard::split(shape.vocab_size, shape.hidden_size, format, max_shard_bytes, VOCAB_CHUNK)
}

struct Builder<'a> {
    shape: &'a ModelShape,
    job: &'a Job,
    max_shard_bytes: u64,
    buffers: Vec<PlannedBuffer>,
}

impl Builder<'_> {
    fn add(&mut self, name: impl Into<String>, category: Category, words: u64) {
        self.buffers.push(PlannedBuffer { name: name.into(), category, words: words.max(1) });
    }

    fn full(&self) -> bool {
        self.job.trained == Trained::Full
    }

    fn rows(&self) -> u64 {
        u64::from(self.job.batch) * u64::from(self.job.seq_len)
    }

    /// Tokens of a pass that compares exits.
    fn compared_rows(&self) -> u64 {
        u64::from(self.job.eval_batch) * u64::from(self.job.seq_len)
    }

    fn rank(&self) -> u32 {
        match self.job.trained {
            Trained::Lora { rank, .. } => rank,
            _ => 0,
        }
    }

    fn groups(&self) -> Vec<Group> {
        let (shape, job) = (self.shape, self.job);
        let max_words = self.max_shard_bytes / 4;
        let windows = job.windows.iter().zip(0..);
        // All exits are compared at once, whosever adapters lie on the device.
        let (rank, apart) = (job.exit_rank, job.in_turns());
        let own = |exit| ExitTensors { exit, rank, apart };
        match &job.trained {
            Trained::Full => vec![Group::full(shape, self.max_shard_bytes, VOCAB_CHUNK)],
            Trained::Lora { rank, targets } => windows
                .map(|(&window, t)| {
                    let own = job.exit_norms.then_some(own(t));
                    Group::lora(shape, window, own, *rank, targets, max_words)
                })
                .collect(),
            Trained::Nothing if job.exit_norms => windows
                .map(|(&window, t)| Group::lora(shape, window, Some(own(t)), 0, &[], max_words))
                .collect(),
            Trained::Nothing => Vec::new(),
        }
    }

    /// A matrix that may be in any of these formats.
    fn matrix(&mut self, name: &str, cols: u32, formats: &[Format], shards: &[Shard]) {
        for (index, shard) in shards.iter().enumerate() {
            let most = |words: fn(Format, u32, u32) -> u64| {
                formats.iter().map(|&format| words(format, shard.rows, cols)).max().unwrap_or(0)
            };
            self.add(format!("{name}.{index}"), Category::Weights, most(Format::value_words));
            if formats.iter().any(|format| format.is_packed()) {
                let scales = most(Format::scale_words);
                self.add(format!("{name}.{index}.scales"), Category::Weights, scales);
            }
        }
    }

    /// The frozen base; nothing with method `full`, whose weights are a parameter group.
    fn weights(&mut self) {
        let (shape, job) = (self.shape, self.job);
        let (d, max) = (shape.hidden_size, self.max_shard_bytes);
        let rope = u64::from(job.positions) * u64::from(shape.head_dim);
        self.add("rope", Category::Weights, rope);
        if shape.extras.local_rope {
            self.add("rope_local", Category::Weights, rope);
        }
        if self.full() {
            return;
        }
        let shards = table_shards(shape, job.embedding, max);
        let made = job.calibration.as_ref().and_then(|calibration| calibration.tables);
        if shape.tied_head {
            self.matrix("embed_tokens", d, &[job.embedding], &shards);
            if let Some([table, _]) = made {
                self.matrix("made.head", d, &[table], &shards);
            }
        } else {
            // Calibration looks embeddings up on the host.
            if job.calibration.is_none() {
                self.matrix("embed_tokens", d, &[job.embedding], &shards);
            }
            let shards = table_shards(shape, job.head, max);
            self.matrix("lm_head", d, &[job.head], &shards);
            if let Some([_, head]) = made {
                self.matrix("made.head", d, &[head], &shards);
            }
        }
        for block in 0..job.blocks.len() as u32 {
            let streamed = job.streams_block(block);
            for projection in Projection::ALL.into_iter().filter(|_| !streamed) {
                let (_, k) = shape.projection(projection);
                let formats: Vec<Format> = job.projection_formats(block, projection).collect();
                let shards = job.projection_shards(shape, block, projection, max);
                self.matrix(&format!("block.{block}.{}", projection.name()), k, &formats, &shards);
            }
            for (vector, len) in shape.vectors() {
                let name = format!("block.{block}.{}", vector.name());
                self.add(name, Category::Weights, len.into());
            }
        }
        self.transfer_slots();
        if !job.exit_norms {
            self.add("norm", Category::Weights, d.into());
        }
        // The exits' norms over their temperatures.
        for exit in 0..if job.vote { job.windows.len() } else { 0 } {
            self.add(format!("vote.{exit}.norm"), Category::Adapters, d.into());
        }
    }

    fn transfer_slots(&mut self) {
        let staged = self.job.streaming.as_ref().is_some_and(|streaming| streaming.staged);
        let slots = slot_words(self.shape, self.job, self.max_shard_bytes);
        for (slot, words) in slots.into_iter().enumerate() {
            let name = Streaming::slot_name(slot);
            if staged {
                self.add(format!("{name}.staging"), Category::Staging, words);
            }
            self.add(name, Category::Weights, words);
        }
    }

    fn parameters(&mut self, groups: &[Group]) {
        let values = if self.full() { Category::Weights } else { Category::Adapters };
        // Of the largest arena of each number: what windows take in turns.
        let (mut most, mut shared): (Vec<u64>, Vec<u64>) = (Vec::new(), Vec::new());
        for (index, group) in groups.iter().enumerate() {
            for (arena, &words) in group.arenas.iter().enumerate() {
                if group.is_shared(arena, self.job.in_turns()) {
                    shared.resize(shared.len().max(arena + 1), 0);
                    shared[arena] = words.max(shared[arena]);
                } else {
                    self.add(format!("group.{index}.values.{arena}"), values, words);
                }
                if self.job.training && !self.job.phases {
                    self.moments(&format!("group.{index}"), arena, words);
                }
                if most.len() == arena {
                    most.push(0);
                }
                most[arena] = most[arena].max(words);
            }
        }
        for (arena, &words) in shared.iter().enumerate() {
            self.add(format!("phase.values.{arena}"), values, words);
        }
        if self.job.training {
            for (arena, &words) in most.iter().enumerate() {
                self.add(format!("gradients.{arena}"), Category::Gradients, words);
                if self.job.phases {
                    self.moments("phase", arena, words);
                }
            }
        }
    }

    /// The optimizer's state of an arena of `words` parameters.
    fn moments(&mut self, group: &str, arena: usize, words: u64) {
        let optimizer = self.job.optimizer;
        let mut add = |what: &str, words| {
            self.add(format!("{group}.{what}.{arena}"), Category::Optimizer, words);
        };
        match optimizer {
            Optimizer::AdamW => {
                add("m", words);
                add("v", words);
            }
            Optimizer::AdamW8bit => {
                add("m", adamw_8bit::moment_words(words));
                add("v", adamw_8bit::moment_words(words));
                add("largest", adamw_8bit::largest_words(words));
            }
        }
    }

    /// Words of the buffer `hidden`, through which rows of the residual stream pass as well.
    fn hidden(&self) -> u64 {
        self.rows() * u64::from(self.shape.intermediate_size.max(self.shape.hidden_size))
    }

    /// Chunks of logits and row statistics.
    fn logits(&mut self) -> LogitsChunk {
        let logits = LogitsChunk::new(self.shape, self.job, self.rows(), self.hidden());
        if !logits.in_hidden {
            self.add("logits", Category::Logits, logits.words);
        }
        if self.job.exit_rank > 0 {
            let words = u64::from(logits.tokens) * u64::from(self.job.exit_rank);
            self.add("exit_inner", Category::Logits, words);
            if self.job.training {
                self.add("d_exit_inner", Category::Logits, words);
            }
        }
        self.add("loss", Category::Logits, 2);
        let (rows, compared) = (self.rows(), self.compared_rows());
        self.add("stats.0", Category::Logits, 3 * rows);
        if self.job.vote {
            let tokens = u64::from(logits.tokens.min(VOTE_TOKENS)).min(compared);
            let votes = tokens * u64::from(widest_shard(self.shape));
            self.add("votes", Category::Logits, votes);
            self.add("vote_stats", Category::Logits, 3 * compared);
            for exit in 1..self.job.windows.len() {
                self.add(format!("stats.{exit}"), Category::Logits, 3 * compared);
            }
        }
        logits
    }

    fn activations(&mut self) {
        let shape = self.shape;
        let rows = self.rows();
        let (d, q, kv) = (shape.hidden_size, shape.q_dim(), shape.kv_dim());
        let columns = |columns: u32| rows * u64::from(columns);
        let act = Category::Activations;
        self.add("ids", act, rows);
        self.add("targets", act, rows);
        // Micro-batches that wait for each other have samples of their own.
        for micro_batch in 0..self.job.streams.max(1) {
            self.add(format!("segments.{micro_batch}"), act, 2 * rows);
        }
        self.add("counted", act, rows);
        self.add("normed", act, columns(d));
        self.add("rstd", act, rows);
        self.add("hidden", act, self.hidden());
        for kept in 0..self.job.kept_inputs() {
            self.add(format!("kept.{kept}.x"), act, columns(d));
        }
        for stream in 0..self.job.streams {
            self.add(format!("micro.{stream}.x"), act, columns(d));
        }
        for slot in 0..self.job.slots() {
            let mut add = |name: &str, words| self.add(format!("slot.{slot}.{name}"), act, words);
            add("x", columns(d));
            add("q", columns(q));
            add("attention", columns(q));
            add("lse", columns(shape.num_heads));
            add("gate", columns(shape.intermediate_size));
            add("up", columns(shape.intermediate_size));
            if self.job.training {
                self.add(format!("slot.{slot}.x_mid"), act, columns(d));
                self.before_norms(slot);
            }
            if self.job.cache.is_none() {
                self.add(format!("slot.{slot}.k"), act, columns(kv));
                self.add(format!("slot.{slot}.v"), act, columns(kv));
            }
            if self.rank() > 0 {
                for projection in Projection::ALL {
                    if shape.adapter_of(projection) == projection {
                        let name = format!("slot.{slot}.lora.{}", projection.name());
                        self.add(name, act, columns(self.rank()));
                    }
                }
            }
        }
        if self.job.training {
            self.add("x_out", act, columns(d));
        }
        if let Some(positions) = self.job.cache {
            for block in 0..self.job.caches(shape.num_blocks) {
                for name in ["k", "v"] {
                    let words = u64::from(positions) * u64::from(kv);
                    self.add(format!("cache.{block}.{name}"), act, words);
                }
            }
        }
        if self.job.vote {
            for exit in 0..self.job.windows.len() {
                let words = self.compared_rows() * u64::from(d);
                self.add(format!("exit.{exit}.x"), act, words);
            }
        }
    }

    /// What norms inside a block read, kept for their backward pass. Without one it lies where
    /// something else will be written soon.
    fn before_norms(&mut self, slot: u32) {
        let (shape, rows) = (self.shape, self.rows());
        let mut add = |name: &str, columns: u32| {
            let words = rows * u64::from(columns);
            self.add(format!("slot.{slot}.{name}"), Category::Activations, words);
        };
        if shape.extras.head_norms {
            add("q_raw", shape.q_dim());
            add("q_rstd", shape.num_heads);
            add("k_raw", shape.kv_dim());
            add("k_rstd", shape.num_kv_heads);
        }
        if shape.extras.branch_norms {
            add("attention_out", shape.hidden_size);
            add("attention_rstd", 1);
            add("mlp_out", shape.hidden_size);
            add("mlp_rstd", 1);
        }
    }

    /// Scratch of the backward pass.
    fn backward(&mut self, groups: &[Group], token_chunk: u32) {
        let shape = self.shape;
        let rows = self.rows();
        let (d, q, kv) = (shape.hidden_size, shape.q_dim(), shape.kv_dim());
        let columns = |columns: u32| rows * u64::from(columns);
        let act = Category::Activations;
        self.add("d_x", act, columns(d));
        self.add("places", act, rows);
        self.add("d_normed", act, columns(d));
        self.add("d_hidden", act, columns(shape.intermediate_size.max(d)));
        self.add("d_attention", act, columns(q));
        self.add("d_q", act, columns(q));
        self.add("d_k", act, columns(kv));
        self.add("d_v", act, columns(kv));
        self.add("attention_stats", act, 2 * columns(shape.num_heads));
        if self.rank() > 0 {
            self.add("d_lora", act, columns(self.rank()));
        }
        if self.full() {
            let tables = table_shards(shape, Format::F32, self.max_shard_bytes).len() as u64;
            let region = rows.next_multiple_of(64);
            self.add("scatter_segments", act, tables * 3 * region);
            self.add("scatter_order", act, tables * region);
        }
        self.add("partials", act, self.partials(token_chunk));
        let arenas = groups.iter().map(|group| group.arenas.len()).max().unwrap_or(0) as u64;
        self.add("norm_partials", act, arenas * u64::from(NORM_PARTS));
        self.add("clip", act, 2);
    }

    /// A second distribution beside the first, and second moments.
    fn calibration(&mut self, calibration: &Calibration, logits: LogitsChunk) {
        let (rows, shape) = (self.rows(), self.shape);
        let d = u64::from(shape.hidden_size);
        self.add("reference.normed", Category::Activations, rows * d);
        self.add("reference.logits", Category::Logits, logits.words);
        self.add("reference.stats", Category::Logits, 3 * rows);
        self.add("kl", Category::Logits, rows);
        let moments = moment_buffers(shape, calibration.moment_buffers, self.max_shard_bytes);
        for (index, words) in moments.into_iter().enumerate() {
            self.add(format!("moments.{index}"), Category::Activations, words);
        }
    }

    /// Words of the largest set of partial sums.
    fn partials(&self, token_chunk: u32) -> u64 {
        let shape = self.shape;
        let rows = self.rows() as u32;
        let product = |m: u32, n: u32, k: u32| match matmul_tn::splits(m, n, k) {
            0 | 1 => 0,
            splits => u64::from(splits) * u64::from(n) * u64::from(k),
        };
        let widest = shape.vectors().map(|(_, len)| len).max().unwrap_or(0);
        let mut most = u64::from(NORM_GRAD_PARTS) * u64::from(widest.max(shape.hidden_size));
        for projection in Projection::ALL {
            let (n, k) = shape.projection(projection);
            if self.full() {
                for shard in projection_shards(n, k, Format::F32, self.max_shard_bytes) {
                    most = most.max(product(rows, shard.rows, k));
                }
            } else if self.rank() > 0 {
                let rank = self.rank();
                most = most.max(product(rows, n, rank)).max(product(rows, rank, k));
            }
        }
        // What the head's gradient is of: its weights, or an exit's low-rank term.
        let (format, inner) = match (self.full(), self.job.exit_rank) {
            (true, _) => (Format::F32, shape.hidden_size),
            (false, 0) => return most,
            (false, rank) => (self.job.head_format(shape), rank),
        };
        for tokens in [token_chunk, rows % token_chunk] {
            for shard in table_shards(shape, format, self.max_shard_bytes) {
                most = most.max(product(tokens, shard.rows, inner));
            }
            if !self.full() {
                most = most.max(product(tokens, inner, shape.hidden_size));
            }
        }
        most
    }
}
