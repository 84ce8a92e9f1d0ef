//! Attention inside a block: `attention(rope(Q n), rope(K n), V n)`, forward and backward.
//!
//! Some families add biases to q, k and v, and some normalise each head of q and k before the
//! rotation: `q = rms_norm(Q n + b)`, a norm over rows of a head's width.

use anyhow::Result;
use edge_gpu::{Recorder, Slice};
use edge_kernels::ops::activation::{bias_add, bias_grad};
use edge_kernels::ops::attention::{
    RopeScaling as Scaling, attention_backward_kv, attention_backward_q, attention_delta,
    attention_forward, rope, rope_table,
};
use edge_kernels::ops::matmul::sum_partials;
use edge_kernels::ops::norm::rms_norm_forward;
use edge_scheduler::plan::NORM_GRAD_PARTS;
use edge_scheduler::{BlockVector, Job, Projection};

use super::block::{Geometry, norm_gradients};
use super::linear::Target;
use super::workspace::{Backward, BeforeNorm, Pool, Slot};
use super::{Block, Model, Norm};
use crate::config::{ModelConfig, RopeScaling};

/// The bias of a projection.
fn bias(block: &Block, projection: Projection) -> Option<&Norm> {
    match projection {
        Projection::Q => block.find(BlockVector::QBias),
        Projection::K => block.find(BlockVector::KBias),
        Projection::V => block.find(BlockVector::VBias),
        _ => None,
    }
}

/// The norm of a projection's heads, and its place among those that are kept.
fn head_norm(block: &Block, projection: Projection) -> Option<(&Norm, usize)> {
    match projection {
        Projection::Q => block.find(BlockVector::QNorm).map(|norm| (norm, 0)),
        Projection::K => block.find(BlockVector::KNorm).map(|norm| (norm, 1)),
        _ => None,
    }
}

fn scaling(config: &RopeScaling) -> Scaling {
    match *config {
        RopeScaling::None => Scaling::None,
        RopeScaling::Linear { factor } => Scaling::Linear { factor },
        RopeScaling::Llama3 {
            factor,
            low_freq_factor,
            high_freq_factor,
            original_max_position_embeddings,
        } => Scaling::Llama3 {
            factor,
            low_freq_factor,
            high_freq_factor,
            original_max_position_embeddings: original_max_position_embeddings as f64,
        },
    }
}

/// Cosines and sines of all positions, and those of blocks with a window where they have others.
pub(super) fn ropes(
    pool: &mut Pool<'_>,
    config: &ModelConfig,
    job: &Job,
) -> Result<(Slice, Option<Slice>)> {
    let head_dim = config.shape().head_dim;
    let mut fill = |name, theta, scaling| {
        let table = rope_table(job.positions, head_dim, theta, scaling);
        pool.filled(name, bytemuck::cast_slice(&table))
    };
    let whole = fill("rope", config.rope_theta, scaling(&config.rope_scaling))?;
    let local = config.local_rope_theta.map(|theta| fill("rope_local", theta, Scaling::None));
    Ok((whole, local.transpose()?))
}

impl Model {
    fn attention_params(&self, block: &Block, g: Geometry) -> attention_forward::Params {
        let window = self.config.sliding_window.filter(|_| block.windowed);
        attention_forward::Params {
            batch: g.batch,
            q_len: g.seq_len,
            kv_len: g.position0 + g.seq_len,
            kv_stride: self.job.cache.unwrap_or(g.seq_len),
            position0: g.position0,
            heads: self.shape.num_heads,
            kv_heads: self.shape.num_kv_heads,
            head_dim: self.shape.head_dim,
            window: window.unwrap_or(0) as u32,
            scale: self.config.attention_scale,
        }
    }

    /// Writes the samples that a pass's sequences hold to the device.
    ///
    /// # Errors
    /// As [`Model::set_batch`].
    pub(crate) fn set_segments(&self, segments: &[[u32; 2]], g: Geometry) -> Result<()> {
        let of_batch = &self.workspace.segments[g.micro_batch as usize];
        self.write_head(of_batch, segments.as_flattened())
    }

