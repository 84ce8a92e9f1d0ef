//! The buffers of a run: allocated from the plan by name, and nothing beside the plan.

use std::collections::HashSet;

use anyhow::{Context, Result, bail, ensure};
use edge_gpu::{Device, Slice, UploadSlot};
use edge_scheduler::{Job, ModelShape, Plan, Projection, Trained};

/// Allocates what a plan lists.
pub struct Pool<'a> {
    device: &'a Device,
    plan: &'a Plan,
    taken: HashSet<String>,
}

impl<'a> Pool<'a> {
    /// A pool from which nothing has been taken.
    pub fn new(device: &'a Device, plan: &'a Plan) -> Self {
        Self { device, plan, taken: HashSet::new() }
    }

    fn planned(&mut self, name: &str) -> Result<&'a edge_scheduler::PlannedBuffer> {
        let buffer = self.plan.buffers.iter().find(|buffer| buffer.name == name);
        let buffer = buffer.with_context(|| format!("the plan has no buffer '{name}'"))?;
        ensure!(self.taken.insert(name.to_string()), "the buffer '{name}' is allocated twice");
        Ok(buffer)
    }

    /// A planned buffer, zeroed.
    pub fn zeroed(&mut self, name: &str) -> Result<Slice> {
        let planned = self.planned(name)?;
        let buffer = self.device.buffer(name, planned.words, planned.category)?;
        Ok(buffer.whole())
    }

    /// A planned buffer that begins with these words; the slice has them alone.
    pub fn filled(&mut self, name: &str, words: &[u32]) -> Result<Slice> {
        let planned = self.planned(name)?;
        let (len, room) = (words.len() as u64, planned.words);
        ensure!(len <= room, "{len} words do not fit '{name}', which the plan gave {room} words");
        let fill = |out: &mut [u32]| out[..words.len()].copy_from_slice(words);
        let buffer = self.device.buffer_init(name, planned.category, planned.words, fill)?;
        Ok(buffer.slice(0, len))
    }

    /// A planned buffer whose words are written in place, all of them.
    pub fn filled_with(&mut self, name: &str, fill: impl FnOnce(&mut [u32])) -> Result<Slice> {
        let planned = self.planned(name)?;
        let buffer = self.device.buffer_init(name, planned.category, planned.words, fill)?;
        Ok(buffer.whole())
    }

    /// A planned transfer slot, with its staging memory where the plan has that.
    pub fn slot(&mut self, name: &str) -> Result<UploadSlot> {
        let planned = self.planned(name)?;
        let staging = format!("{name}.staging");
        if self.words(&staging).is_some() {
            self.taken.insert(staging);
        }
        Ok(self.device.upload_slot(name, planned.words, planned.category)?)
    }

    /// How many buffers have names that begin so.
    pub fn count(&self, prefix: &str) -> usize {
        self.plan.buffers.iter().filter(|buffer| buffer.name.starts_with(prefix)).count()
    }

    /// The size of a planned buffer in words; `None` where the plan has none of that name.
    pub fn words(&self, name: &str) -> Option<u64> {
        self.plan.words(name)
    }

    /// Checks that plan and allocation agree.
    pub fn finish(self) -> Result<()> {
        for buffer in &self.plan.buffers {
            if !self.taken.contains(&buffer.name) {
                bail!("the plan lists '{}', which nothing uses", buffer.name);
            }
        }
        Ok(())
    }
}

/// What a block reads and writes in a forward pass, and keeps for its backward pass.
#[derive(Clone, Debug)]
pub struct Slot {
    /// Block input `[tokens, d]`; without training the residual stream itself, updated in place.
    pub x: Slice,
    /// Residual stream between attention and MLP, kept for the backward pass.
    pub x_mid: Option<Slice>,
    /// Queries after RoPE.
    pub q: Slice,
    /// Keys after RoPE; `None` where a key-value cache holds them.
    pub k: Option<Slice>,
    /// Values.
    pub v: Option<Slice>,
    /// Attention output before `o_proj`.
    pub attention: Slice,
    /// Log-sum-exp of each query's scores.
    pub lse: Slice,
    /// Gate; its gradient after `swiglu_backward`.
    pub gate: Slice,
    /// Up; its gradient after `swiglu_backward`.
    pub up: Slice,
    /// `x·Aᵀ` of each projection, by [`Projection::index`].
    pub lora: Option<Vec<Slice>>,
    /// What the norms of the heads of q and of k read, kept for the backward pass.
    pub heads: Option<[BeforeNorm; 2]>,
    /// What the norms of the outputs of attention and of the MLP read, likewise.
    pub branches: Option<[BeforeNorm; 2]>,
}

/// What a norm inside a block reads.
#[derive(Clone, Debug)]
pub struct BeforeNorm {
    /// Its input.
    pub x: Slice,
    /// Its reciprocal root mean square, by row.
    pub rstd: Slice,
}

