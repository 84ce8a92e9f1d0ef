//! A block, forward and backward.
//!
//! `x_mid = x + O(attention(rope(Q n), rope(K n), V n))`, n = rms_norm(x);
//! `x_out = x_mid + Down(silu(Gate m) * Up m)`, m = rms_norm(x_mid).
//!
//! That is Llama's. What other families have beyond it is data ([`crate::family`]): biases and
//! norms of heads (`attention.rs`), norms of what `O` and `Down` put out, GELU for SiLU.
//!
//! The forward pass of a block that is trained keeps `x`, `q`, `k`, `v`, the attention output,
//! `x_mid`, `gate` and `up`, and what norms inside the block read; norms of the stream and the
//! gated product are computed again on the way back. A block of the trunk keeps nothing and updates
//! the residual stream in place. Where the stream is kept anyway, a branch goes to the workspace's
//! `normed` first, and `residual_rms_norm` makes the next residual stream and the next norm's
//! output of it in one pass.
//!
//! Calibration taps the same pass: it is shown what each linear layer is about to read.

use edge_gpu::{Recorder, Slice};
use edge_kernels::ops::activation::{
    geglu_backward, geglu_forward, swiglu_backward, swiglu_forward,
};
use edge_kernels::ops::matmul::sum_partials;
use edge_kernels::ops::memory::copy;
use edge_kernels::ops::norm::residual_rms_norm;
use edge_kernels::ops::norm::{rms_norm_backward, rms_norm_forward, rms_norm_grad};
use edge_scheduler::plan::NORM_GRAD_PARTS;
use edge_scheduler::{BlockVector, LinearInput, Projection};

use super::linear::{Linear, LinearScratch, Target};
use super::workspace::{Backward, BeforeNorm, Slot};
use super::{Model, Norm};
use crate::family::Activation;

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
    /// Whose samples they are: that of several micro-batches that wait for each other, else 0.
    pub micro_batch: u32,
}

impl Geometry {
    /// Whole sequences, from position 0.
    pub fn sequences(batch: u32, seq_len: u32) -> Self {
        Self { batch, seq_len, position0: 0, base: false, micro_batch: 0 }
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

/// The norm of what a branch puts out.
fn out_norm(projection: Projection) -> BlockVector {
    match projection {
        Projection::Down => BlockVector::MlpOutNorm,
        _ => BlockVector::AttentionOutNorm,
    }
}

/// Gradients of a norm over `rows` of `cols` elements: its weight's where that is trained, then
/// `dx (+)= Jᵀ dy`.
pub(super) fn norm_gradients(
    recorder: &mut Recorder,
    norm: &Norm,
    before: &BeforeNorm,
    (rows, cols): (u32, u32),
    dy: &Slice,
    dx: Target<'_>,
    back: &Backward,
) {
    let (x, rstd) = (before.x.clone(), before.rstd.clone());
    if let Some(grad) = &norm.grad {
        let parts = NORM_GRAD_PARTS.min(rows);
        recorder.push(rms_norm_grad::dispatch(
            rows,
            cols,
            parts,
            x.clone(),
            rstd.clone(),
            dy.clone(),
            back.partials.clone(),
        ));
        let sum = sum_partials::Params { parts, len: cols, accumulate: 1, alpha: 1.0 };
        recorder.push(sum_partials::dispatch(sum, back.partials.clone(), grad.clone()));
    }
    recorder.push(rms_norm_backward::dispatch(
        rows,
        cols,
        dx.accumulate,
        x,
        norm.weight.clone(),
        rstd,
        dy.clone(),
        dx.slice.clone(),
    ));
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
        let before = BeforeNorm { x: x.clone(), rstd: ws.rstd.clone() };
        let dx = Target { slice: &back.d_x, offset: 0, accumulate };
        let size = (rows, self.shape.hidden_size);
        norm_gradients(recorder, norm, &before, size, &back.d_normed, dx, back);
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
            self.norm(recorder, rows, &slot.x, block.vector(BlockVector::InputNorm));
        }
        tap(recorder, LinearInput::Attention, &ws.normed);
        self.attention(recorder, index, slot, g);
        tap(recorder, LinearInput::AttentionOutput, &slot.attention);
        // A branch adds to the stream, or is left in `normed` for the next norm to add.
        let branch = |recorder: &mut Recorder, p: Projection, x: &Slice, y: Target<'_>| {
            let kept = slot.branches.as_ref().filter(|_| !matches!(onward, Onward::InPlace));
            let kept = kept.map(|kept| &kept[usize::from(p == Projection::Down)]);
            let norm = block.find(out_norm(p));
            self.branch(recorder, rows, block.linear(p), norm, (x, inner(p)), y, kept);
        };
        let mlp_norm = block.vector(BlockVector::MlpNorm);
        let mid = match (onward, &slot.x_mid) {
            (Onward::InPlace, _) | (_, None) => {
                branch(recorder, Projection::O, &slot.attention, Target::add(&slot.x));
                self.norm(recorder, rows, &slot.x, mlp_norm);
                &slot.x
            }
            (_, Some(mid)) => {
                branch(recorder, Projection::O, &slot.attention, Target::set(&ws.normed));
                self.add_and_norm(recorder, rows, &slot.x, mid, mlp_norm);
                mid
            }
        };
        tap(recorder, LinearInput::Mlp, &ws.normed);
        linear(recorder, Projection::Gate, &ws.normed, Target::set(&slot.gate));
        let up = block.linear(Projection::Up);
        let adapted = up.lora.is_some() && lora.is_some();
        if !adapted && self.config.family.activation == Activation::Silu {
            let kept = (!matches!(onward, Onward::InPlace)).then_some(&slot.up);
            up.matrix.forward_gated(recorder, rows, &ws.normed, &slot.gate, &ws.hidden, kept);
        } else {
            linear(recorder, Projection::Up, &ws.normed, Target::set(&slot.up));
            self.gated(recorder, rows, slot);
        }
        tap(recorder, LinearInput::Hidden, &ws.hidden);
        match onward {
            Onward::InPlace => branch(recorder, Projection::Down, &ws.hidden, Target::add(mid)),
            Onward::Kept(out) => {
                self.copy_rows(recorder, rows, mid, out);
                branch(recorder, Projection::Down, &ws.hidden, Target::add(out));
            }
            Onward::Normed(out, norm) => {
                branch(recorder, Projection::Down, &ws.hidden, Target::set(&ws.normed));
                self.add_and_norm(recorder, rows, mid, out, norm);
            }
        }
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

