//! A Llama block, forward and backward.
//!
//! `x_mid = x + O(attention(rope(Q n), rope(K n), V n))`, n = rms_norm(x);
//! `x_out = x_mid + Down(silu(Gate m) * Up m)`, m = rms_norm(x_mid).
//!
//! The forward pass of a block that is trained keeps `x`, `q`, `k`, `v`, the attention output,
//! `x_mid`, `gate` and `up`; norms and the SwiGLU product are computed again on the way back. A
//! block of the trunk keeps nothing and updates the residual stream in place. Where the stream is
//! kept anyway, a branch goes to the workspace's `normed` first, and `residual_rms_norm` makes the
//! next residual stream and the next norm's output of it in one pass.
//!
//! Calibration taps the same pass: it is shown what each linear layer is about to read.

use edge_gpu::{Recorder, Slice};
use edge_kernels::ops::activation::{swiglu_backward, swiglu_forward};
use edge_kernels::ops::attention::{
    attention_backward_kv, attention_backward_q, attention_delta, attention_forward, rope,
};
use edge_kernels::ops::matmul::sum_partials;
use edge_kernels::ops::memory::copy;
use edge_kernels::ops::norm::residual_rms_norm;
use edge_kernels::ops::norm::{rms_norm_backward, rms_norm_forward, rms_norm_grad};
use edge_scheduler::plan::NORM_GRAD_PARTS;
use edge_scheduler::{LinearInput, Projection};

use super::linear::{LinearScratch, Target};
use super::workspace::Slot;
use super::{Model, Norm};

/// Sequences and positions of a pass.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Geometry {
    /// Sequences.
    pub batch: u32,
    /// Tokens of each sequence in this pass.
    pub seq_len: u32,
    /// Position of the first token; above 0 only with a key-value cache and one sequence.
    pub position0: u32,
    /// Adapters are left out: the base's own stream.
    pub base: bool,
}

impl Geometry {
    /// Whole sequences, from position 0.
    pub fn sequences(batch: u32, seq_len: u32) -> Self {
        Self { batch, seq_len, position0: 0, base: false }
    }

    /// The same without adapters.
    pub(crate) fn of_base(self) -> Self {
        Self { base: true, ..self }
    }

    /// Tokens in the pass.
    pub fn rows(self) -> u32 {
        self.batch * self.seq_len
    }
}

/// Called with the input of linear layers that are about to be recorded.
pub(crate) type Tap<'a> = &'a mut dyn FnMut(&mut Recorder, LinearInput, &Slice);

/// Where the residual stream of a block goes on.
#[derive(Clone, Copy)]
pub(super) enum Onward<'a> {
    /// In place: a block of the trunk, which keeps nothing.
    InPlace,
    /// Everything that the backward pass needs is kept, and the result goes here.
    Kept(&'a Slice),
    /// The same, and the result is also normalised for the next block.
    Normed(&'a Slice, &'a Norm),
}

impl Model {
    /// Normalises `x` into the workspace's `normed`, with `rstd` beside it.
    pub(super) fn norm(&self, recorder: &mut Recorder, rows: u32, x: &Slice, norm: &Norm) {
        self.norm_into(recorder, rows, x, norm, &self.workspace.normed);
    }

    /// Normalises `x [rows, d]` into `out`, with `rstd` in the workspace.
    pub(super) fn norm_into(
        &self,
        recorder: &mut Recorder,
        rows: u32,
        x: &Slice,
        norm: &Norm,
        out: &Slice,
    ) {
        let (ws, eps) = (&self.workspace, self.config.rms_norm_eps);
        recorder.push(rms_norm_forward::dispatch(
            rows,
            self.shape.hidden_size,
            eps,
            x.clone(),
            norm.weight.clone(),
            out.clone(),
            ws.rstd.clone(),
        ));
    }