/// Scratch of the backward pass.
#[derive(Clone, Debug)]
pub struct Backward {
    /// Gradient at the residual stream.
    pub d_x: Slice,
    /// Of each row its place among those that count; `u32::MAX` for others.
    pub places: Slice,
    /// Gradient at a norm's output.
    pub d_normed: Slice,
    /// Gradient at the SwiGLU output.
    pub d_hidden: Slice,
    /// Gradient at the attention output.
    pub d_attention: Slice,
    /// Gradient at the queries.
    pub d_q: Slice,
    /// Gradient at the keys.
    pub d_k: Slice,
    /// Gradient at the values.
    pub d_v: Slice,
    /// Log-sum-exp and `rowsum(dO ∘ O)` of each query, for the attention backward pass.
    pub stats: Slice,
    /// Gradient at `x·Aᵀ`.
    pub d_lora: Option<Slice>,
    /// Gradient at `exit_inner`.
    pub d_exit_inner: Option<Slice>,
    /// Segments and token order of the embedding's gradient (method `full`).
    pub scatter: Option<(Slice, Slice)>,
    /// Partial sums.
    pub partials: Slice,
    /// Partial sums of squares of the gradient norm.
    pub norm_partials: Slice,
    /// Gradient norm and clip factor.
    pub clip: Slice,
}

/// What calibration needs beside a forward pass.
#[derive(Clone, Debug)]
pub struct CalibrationBuffers {
    /// The final norm's output of the distribution that another is compared with.
    pub normed: Slice,
    /// A chunk of its logits.
    pub logits: Slice,
    /// Its row statistics.
    pub stats: Slice,
    /// Divergence of each row.
    pub kl: Slice,
    /// Sums of second moments.
    pub moments: Vec<Slice>,
}

/// All buffers that are neither weights nor parameters.
#[derive(Clone, Debug)]
pub struct Workspace {
    /// Token ids.
    pub ids: Slice,
    /// Target ids, `IGNORE` where the loss does not count.
    pub targets: Slice,
    /// The samples of sequences, `[rows, 2]` ([`Batch::segments`](crate::batch::Batch)), of each
    /// micro-batch where those wait for each other. Zeros, which a forward pass reads as one
    /// sample a sequence, until a batch is set.
    pub segments: Vec<Slice>,
    /// Numbers of the rows whose targets count.
    pub counted: Slice,
    /// A norm's output.
    pub normed: Slice,
    /// A norm's reciprocal root mean square, by row.
    pub rstd: Slice,
    /// SwiGLU output.
    pub hidden: Slice,
    /// A chunk of logits; in `hidden` where the plan says so.
    pub logits: Slice,
    /// `x·Aᵀ` of an exit's low-rank term for a chunk of logits, `[tokens, r]`.
    pub exit_inner: Option<Slice>,
    /// Sum of losses and count of counted tokens.
    pub loss: Slice,
    /// Row statistics of each exit's softmax.
    pub stats: Vec<Slice>,
    /// Combined probabilities of a vote and their row statistics.
    pub votes: Option<(Slice, Slice)>,
    /// Inputs of the window's blocks by depth, where their activations are recomputed; without
    /// the top block's.
    pub kept: Vec<Slice>,
    /// Slot 0 with the residual streams of micro-batches that wait for each other.
    pub streams: Vec<Slot>,
    /// Kept activations by depth in the window, or one for all; slot 0 also serves the trunk.
    pub slots: Vec<Slot>,
    /// Output of the window's last block.
    pub x_out: Option<Slice>,
    /// Key-value cache of each block; with isolated windows the base's stream has its own behind
    /// them.
    pub cache: Vec<(Slice, Slice)>,
    /// The residual stream at each exit, where exits are compared.
    pub exits: Vec<Slice>,
    /// Scratch of the backward pass.
    pub backward: Option<Backward>,
    /// What calibration needs.
    pub calibration: Option<CalibrationBuffers>,
}

impl Workspace {
    /// Allocates the workspace of a job.
    pub fn new(pool: &mut Pool<'_>, job: &Job, shape: &ModelShape) -> Result<Self> {
        let slots = (0..job.slots()).map(|slot| Slot::new(pool, job, shape, slot));
        let slots = slots.collect::<Result<Vec<_>>>()?;
        let stats = if job.vote { job.windows.len() } else { 1 };
        let caches = job.caches(shape.num_blocks);
        let exits = if job.vote { job.windows.len() } else { 0 };
        let hidden = pool.zeroed("hidden")?;
        let in_hidden = pool.plan.logits.in_hidden;
        Ok(Self {
            ids: pool.zeroed("ids")?,
            targets: pool.zeroed("targets")?,
            segments: (0..job.streams.max(1))
                .map(|micro_batch| pool.zeroed(&format!("segments.{micro_batch}")))
                .collect::<Result<_>>()?,
            counted: pool.zeroed("counted")?,
            normed: pool.zeroed("normed")?,
            rstd: pool.zeroed("rstd")?,
            logits: if in_hidden { hidden.clone() } else { pool.zeroed("logits")? },
            hidden,
            exit_inner: match job.exit_rank {
                0 => None,
                _ => Some(pool.zeroed("exit_inner")?),
            },
            loss: pool.zeroed("loss")?,
            stats: (0..stats)
                .map(|exit| pool.zeroed(&format!("stats.{exit}")))
                .collect::<Result<_>>()?,
            votes: match job.vote {
                true => Some((pool.zeroed("votes")?, pool.zeroed("vote_stats")?)),
                false => None,
            },
            kept: (0..job.kept_inputs())
                .map(|kept| pool.zeroed(&format!("kept.{kept}.x")))
                .collect::<Result<_>>()?,
            streams: (0..job.streams)
                .map(|stream| {
                    let x = pool.zeroed(&format!("micro.{stream}.x"))?;
                    Ok(Slot { x, ..slots[0].clone() })
                })
                .collect::<Result<_>>()?,
            slots,
            x_out: if job.training { Some(pool.zeroed("x_out")?) } else { None },
            cache: (0..caches)
                .map(|block| {
                    let k = pool.zeroed(&format!("cache.{block}.k"))?;
                    Ok((k, pool.zeroed(&format!("cache.{block}.v"))?))
                })
                .collect::<Result<_>>()?,
            exits: (0..exits)
                .map(|exit| pool.zeroed(&format!("exit.{exit}.x")))
                .collect::<Result<_>>()?,
            backward: if job.training { Some(Backward::new(pool, job)?) } else { None },
            calibration: match job.calibration {
                Some(_) => Some(CalibrationBuffers::new(pool)?),
                None => None,
            },
        })
    }
}

