//! From a checkpoint to device memory, in the formats that the job names.

use std::ops::Range;
use std::sync::Arc;

use anyhow::{Context, Result, ensure};
use edge_gpu::{Device, Slice, UploadSlot};
use edge_kernels::Format;
use edge_kernels::format::WeightBuffers;
use edge_kernels::pack::{PackedHost, pack};
use edge_kernels::util::SeededRng;
use edge_scheduler::plan::{projection_shards, table_shards};
use edge_scheduler::stream::{BlockPart, block_parts};
use edge_scheduler::{BlockVector, Group, Job, Owner, Plan, Projection, Shard, Trained};
use rand::{RngExt, SeedableRng};

use super::linear::{Linear, Lora, Matrix, MatrixShard, Parameter};
use super::stream::Piece;
use super::workspace::Pool;
use super::{Block, Exit, GroupBuffers, Norm};
use crate::checkpoint::{Checkpoint, Dtype, TensorView};
use crate::compress::layout::{scales_name, shards_of, table_shards_of, values_name};
use crate::config::ModelConfig;
use crate::family::names::{EMBEDDING, HEAD, weight_name};
use crate::weight_file::WeightFile;

/// The format that holds a checkpoint's own numbers.
pub fn dense_format(dtype: Dtype) -> Format {
    match dtype {
        Dtype::F32 => Format::F32,
        Dtype::F16 => Format::F16,
        Dtype::BF16 => Format::Bf16,
    }
}

/// The rows of a shard of a tensor in a format: the checkpoint's own bytes where that is its
/// format.
pub(crate) fn stored_rows(
    tensor: &TensorView<'_>,
    shard: Shard,
    format: Format,
) -> Result<PackedHost> {
    let (rows, cols) = (shard.rows, tensor.cols() as u32);
    let range = shard.row0 as usize..(shard.row0 + shard.rows) as usize;
    // Rows of 16-bit numbers are whole words only where the columns are even.
    let same = dense_format(tensor.dtype) == format;
    if same && (format == Format::F32 || cols.is_multiple_of(2)) {
        let values = tensor.words(range)?;
        return Ok(PackedHost { format, rows, cols, values, scales: Vec::new() });
    }
    Ok(pack(format, rows, cols, &tensor.rows_f32(range)?))
}

/// The parts of a matrix in a file must be the plan's shards, which are smaller where a device
/// binds little.
fn check_parts(
    name: &str,
    parts: &[Shard],
    part_bytes: u64,
    shards: &[Shard],
    (device, max_bytes): (&str, u64),
) -> Result<()> {
    ensure!(
        parts == shards,
        "tensor {name} of the compressed model is stored in parts of {part_bytes} bytes and \
         {device} binds {max_bytes} at most: use --device cpu or the original model"
    );
    Ok(())
}

/// Builds the parts of a model.
pub(super) struct Loader<'a, 'p> {
    pub device: &'a Device,
    /// `None`: a model without weights, for a device that runs nothing or whose speed is measured.
    pub checkpoint: Option<&'a Checkpoint>,
    pub config: &'a ModelConfig,
    pub job: &'a Job,
    pub plan: &'a Plan,
    pub pool: &'a mut Pool<'p>,
    /// Values and gradients of each group.
    pub groups: Vec<GroupBuffers>,
    /// Transfer slots of blocks that do not stay.
    pub slots: Vec<UploadSlot>,
    /// The slot of each block that does not.
    pub slot_of: Vec<Option<usize>>,
    /// What each of these blocks is made of.
    pub pieces: Vec<Vec<Piece>>,
    /// `alpha / r` of the adapters.
    pub lora_scale: f32,
    /// Called with the tensors loaded so far.
    pub progress: &'a mut dyn FnMut(usize),
    pub loaded: usize,
}