    /// Gradient of a norm: its weight's where that is trained, then `d_x (+)= Jᵀ d_normed`. The
    /// workspace's `rstd` must be of this norm.
    pub(super) fn norm_backward(
        &self,
        recorder: &mut Recorder,
        rows: u32,
        x: &Slice,
        norm: &Norm,
        accumulate: bool,
    ) {
        let ws = &self.workspace;
        let Some(back) = &ws.backward else { return };
        let d = self.shape.hidden_size;
        let (x, rstd) = (x.clone(), ws.rstd.clone());
        if let Some(grad) = &norm.grad {
            let parts = NORM_GRAD_PARTS.min(rows);
            recorder.push(rms_norm_grad::dispatch(
                rows,
                d,
                parts,
                x.clone(),
                rstd.clone(),
                back.d_normed.clone(),
                back.partials.clone(),
            ));
            let sum = sum_partials::Params { parts, len: d, accumulate: 1, alpha: 1.0 };
            recorder.push(sum_partials::dispatch(sum, back.partials.clone(), grad.clone()));
        }
        recorder.push(rms_norm_backward::dispatch(
            rows,
            d,
            accumulate,
            x,
            norm.weight.clone(),
            rstd,
            back.d_normed.clone(),
            back.d_x.clone(),
        ));
    }

    fn attention_params(&self, g: Geometry) -> attention_forward::Params {
        attention_forward::Params {
            batch: g.batch,
            q_len: g.seq_len,
            kv_len: g.position0 + g.seq_len,
            kv_stride: self.job.cache.unwrap_or(g.seq_len),
            position0: g.position0,
            heads: self.shape.num_heads,
            kv_heads: self.shape.num_kv_heads,
            head_dim: self.shape.head_dim,
            window: self.config.sliding_window.unwrap_or(0) as u32,
            scale: 1.0 / (self.shape.head_dim as f32).sqrt(),
        }
    }

    fn rope(
        &self,
        recorder: &mut Recorder,
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
        recorder.push(rope::dispatch(params, self.rope.clone(), at.0.clone()));
    }

    /// Runs block `index` on `slot.x`; `normed` says that the block below has normalised it.
    pub(super) fn block_forward(
        &self,
        recorder: &mut Recorder,
        index: u32,
        slot: &Slot,
        onward: Onward<'_>,
        normed: bool,
        g: Geometry,
    ) {
        self.block_forward_tapped(recorder, index, slot, onward, normed, g, &mut |_, _, _| {});
    }