impl Slot {
    fn new(pool: &mut Pool<'_>, job: &Job, shape: &ModelShape, slot: u32) -> Result<Self> {
        let mut take = |name: &str| pool.zeroed(&format!("slot.{slot}.{name}"));
        let kv = job.cache.is_none();
        let lora = matches!(job.trained, Trained::Lora { .. });
        Ok(Self {
            x: take("x")?,
            x_mid: if job.training { Some(take("x_mid")?) } else { None },
            q: take("q")?,
            k: if kv { Some(take("k")?) } else { None },
            v: if kv { Some(take("v")?) } else { None },
            attention: take("attention")?,
            lse: take("lse")?,
            gate: take("gate")?,
            up: take("up")?,
            lora: if lora {
                let mut inner: Vec<Slice> = Vec::with_capacity(Projection::ALL.len());
                for projection in Projection::ALL {
                    let owner = shape.adapter_of(projection);
                    inner.push(match owner == projection {
                        true => take(&format!("lora.{}", projection.name()))?,
                        false => inner[owner.index()].clone(),
                    });
                }
                Some(inner)
            } else {
                None
            },
            heads: match job.training && shape.extras.head_norms {
                true => Some([
                    BeforeNorm::new(&mut take, ["q_raw", "q_rstd"])?,
                    BeforeNorm::new(&mut take, ["k_raw", "k_rstd"])?,
                ]),
                false => None,
            },
            branches: match job.training && shape.extras.branch_norms {
                true => Some([
                    BeforeNorm::new(&mut take, ["attention_out", "attention_rstd"])?,
                    BeforeNorm::new(&mut take, ["mlp_out", "mlp_rstd"])?,
                ]),
                false => None,
            },
        })
    }
}

impl BeforeNorm {
    fn new(take: &mut impl FnMut(&str) -> Result<Slice>, [x, rstd]: [&str; 2]) -> Result<Self> {
        Ok(Self { x: take(x)?, rstd: take(rstd)? })
    }
}

impl CalibrationBuffers {
    fn new(pool: &mut Pool<'_>) -> Result<Self> {
        Ok(Self {
            normed: pool.zeroed("reference.normed")?,
            logits: pool.zeroed("reference.logits")?,
            stats: pool.zeroed("reference.stats")?,
            kl: pool.zeroed("kl")?,
            moments: (0..pool.count("moments."))
                .map(|index| pool.zeroed(&format!("moments.{index}")))
                .collect::<Result<_>>()?,
        })
    }
}

impl Backward {
    fn new(pool: &mut Pool<'_>, job: &Job) -> Result<Self> {
        let full = job.trained == Trained::Full;
        let lora = matches!(job.trained, Trained::Lora { .. });
        Ok(Self {
            d_x: pool.zeroed("d_x")?,
            places: pool.zeroed("places")?,
            d_normed: pool.zeroed("d_normed")?,
            d_hidden: pool.zeroed("d_hidden")?,
            d_attention: pool.zeroed("d_attention")?,
            d_q: pool.zeroed("d_q")?,
            d_k: pool.zeroed("d_k")?,
            d_v: pool.zeroed("d_v")?,
            stats: pool.zeroed("attention_stats")?,
            d_lora: if lora { Some(pool.zeroed("d_lora")?) } else { None },
            d_exit_inner: match job.exit_rank {
                0 => None,
                _ => Some(pool.zeroed("d_exit_inner")?),
            },
            scatter: if full {
                let segments = pool.zeroed("scatter_segments")?;
                Some((segments, pool.zeroed("scatter_order")?))
            } else {
                None
            },
            partials: pool.zeroed("partials")?,
            norm_partials: pool.zeroed("norm_partials")?,
            clip: pool.zeroed("clip")?,
        })
    }
}