    /// The samples that a pass's sequences hold.
    fn segments(&self, g: Geometry) -> &Slice {
        &self.workspace.segments[g.micro_batch as usize]
    }

    /// Rotates the heads `at` a place, or back.
    fn rotate(
        &self,
        recorder: &mut Recorder,
        block: &Block,
        g: Geometry,
        heads: u32,
        at: (&Slice, u32),
        back: bool,
    ) {
        let params = rope::Params {
            rows: g.rows(),
            seq_len: g.seq_len,
            heads,
            head_dim: self.shape.head_dim,
            position0: g.position0,
            offset: at.1,
            inverse: back.into(),
        };
        let local = self.local_rope.as_ref().filter(|_| block.windowed);
        let table = local.unwrap_or(&self.rope);
        let segments = self.segments(g).clone();
        recorder.push(rope::dispatch(params, table.clone(), segments, at.0.clone()));
    }

    /// Queries, keys and values of the workspace's `normed`, and the attention output.
    pub(super) fn attention(&self, recorder: &mut Recorder, index: u32, slot: &Slot, g: Geometry) {
        let (ws, shape) = (&self.workspace, &self.shape);
        let block = &self.blocks[index as usize];
        let behind = if g.base && self.job.isolated { shape.num_blocks } else { 0 };
        let cache = ws.cache.get((index + behind) as usize);
        let (k, v, at) = match (cache, &slot.k, &slot.v) {
            (Some((k, v)), ..) => (k, v, g.position0 * shape.kv_dim()),
            (None, Some(k), Some(v)) => (k, v, 0),
            _ => unreachable!("a slot has keys and values where there is no cache"),
        };
        let into_cache = |slice| Target { slice, offset: at, accumulate: false };
        let targets = [Target::set(&slot.q), into_cache(k), into_cache(v)];
        for (p, y) in [Projection::Q, Projection::K, Projection::V].into_iter().zip(targets) {
            self.project(recorder, block, p, slot, y, g);
        }
        self.rotate(recorder, block, g, shape.num_heads, (&slot.q, 0), false);
        self.rotate(recorder, block, g, shape.num_kv_heads, (k, at), false);
        recorder.push(attention_forward::dispatch(
            self.attention_params(block, g),
            slot.q.clone(),
            k.clone(),
            v.clone(),
            self.segments(g).clone(),
            slot.attention.clone(),
            slot.lse.clone(),
        ));
    }

    /// Queries, keys or values before the rotation.
    fn project(
        &self,
        recorder: &mut Recorder,
        block: &Block,
        p: Projection,
        slot: &Slot,
        y: Target<'_>,
        g: Geometry,
    ) {
        let (rows, head_dim) = (g.rows(), self.shape.head_dim);
        let (cols, _) = self.shape.projection(p);
        let norm = head_norm(block, p);
        // What is not kept lies where attention will write: its output and its sums.
        let scratch = || BeforeNorm { x: slot.attention.clone(), rstd: slot.lse.clone() };
        let before = norm.map(|(norm, place)| {
            let kept = slot.heads.as_ref().map(|kept| kept[place].clone());
            (norm, kept.unwrap_or_else(scratch))
        });
        let product = before.as_ref().map_or(y, |(_, before)| Target::set(&before.x));
        let lora = slot.lora.as_ref().filter(|_| !g.base);
        let inner = lora.map(|all| &all[p.index()]);
        block.linear(p).forward(recorder, rows, &self.workspace.normed, product, inner);
        if let Some(bias) = bias(block, p) {
            let params = bias_add::Params { rows, cols, offset: product.offset };
            let (b, y) = (bias.weight.clone(), product.slice.clone());
            recorder.push(bias_add::dispatch(params, b, y));
        }
        if let Some((norm, before)) = before {
            let params = rms_norm_forward::Params {
                rows: rows * (cols / head_dim),
                cols: head_dim,
                eps: self.config.rms_norm_eps,
                out_offset: y.offset,
                accumulate: 0,
            };
            let (w, y) = (norm.weight.clone(), y.slice.clone());
            recorder.push(rms_norm_forward::dispatch_to(params, before.x, w, y, before.rstd));
        }
    }