    /// `y (+)= norm(layer(x))`, without a norm `y (+)= layer(x)`. What the norm reads is `kept`, or
    /// lies in the workspace's `normed`, which `y` is not then.
    fn branch(
        &self,
        recorder: &mut Recorder,
        rows: u32,
        linear: &Linear,
        norm: Option<&Norm>,
        (x, inner): (&Slice, Option<&Slice>),
        y: Target<'_>,
        kept: Option<&BeforeNorm>,
    ) {
        let Some(norm) = norm else { return linear.forward(recorder, rows, x, y, inner) };
        let ws = &self.workspace;
        let (raw, rstd) = kept.map_or((&ws.normed, &ws.rstd), |kept| (&kept.x, &kept.rstd));
        linear.forward(recorder, rows, x, Target::set(raw), inner);
        let (cols, eps) = (self.shape.hidden_size, self.config.rms_norm_eps);
        let (out_offset, accumulate) = (y.offset, y.accumulate.into());
        recorder.push(rms_norm_forward::dispatch_to(
            rms_norm_forward::Params { rows, cols, eps, out_offset, accumulate },
            raw.clone(),
            norm.weight.clone(),
            y.slice.clone(),
            rstd.clone(),
        ));
    }

    /// The gradient at a branch's product, of that at the residual stream, and the gradient of its
    /// norm's weight: in the workspace's `d_normed` where it has a norm.
    fn branch_backward<'b>(
        &self,
        recorder: &mut Recorder,
        rows: u32,
        norm: Option<&Norm>,
        kept: Option<&BeforeNorm>,
        back: &'b Backward,
    ) -> &'b Slice {
        let (Some(norm), Some(kept)) = (norm, kept) else { return &back.d_x };
        let (size, dx) = ((rows, self.shape.hidden_size), Target::set(&back.d_normed));
        norm_gradients(recorder, norm, kept, size, &back.d_x, dx, back);
        &back.d_normed
    }

    /// What the down projection reads: `hidden = act(gate) · up`.
    fn gated(&self, recorder: &mut Recorder, rows: u32, slot: &Slot) {
        let count = rows * self.shape.intermediate_size;
        let (gate, up) = (slot.gate.clone(), slot.up.clone());
        let hidden = self.workspace.hidden.clone();
        recorder.push(match self.config.family.activation {
            Activation::Silu => swiglu_forward::dispatch(count, gate, up, hidden),
            Activation::GeluTanh => geglu_forward::dispatch(count, gate, up, hidden),
        });
    }

    /// Gradients of gate and up in their place.
    fn gated_backward(&self, recorder: &mut Recorder, rows: u32, slot: &Slot, d_hidden: &Slice) {
        let count = rows * self.shape.intermediate_size;
        let (d_hidden, gate, up) = (d_hidden.clone(), slot.gate.clone(), slot.up.clone());
        recorder.push(match self.config.family.activation {
            Activation::Silu => swiglu_backward::dispatch(count, d_hidden, gate, up),
            Activation::GeluTanh => geglu_backward::dispatch(count, d_hidden, gate, up),
        });
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
        // The gradient at the product of a branch.
        let branch = |recorder: &mut Recorder, p: Projection| {
            let kept = slot.branches.as_ref();
            let kept = kept.map(|kept| &kept[usize::from(p == Projection::Down)]);
            self.branch_backward(recorder, rows, block.find(out_norm(p)), kept, back)
        };
        if block.linear(Projection::Down).trains() {
            self.gated(recorder, rows, slot);
        }
        let d_down = branch(recorder, Projection::Down);
        linear(recorder, Projection::Down, (d_down, &ws.hidden), set(&back.d_hidden));
        self.gated_backward(recorder, rows, slot, &back.d_hidden);
        let mlp_norm = block.vector(BlockVector::MlpNorm);
        self.norm(recorder, rows, x_mid, mlp_norm);
        linear(recorder, Projection::Gate, (&slot.gate, &ws.normed), set(&back.d_normed));
        linear(recorder, Projection::Up, (&slot.up, &ws.normed), add(&back.d_normed));
        self.norm_backward(recorder, rows, x_mid, mlp_norm, true);

        let d_o = branch(recorder, Projection::O);
        linear(recorder, Projection::O, (d_o, &slot.attention), set(&back.d_attention));
        let [d_q, d_k, d_v] = self.attention_backward(recorder, block, slot, back, g);
        let input_norm = block.vector(BlockVector::InputNorm);
        self.norm(recorder, rows, &slot.x, input_norm);
        let first = need_input.then(|| Target::set(&back.d_normed));
        let more = need_input.then(|| Target::add(&back.d_normed));
        linear(recorder, Projection::Q, (d_q, &ws.normed), first);
        linear(recorder, Projection::K, (d_k, &ws.normed), more);
        linear(recorder, Projection::V, (d_v, &ws.normed), more);
        if need_input {
            self.norm_backward(recorder, rows, &slot.x, input_norm, true);
        }
    }
}