impl<'a> Loader<'a, '_> {
    fn full(&self) -> bool {
        self.job.trained == Trained::Full
    }

    fn verify(&self, section: usize) -> Result<()> {
        self.checkpoint.map_or(Ok(()), |checkpoint| checkpoint.verify(section))
    }

    fn count(&mut self) {
        self.loaded += 1;
        (self.progress)(self.loaded);
    }

    /// The slices of a trained tensor in its group.
    fn parameter(&self, owner: Owner) -> Option<(Parameter, &Group)> {
        let groups = self.plan.groups.iter().zip(&self.groups);
        groups.into_iter().find_map(|(group, buffers)| {
            let entry = group.find(owner)?;
            let cut = |arena: &Slice| arena.buffer().slice(entry.offset, entry.words());
            let value = cut(&buffers.values[entry.arena]);
            let grad = buffers.gradients.get(entry.arena).map(cut);
            Some((Parameter { value, grad }, group))
        })
    }

    /// A matrix of the frozen base, or with method `full` one that is trained. `find` has it where
    /// the checkpoint is not packed.
    fn matrix(
        &mut self,
        (name, label): (&str, &str),
        find: impl Fn(&'a Checkpoint) -> Result<TensorView<'a>>,
        (rows, cols): (u32, u32),
        format: Format,
        shards: Vec<Shard>,
        owner: impl Fn(Shard) -> Owner,
    ) -> Result<Matrix> {
        let full = self.full();
        self.count();
        let Some(checkpoint) = self.checkpoint else {
            return self.hollow(label, (rows, cols), format, shards, owner);
        };
        if checkpoint.is_packed(name) {
            return self.stored(checkpoint, (name, label), (rows, cols), format, shards);
        }
        let tensor = find(checkpoint)?;
        let mut parts = Vec::with_capacity(shards.len());
        for (index, shard) in shards.into_iter().enumerate() {
            if full {
                let range = shard.row0 as usize..(shard.row0 + shard.rows) as usize;
                let (parameter, _) = self.parameter(owner(shard)).context("a planned weight")?;
                let values = tensor.rows_f32(range)?;
                self.device.write(&parameter.value, bytemuck::cast_slice(&values))?;
                let weight = WeightBuffers::dense(Format::F32, parameter.value);
                parts.push(MatrixShard { shard, weight, grad: parameter.grad, scales: None });
                continue;
            }
            let stored = stored_rows(&tensor, shard, format)?;
            parts.push(self.upload(&format!("{label}.{index}"), shard, &stored)?);
        }
        Ok(Matrix { rows, cols, shards: parts })
    }

    /// A matrix of a compressed checkpoint: its words go from the file into device buffers.
    fn stored(
        &mut self,
        checkpoint: &Checkpoint,
        (name, label): (&str, &str),
        (rows, cols): (u32, u32),
        format: Format,
        shards: Vec<Shard>,
    ) -> Result<Matrix> {
        let parts = match name {
            EMBEDDING | HEAD => table_shards_of(&self.config.shape(), format),
            _ => shards_of(rows, cols, format),
        };
        let part_bytes = checkpoint.stored_bytes(&values_name(name, 0))?;
        let limit = (self.device.info().name.as_str(), self.plan.max_shard_bytes);
        check_parts(name, &parts, part_bytes, &shards, limit)?;
        let mut parts = Vec::with_capacity(shards.len());
        for (index, shard) in shards.into_iter().enumerate() {
            let label = format!("{label}.{index}");
            let values = self.words(checkpoint, &values_name(name, index), &label)?;
            let scales = match format.is_packed() {
                true => {
                    let label = format!("{label}.scales");
                    Some(self.words(checkpoint, &scales_name(name, index), &label)?)
                }
                false => None,
            };
            let weight = WeightBuffers { format, values, scales };
            parts.push(MatrixShard { shard, weight, grad: None, scales: None });
        }
        Ok(Matrix { rows, cols, shards: parts })
    }

    /// A planned buffer with the words of a stored tensor.
    fn words(&mut self, checkpoint: &Checkpoint, name: &str, label: &str) -> Result<Slice> {
        let mut read = Ok(());
        let slice = self.pool.filled_with(label, |out| read = checkpoint.stored(name, out))?;
        read.map(|()| slice)
    }

    /// A matrix of zeros.
    fn hollow(
        &mut self,
        label: &str,
        (rows, cols): (u32, u32),
        format: Format,
        shards: Vec<Shard>,
        owner: impl Fn(Shard) -> Owner,
    ) -> Result<Matrix> {
        let mut parts = Vec::with_capacity(shards.len());
        for (index, shard) in shards.into_iter().enumerate() {
            if self.full() {
                let (parameter, _) = self.parameter(owner(shard)).context("a planned weight")?;
                let weight = WeightBuffers::dense(Format::F32, parameter.value);
                parts.push(MatrixShard { shard, weight, grad: parameter.grad, scales: None });
                continue;
            }
            let values = self.pool.zeroed(&format!("{label}.{index}"))?;
            let scales = match format.is_packed() {
                true => Some(self.pool.zeroed(&format!("{label}.{index}.scales"))?),
                false => None,
            };
            let weight = WeightBuffers { format, values, scales };
            parts.push(MatrixShard { shard, weight, grad: None, scales: None });
        }
        Ok(Matrix { rows, cols, shards: parts })
    }

    fn upload(&mut self, label: &str, shard: Shard, stored: &PackedHost) -> Result<MatrixShard> {
        let values = self.pool.filled(label, &stored.values)?;
        let label = format!("{label}.scales");
        let (scales, room) = match (stored.format.is_packed(), self.pool.words(&label)) {
            (true, _) => {
                let scales = self.pool.filled(&label, &stored.scales)?;
                (Some(scales.clone()), Some(scales))
            }
            // Dense now; another format may take its place.
            (false, Some(_)) => (None, Some(self.pool.zeroed(&label)?)),
            (false, None) => (None, None),
        };
        let weight = WeightBuffers { format: stored.format, values, scales };
        Ok(MatrixShard { shard, weight, grad: None, scales: room })
    }

    /// The final norm.
    fn final_norm(&self) -> Result<Vec<f32>> {
        match self.checkpoint {
            Some(checkpoint) => checkpoint.final_norm(self.config),
            None => Ok(vec![1.0; self.config.hidden_size]),
        }
    }

    /// A block's norm or bias.
    fn vector(&mut self, block: u32, which: BlockVector, len: u32) -> Result<Norm> {
        let values = match self.checkpoint {
            Some(checkpoint) => checkpoint.vector(self.config, block as usize, which)?,
            None => vec![1.0; len as usize],
        };
        let label = format!("block.{block}.{}", which.name());
        self.norm(&values, &label, Owner::Vector(block, which))
    }

    fn norm(&mut self, values: &[f32], label: &str, owner: Owner) -> Result<Norm> {
        let words: &[u32] = bytemuck::cast_slice(values);
        if let Some((parameter, _)) = self.parameter(owner) {
            self.device.write(&parameter.value, words)?;
            return Ok(Norm { weight: parameter.value, grad: parameter.grad });
        }
        let weight = self.pool.filled(label, words)?;
        Ok(Norm { weight, grad: None })
    }

    /// The embedding table, and the head where it is not tied.
    pub(super) fn tables(&mut self) -> Result<(Matrix, Option<Matrix>)> {
        self.verify(0)?;
        let shape = self.config.shape();
        let size = (shape.vocab_size, shape.hidden_size);
        let expected = [shape.vocab_size as usize, shape.hidden_size as usize];
        let max = self.plan.max_shard_bytes;
        let format = |format| if self.full() { Format::F32 } else { format };
        let (embedding, head) = (format(self.job.embedding), format(self.job.head));
        // Calibration looks embeddings up on the host.
        let shards = match self.job.calibration.is_some() && !shape.tied_head {
            true => Vec::new(),
            false => table_shards(&shape, embedding, max),
        };
        let names = (EMBEDDING, "embed_tokens");
        let table = |name| move |from: &'a Checkpoint| from.expect(name, &expected);
        let embedding =
            self.matrix(names, table(EMBEDDING), size, embedding, shards, Owner::Embedding)?;
        if shape.tied_head {
            return Ok((embedding, None));
        }
        let shards = table_shards(&shape, head, max);
        let names = (HEAD, "lm_head");
        let head = self.matrix(names, table(HEAD), size, head, shards, Owner::Head)?;
        Ok((embedding, Some(head)))
    }

    /// The head of the compressed model that is being made, where it is stored otherwise: in the
    /// shards of the checkpoint's own, with whose logits its own are compared.
    pub(super) fn made_head(&mut self, own: &Matrix) -> Result<Option<Matrix>> {
        let made = self.job.calibration.as_ref().and_then(|calibration| calibration.tables);
        let (Some(made), Some(checkpoint)) = (made, self.checkpoint) else { return Ok(None) };
        let tied = self.config.shape().tied_head;
        let (name, format) = if tied { (EMBEDDING, made[0]) } else { (HEAD, made[1]) };
        let (rows, cols) = (own.rows, own.cols);
        let tensor = checkpoint.expect(name, &[rows as usize, cols as usize])?;
        let mut shards = Vec::with_capacity(own.shards.len());
        for (index, part) in own.shards.iter().enumerate() {
            let stored = stored_rows(&tensor, part.shard, format)?;
            shards.push(self.upload(&format!("made.head.{index}"), part.shard, &stored)?);
        }
        Ok(Some(Matrix { rows, cols, shards }))
    }

    /// A block: norms, projections, adapters.
    pub(super) fn block(&mut self, block: u32) -> Result<Block> {
        self.verify(block as usize + 1)?;
        let shape = self.config.shape();
        let label = |what: &str| format!("block.{block}.{what}");
        let mut vectors = <[Option<Norm>; BlockVector::ALL.len()]>::default();
        for (which, len) in shape.vectors() {
            vectors[which as usize] = Some(self.vector(block, which, len)?);
        }
        let windowed = self.config.windowed[block as usize];
        if let Some(slot) = self.slot_of.get(block as usize).copied().flatten() {
            let linears = self.streamed(block, slot)?;
            return Ok(Block { vectors, linears, windowed });
        }
        self.pieces.push(Vec::new());
        let mut linears = Vec::with_capacity(7);
        for projection in Projection::ALL {
            let (n, k) = shape.projection(projection);
            let format = match self.full() {
                true => Format::F32,
                false => self.job.blocks[block as usize].get(projection),
            };
            let max = self.plan.max_shard_bytes;
            let shards = match self.full() {
                true => projection_shards(n, k, format, max),
                false => self.job.projection_shards(&shape, block, projection, max),
            };
            let name = weight_name(block as usize, projection);
            let owner = |shard| Owner::Weight(block, projection, shard);
            let names = (name.as_str(), label(projection.name()));
            let config = self.config;
            let find = |from: &'a Checkpoint| from.weight(config, block as usize, projection);
            let matrix = self.matrix((names.0, &names.1), find, (n, k), format, shards, owner)?;
            linears.push(Linear { matrix, lora: self.lora(block, projection) });
        }
        Ok(Block { vectors, linears, windowed })
    }

    /// The projections of a block whose weights will be read into a slot, and where they are.
    fn streamed(&mut self, block: u32, slot: usize) -> Result<Vec<Linear>> {
        let shape = self.config.shape();
        let max = self.plan.max_shard_bytes;
        let (parts, _) = block_parts(&shape, self.job, block, max);
        let buffer = self.slots[slot].buffer().clone();
        let mut pieces = Vec::with_capacity(parts.len());
        let mut shards: Vec<Vec<MatrixShard>> = vec![Vec::new(); Projection::ALL.len()];
        for part in parts {
            let format = self.job.blocks[block as usize].get(part.projection);
            if let Some(checkpoint) = self.checkpoint {
                pieces.push(self.piece(checkpoint, block, &part, format)?);
            }
            let words = buffer.slice(part.offset, part.words);
            let of = &mut shards[part.projection.index()];
            match of.last_mut().filter(|_| part.scales) {
                Some(shard) => shard.weight.scales = Some(words),
                None => {
                    let weight = WeightBuffers { format, values: words, scales: None };
                    let shard = part.shard;
                    of.push(MatrixShard { shard, weight, grad: None, scales: None });
                }
            }
        }
        self.pieces.push(pieces);
        let linear = |(projection, shards): (Projection, Vec<MatrixShard>)| {
            let (rows, cols) = shape.projection(projection);
            let matrix = Matrix { rows, cols, shards };
            Linear { matrix, lora: self.lora(block, projection) }
        };
        Ok(Projection::ALL.into_iter().zip(shards).map(linear).collect())
    }

    /// Where the words of a part of a block are: as they are to lie on the device, since nothing
    /// is converted on the way.
    fn piece(
        &mut self,
        checkpoint: &Checkpoint,
        block: u32,
        part: &BlockPart,
        format: Format,
    ) -> Result<Piece> {
        if !part.scales {
            self.loaded += usize::from(part.index == 0);
            (self.progress)(self.loaded);
        }
        let name = weight_name(block as usize, part.projection);
        let (n, k) = self.config.shape().projection(part.projection);
        let piece =
            |file: Arc<WeightFile>, byte, bytes| Piece { file, byte, word: part.offset, bytes };
        if checkpoint.is_packed(&name) {
            let parts = shards_of(n, k, format);
            let own = self.job.projection_shards(
                &self.config.shape(),
                block,
                part.projection,
                self.plan.max_shard_bytes,
            );
            let part_bytes = checkpoint.stored_bytes(&values_name(&name, 0))?;
            let limit = (self.device.info().name.as_str(), self.plan.max_shard_bytes);
            check_parts(&name, &parts, part_bytes, &own, limit)?;
            let stored = match part.scales {
                true => scales_name(&name, part.index),
                false => values_name(&name, part.index),
            };
            let bytes = checkpoint.stored_bytes(&stored)?;
            let (file, byte) = checkpoint.place(&stored)?;
            return Ok(piece(file, byte, bytes));
        }
        let tensor = checkpoint.weight(self.config, block as usize, part.projection)?;
        let same = dense_format(tensor.dtype) == format && tensor.is_plain();
        ensure!(
            same && (format == Format::F32 || k.is_multiple_of(2)),
            "the weights of layer {block} would have to be converted each time that they are \
             streamed: compress the model first (compress --target-bits), or leave out --bits"
        );
        let stride = u64::from(k) * tensor.dtype.bytes() as u64;
        let place = self.config.weight_place(block as usize, part.projection);
        let (file, byte) = checkpoint.place(&place.name)?;
        let first = byte + (place.rows.start as u64 + u64::from(part.shard.row0)) * stride;
        Ok(piece(file, first, u64::from(part.shard.rows) * stride))
    }

    fn lora(&self, block: u32, projection: Projection) -> Option<Lora> {
        let Trained::Lora { rank, .. } = self.job.trained else { return None };
        let owner = self.config.shape().adapter_of(projection);
        let (a, _) = self.parameter(Owner::LoraA(block, owner))?;
        let (b, _) = self.parameter(Owner::LoraB(block, projection))?;
        Some(Lora { rank, scale: self.lora_scale, a, b, shared: owner != projection })
    }

    /// The exits, each with a copy of the final norm, or all with the final norm itself.
    pub(super) fn exits(&mut self) -> Result<Vec<Exit>> {
        let windows = self.job.windows.clone();
        if self.full() {
            let values = self.final_norm()?;
            let norm = self.norm(&values, "norm", Owner::ExitNorm(0))?;
            return Ok(vec![Exit { after: windows[0].end, norm, term: None }]);
        }
        let values = self.final_norm()?;
        let words: Vec<u32> = bytemuck::cast_slice(&values).to_vec();
        let shared = match self.job.exit_norms {
            true => None,
            false => Some(self.pool.filled("norm", &words)?),
        };
        let mut exits = Vec::new();
        for (t, window) in windows.iter().enumerate() {
            let norm = match self.parameter(Owner::ExitNorm(t as u32)) {
                Some((parameter, _)) => {
                    self.device.write(&parameter.value, &words)?;
                    Norm { weight: parameter.value, grad: parameter.grad }
                }
                None => {
                    let weight = shared.clone().context("a planned norm")?;
                    Norm { weight, grad: None }
                }
            };
            exits.push(Exit { after: window.end, norm, term: self.exit_term(t as u32) });
        }
        Ok(exits)
    }

    fn exit_term(&self, exit: u32) -> Option<Lora> {
        let (a, _) = self.parameter(Owner::ExitA(exit))?;
        let (b, _) = self.parameter(Owner::ExitB(exit))?;
        let (rank, scale) = (self.job.exit_rank, self.lora_scale);
        Some(Lora { rank, scale, a, b, shared: false })
    }
}