    /// As [`Model::block_forward`]; `tap` is called with the inputs of the linear layers, as
    /// `[rows, k]` each, before these are recorded.
    pub(super) fn block_forward_tapped(
        &self,
        recorder: &mut Recorder,
        index: u32,
        slot: &Slot,
        onward: Onward<'_>,
        normed: bool,
        g: Geometry,
        tap: Tap<'_>,
    ) {
        self.acquire(recorder, index);
        let (ws, rows) = (&self.workspace, g.rows());
        let block = &self.blocks[index as usize];
        let lora = slot.lora.as_ref().filter(|_| !g.base);
        let inner = |p: Projection| lora.map(|all| &all[p.index()]);
        let linear = |recorder: &mut Recorder, p: Projection, x: &Slice, y: Target<'_>| {
            block.linear(p).forward(recorder, rows, x, y, inner(p));
        };
        if !normed {
            self.norm(recorder, rows, &slot.x, &block.input_norm);
        }
        tap(recorder, LinearInput::Attention, &ws.normed);
        self.attention(recorder, index, slot, g);
        tap(recorder, LinearInput::AttentionOutput, &slot.attention);
        let mid = match (onward, &slot.x_mid) {
            (Onward::InPlace, _) | (_, None) => {
                linear(recorder, Projection::O, &slot.attention, Target::add(&slot.x));
                self.norm(recorder, rows, &slot.x, &block.post_norm);
                &slot.x
            }
            (_, Some(mid)) => {
                linear(recorder, Projection::O, &slot.attention, Target::set(&ws.normed));
                self.add_and_norm(recorder, rows, &slot.x, mid, &block.post_norm);
                mid
            }
        };
        tap(recorder, LinearInput::Mlp, &ws.normed);
        linear(recorder, Projection::Gate, &ws.normed, Target::set(&slot.gate));
        let up = block.linear(Projection::Up);
        if up.lora.is_none() || lora.is_none() {
            let kept = (!matches!(onward, Onward::InPlace)).then_some(&slot.up);
            up.matrix.forward_gated(recorder, rows, &ws.normed, &slot.gate, &ws.hidden, kept);
        } else {
            linear(recorder, Projection::Up, &ws.normed, Target::set(&slot.up));
            self.swiglu(recorder, rows, slot);
        }
        tap(recorder, LinearInput::Hidden, &ws.hidden);
        match onward {
            Onward::InPlace => linear(recorder, Projection::Down, &ws.hidden, Target::add(mid)),
            Onward::Kept(out) => {
                self.copy_rows(recorder, rows, mid, out);
                linear(recorder, Projection::Down, &ws.hidden, Target::add(out));
            }
            Onward::Normed(out, norm) => {
                linear(recorder, Projection::Down, &ws.hidden, Target::set(&ws.normed));
                self.add_and_norm(recorder, rows, mid, out, norm);
            }
        }
    }

    /// Queries, keys and values of the workspace's `normed`, and the attention output.
    fn attention(&self, recorder: &mut Recorder, index: u32, slot: &Slot, g: Geometry) {
        let (ws, shape, rows) = (&self.workspace, &self.shape, g.rows());
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
            let lora = slot.lora.as_ref().filter(|_| !g.base);
            let inner = lora.map(|all| &all[p.index()]);
            block.linear(p).forward(recorder, rows, &ws.normed, y, inner);
        }
        self.rope(recorder, g, shape.num_heads, (&slot.q, 0), false);
        self.rope(recorder, g, shape.num_kv_heads, (k, at), false);
        recorder.push(attention_forward::dispatch(
            self.attention_params(g),
            slot.q.clone(),
            k.clone(),
            v.clone(),
            slot.attention.clone(),
            slot.lse.clone(),
        ));
    }

    /// Copies a residual stream `[rows, d]`.
    pub(crate) fn copy_rows(&self, recorder: &mut Recorder, rows: u32, from: &Slice, to: &Slice) {
        let count = rows * self.shape.hidden_size;
        let params = copy::Params { count, src_offset: 0, dst_offset: 0 };
        recorder.push(copy::dispatch(params, from.clone(), to.clone()));
    }

    /// `sum = x + normed`, and `normed` becomes the norm of that: what a branch left in the
    /// workspace's `normed` goes on to the next one.
    fn add_and_norm(
        &self,
        recorder: &mut Recorder,
        rows: u32,
        x: &Slice,
        sum: &Slice,
        norm: &Norm,
    ) {
        let ws = &self.workspace;
        let (cols, eps) = (self.shape.hidden_size, self.config.rms_norm_eps);
        recorder.push(residual_rms_norm::dispatch(
            residual_rms_norm::Params { rows, cols, eps },
            x.clone(),
            norm.weight.clone(),
            ws.normed.clone(),
            sum.clone(),
            ws.rstd.clone(),
        ));
    }

    fn swiglu(&self, recorder: &mut Recorder, rows: u32, slot: &Slot) {
        let count = rows * self.shape.intermediate_size;
        let (gate, up) = (slot.gate.clone(), slot.up.clone());
        let hidden = self.workspace.hidden.clone();
        recorder.push(swiglu_forward::dispatch(count, gate, up, hidden));
    }

    /// Takes `d_x` at block `index`'s output back to its input and accumulates the gradients of
    /// what is trained. Without `need_input` the block is the lowest one that is trained and
    /// `d_x` is left half way.
    pub(super) fn block_backward(
        &self,
        recorder: &mut Recorder,
        index: u32,
        slot: &Slot,
        need_input: bool,
        g: Geometry,
    ) {
        self.acquire(recorder, index);
        let (ws, rows) = (&self.workspace, g.rows());
        let block = &self.blocks[index as usize];
        let (Some(back), Some(x_mid)) = (&ws.backward, &slot.x_mid) else { return };
        let inner = |p: Projection| slot.lora.as_ref().map(|all| &all[p.index()]);
        let scratch = LinearScratch { d_lora: back.d_lora.as_ref(), partials: &back.partials };
        let linear = |recorder: &mut Recorder, p: Projection, pair, dx| {
            block.linear(p).backward(recorder, rows, pair, inner(p), dx, &scratch);
        };
        let set = |slice| Some(Target::set(slice));
        let add = |slice| Some(Target::add(slice));
        if block.linear(Projection::Down).trains() {
            self.swiglu(recorder, rows, slot);
        }
        linear(recorder, Projection::Down, (&back.d_x, &ws.hidden), set(&back.d_hidden));
        recorder.push(swiglu_backward::dispatch(
            rows * self.shape.intermediate_size,
            back.d_hidden.clone(),
            slot.gate.clone(),
            slot.up.clone(),
        ));
        self.norm(recorder, rows, x_mid, &block.post_norm);
        linear(recorder, Projection::Gate, (&slot.gate, &ws.normed), set(&back.d_normed));
        linear(recorder, Projection::Up, (&slot.up, &ws.normed), add(&back.d_normed));
        self.norm_backward(recorder, rows, x_mid, &block.post_norm, true);

        linear(recorder, Projection::O, (&back.d_x, &slot.attention), set(&back.d_attention));
        self.attention_backward(recorder, slot, g);
        self.norm(recorder, rows, &slot.x, &block.input_norm);
        let first = need_input.then(|| Target::set(&back.d_normed));
        let more = need_input.then(|| Target::add(&back.d_normed));
        linear(recorder, Projection::Q, (&back.d_q, &ws.normed), first);
        linear(recorder, Projection::K, (&back.d_k, &ws.normed), more);
        linear(recorder, Projection::V, (&back.d_v, &ws.normed), more);
        if need_input {
            self.norm_backward(recorder, rows, &slot.x, &block.input_norm, true);
        }
    }

    /// From `d_attention` to `d_q`, `d_k`, `d_v` before RoPE (FlashAttention-2, algorithm 2).
    fn attention_backward(&self, recorder: &mut Recorder, slot: &Slot, g: Geometry) {
        let (ws, shape) = (&self.workspace, &self.shape);
        let (Some(back), Some(k), Some(v)) = (&ws.backward, &slot.k, &slot.v) else { return };
        recorder.push(attention_delta::dispatch(
            g.rows(),
            shape.num_heads,
            shape.head_dim,
            slot.attention.clone(),
            back.d_attention.clone(),
            back.delta.clone(),
        ));
        let params = self.attention_params(g);
        let common = || {
            let delta = (back.delta.clone(), back.d_attention.clone());
            (slot.q.clone(), k.clone(), v.clone(), slot.lse.clone(), delta.0, delta.1)
        };
        let (q, key, value, lse, delta, d_out) = common();
        recorder.push(attention_backward_q::dispatch(
            params,
            q,
            key,
            value,
            lse,
            delta,
            d_out,
            back.d_q.clone(),
        ));
        let (q, key, value, lse, delta, d_out) = common();
        recorder.push(attention_backward_kv::dispatch(
            params,
            q,
            key,
            value,
            lse,
            delta,
            d_out,
            back.d_k.clone(),
            back.d_v.clone(),
        ));
        self.rope(recorder, g, shape.num_heads, (&back.d_q, 0), true);
        self.rope(recorder, g, shape.num_kv_heads, (&back.d_k, 0), true);
    }
}