    /// From `d_attention` to the gradients at the products of q, k and v
    /// (FlashAttention-2, algorithm 2), and those of biases and norms of heads.
    pub(super) fn attention_backward<'b>(
        &self,
        recorder: &mut Recorder,
        block: &Block,
        slot: &Slot,
        back: &'b Backward,
        g: Geometry,
    ) -> [&'b Slice; 3] {
        let shape = &self.shape;
        let (Some(k), Some(v)) = (&slot.k, &slot.v) else {
            unreachable!("a model that is trained has no key-value cache")
        };
        recorder.push(attention_delta::dispatch(
            g.rows(),
            shape.num_heads,
            shape.head_dim,
            slot.attention.clone(),
            back.d_attention.clone(),
            slot.lse.clone(),
            back.stats.clone(),
        ));
        let params = self.attention_params(block, g);
        let common = || {
            let segments = self.segments(g).clone();
            let (stats, d_out) = (back.stats.clone(), back.d_attention.clone());
            (slot.q.clone(), k.clone(), v.clone(), segments, stats, d_out)
        };
        let (q, key, value, segments, stats, d_out) = common();
        recorder.push(attention_backward_q::dispatch(
            params,
            q,
            key,
            value,
            segments,
            stats,
            d_out,
            back.d_q.clone(),
        ));
        let (q, key, value, segments, stats, d_out) = common();
        recorder.push(attention_backward_kv::dispatch(
            params,
            q,
            key,
            value,
            segments,
            stats,
            d_out,
            back.d_k.clone(),
            back.d_v.clone(),
        ));
        self.rotate(recorder, block, g, shape.num_heads, (&back.d_q, 0), true);
        self.rotate(recorder, block, g, shape.num_kv_heads, (&back.d_k, 0), true);
        // The gradient at the output is not needed any more, and then that at the queries neither.
        let d_q = self.heads_backward(recorder, block, Projection::Q, slot, back, g);
        let d_k = self.heads_backward(recorder, block, Projection::K, slot, back, g);
        let products = [d_q, d_k, &back.d_v];
        for (p, dy) in [Projection::Q, Projection::K, Projection::V].into_iter().zip(products) {
            let Some(grad) = bias(block, p).and_then(|bias| bias.grad.as_ref()) else { continue };
            let (rows, (cols, _)) = (g.rows(), shape.projection(p));
            let parts = NORM_GRAD_PARTS.min(rows);
            let params = bias_grad::Params { rows, cols, parts };
            recorder.push(bias_grad::dispatch(params, dy.clone(), back.partials.clone()));
            let sum = sum_partials::Params { parts, len: cols, accumulate: 1, alpha: 1.0 };
            recorder.push(sum_partials::dispatch(sum, back.partials.clone(), grad.clone()));
        }
        products
    }

    /// The gradient at the product of q or k, of that behind its norm where it has one.
    fn heads_backward<'b>(
        &self,
        recorder: &mut Recorder,
        block: &Block,
        p: Projection,
        slot: &Slot,
        back: &'b Backward,
        g: Geometry,
    ) -> &'b Slice {
        let (dy, free) = match p {
            Projection::Q => (&back.d_q, &back.d_attention),
            _ => (&back.d_k, &back.d_q),
        };
        let (Some((norm, place)), Some(kept)) = (head_norm(block, p), &slot.heads) else {
            return dy;
        };
        let head_dim = self.shape.head_dim;
        let (cols, _) = self.shape.projection(p);
        let size = (g.rows() * (cols / head_dim), head_dim);
        norm_gradients(recorder, norm, &kept[place], size, dy, Target::set(free), back);
        free
    }
}