/// Starts all that is trained beside the base.
pub(super) fn init(blocks: &[Block], exits: &[Exit], device: &Device, seed: u64) -> Result<()> {
    init_adapters(blocks, 0..blocks.len(), device, seed)?;
    init_exits(exits, device, seed)
}

/// Starts the adapters of some blocks as peft does: `A` uniform in ±1/√K (Kaiming with a = √5),
/// `B` zero. A block's are the same whichever blocks are started with it.
pub(super) fn init_adapters(
    blocks: &[Block],
    started: Range<usize>,
    device: &Device,
    seed: u64,
) -> Result<()> {
    let mut rng = SeededRng::seed_from_u64(seed);
    for (index, block) in blocks.iter().enumerate().take(started.end) {
        for linear in &block.linears {
            let Some(lora) = &linear.lora else { continue };
            if started.contains(&index) {
                let zeros = vec![0; lora.b.value.words() as usize];
                device.write(&lora.b.value, &zeros)?;
            }
            // Another projection has started it.
            if lora.shared {
                continue;
            }
            let values = draw_a(lora, &mut rng);
            if started.contains(&index) {
                device.write(&lora.a.value, bytemuck::cast_slice(&values))?;
            }
        }
    }
    Ok(())
}

/// Values for an adapter's `A [r, K]`.
fn draw_a(lora: &Lora, rng: &mut SeededRng) -> Vec<f32> {
    let count = lora.a.value.words();
    let bound = 1.0 / ((count / u64::from(lora.rank)) as f32).sqrt();
    (0..count).map(|_| rng.random_range(-bound..bound)).collect()
}

/// Starts the exits' low-rank terms as [`init_adapters`] does adapters: they add nothing yet.
fn init_exits(exits: &[Exit], device: &Device, seed: u64) -> Result<()> {
    // Another stream of numbers than the adapters'.
    let mut rng = SeededRng::seed_from_u64(seed ^ 0x6578_6974);
    for term in exits.iter().filter_map(|exit| exit.term.as_ref()) {
        device.write(&term.b.value, &vec![0; term.b.value.words() as usize])?;
        device.write(&term.a.value, bytemuck::cast_slice(&draw_a(term, &mut rng)))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::message;

    #[test]
    fn a_device_that_binds_less_than_a_part_is_refused() {
        // Gate of Llama 2 7B: 47.9 MB in 8 bits.
        let name = weight_name(3, Projection::Gate);
        let parts = shards_of(11008, 4096, Format::Q8);
        let check = |max_bytes| {
            let shards = projection_shards(11008, 4096, Format::Q8, max_bytes);
            check_parts(&name, &parts, 45_088_768, &shards, ("a phone", max_bytes))
        };
        assert!(check(64 << 20).is_ok());
        let error = message(check(32 << 20));
        assert!(error.contains(&name) && error.contains("a phone binds 33554432"), "{error}");
    }
}
