//! Linear layers: a weight matrix in shards, and LoRA beside it.
//!
//! `y = x·Wᵀ + scale · (x·Aᵀ)·Bᵀ`, W \[N, K\], A \[r, K\], B \[N, r\]
//! (LoRA, Hu et al. 2021, eq. 3).

use anyhow::{Context, Result, ensure};
use edge_gpu::{Buffer, Device, Recorder, Slice};
use edge_kernels::Format;
use edge_kernels::format::WeightBuffers;
use edge_kernels::ops::matmul::{
    matmul_nn, matmul_nt, matmul_nt_lora, matmul_nt_swiglu, matmul_tn, sum_partials,
};
use edge_kernels::pack::PackedHost;
use edge_scheduler::Shard;

/// A tensor that may be trained.
#[derive(Clone, Debug)]
pub struct Parameter {
    /// The values, f32.
    pub value: Slice,
    /// Where its gradient accumulates; `None` while it is frozen.
    pub grad: Option<Slice>,
}

/// Some rows of a matrix on the device.
#[derive(Clone, Debug)]
pub struct MatrixShard {
    /// Which rows.
    pub shard: Shard,
    /// The stored values.
    pub weight: WeightBuffers<Slice>,
    /// Where the gradient accumulates, f32, with method `full`.
    pub grad: Option<Slice>,
    /// Room for scales and positions, also while the format has none.
    pub scales: Option<Slice>,
}

/// A matrix `[rows, cols]` in shards below the binding limit.
#[derive(Clone, Debug)]
pub struct Matrix {
    /// Output channels, or vocabulary.
    pub rows: u32,
    /// Input channels.
    pub cols: u32,
    /// The shards, in order.
    pub shards: Vec<MatrixShard>,
}

/// The adapter of a linear layer.
#[derive(Clone, Debug)]
pub struct Lora {
    /// Rank `r`.
    pub rank: u32,
    /// `alpha / r`.
    pub scale: f32,
    /// `A [r, K]`.
    pub a: Parameter,
    /// `B [N, r]`.
    pub b: Parameter,
    /// Whether `A` is that of a projection that runs before this one, of the same layer of the
    /// checkpoint: `x·Aᵀ` is there already.
    pub shared: bool,
}

/// A linear layer.
#[derive(Clone, Debug)]
pub struct Linear {
    /// The base weight.
    pub matrix: Matrix,
    /// The adapter, if this layer has one.
    pub lora: Option<Lora>,
}

/// Where a product goes.
#[derive(Clone, Copy, Debug)]
pub struct Target<'a> {
    /// The buffer.
    pub slice: &'a Slice,
    /// First element.
    pub offset: u32,
    /// Adds to what is there instead of overwriting it.
    pub accumulate: bool,
}

impl<'a> Target<'a> {
    /// Overwrites the buffer from its start.
    pub fn set(slice: &'a Slice) -> Self {
        Self { slice, offset: 0, accumulate: false }
    }

    /// Adds to the buffer from its start.
    pub fn add(slice: &'a Slice) -> Self {
        Self { slice, offset: 0, accumulate: true }
    }
}

/// A matrix that is no weight of the base, or one of its own.
pub(super) fn dense(slice: &Slice) -> WeightBuffers<Slice> {
    WeightBuffers::dense(Format::F32, slice.clone())
}

/// Scratch of a linear layer's backward pass.
pub struct LinearScratch<'a> {
    /// `[tokens, r]`: gradient at the adapter's inner activation.
    pub d_lora: Option<&'a Slice>,
    /// Partial sums of products over tokens.
    pub partials: &'a Slice,
}

/// `dW (+)= alpha · dYᵀ·X`: accumulates into a gradient, through partial sums where the product
/// is split over tokens.
pub fn weight_gradient(
    recorder: &mut Recorder,
    mut params: matmul_tn::Params,
    dy: &Slice,
    x: &Slice,
    grad: &Slice,
    partials: &Slice,
) {
    let len = params.n * params.k;
    let fitting = (partials.words() / u64::from(len.max(1))).min(u64::from(u32::MAX)) as u32;
    params.splits = matmul_tn::splits(params.m, params.n, params.k).min(fitting.max(1));
    if params.splits == 1 {
        params.accumulate = 1;
        recorder.push(matmul_tn::dispatch(params, dy.clone(), x.clone(), grad.clone()));
        return;
    }
    params.accumulate = 0;
    let parts = params.splits;
    recorder.push(matmul_tn::dispatch(params, dy.clone(), x.clone(), partials.clone()));
    let sum = sum_partials::Params { parts, len, accumulate: 1, alpha: 1.0 };
    recorder.push(sum_partials::dispatch(sum, partials.clone(), grad.clone()));
}

impl MatrixShard {
    /// Puts other rows into the place of these, in the buffers that they have.
    ///
    /// # Errors
    /// The buffers have no room for them, or the device fails.
    pub(crate) fn replace(&mut self, device: &Device, rows: &PackedHost) -> Result<()> {
        let put = |buffer: &Buffer, words: &[u32]| {
            let (len, room) = (words.len() as u64, buffer.words());
            ensure!(
                len <= room,
                "{len} words of format {} do not fit '{}', which the plan gave {room} words",
                rows.format.name(),
                buffer.label()
            );
            let slice = buffer.slice(0, len);
            device.write(&slice, words)?;
            Ok(slice)
        };
        let values = put(self.weight.values.buffer(), &rows.values)?;
        let scales = match rows.format.is_packed() {
            true => {
                let room = self.scales.as_ref().with_context(|| {
                    let (format, label) = (rows.format.name(), values.buffer().label());
                    format!("the plan gave '{label}' no room for the scales of {format}")
                })?;
                Some(put(room.buffer(), &rows.scales)?)
            }
            false => None,
        };
        self.weight = WeightBuffers { format: rows.format, values, scales };
        Ok(())
    }
}

impl Matrix {
    /// `Y[m, rows] (+)= X·Wᵀ`.
    pub fn forward(&self, recorder: &mut Recorder, m: u32, x: &Slice, y: Target<'_>) {
        for part in &self.shards {
            let mut params = matmul_nt::Params::dense(m, part.shard.rows, self.cols);
            params.ld_out = self.rows;
            params.out_offset = y.offset + part.shard.row0;
            params.accumulate = y.accumulate.into();
            let weight = part.weight.clone();
            recorder.push(matmul_nt::dispatch(params, weight, x.clone(), y.slice.clone()));
        }
    }

    /// `hidden[m, rows] = silu(gate) · X·Wᵀ`, and `up[m, rows] = X·Wᵀ` where it is kept.
    pub fn forward_gated(
        &self,
        recorder: &mut Recorder,
        m: u32,
        x: &Slice,
        gate: &Slice,
        hidden: &Slice,
        up: Option<&Slice>,
    ) {
        for part in &self.shards {
            let mut params = matmul_nt_swiglu::Params::dense(m, part.shard.rows, self.cols);
            params.ld_out = self.rows;
            params.out_offset = part.shard.row0;
            let (weight, gate, hidden) = (part.weight.clone(), gate.clone(), hidden.clone());
            let (x, up) = (x.clone(), up.cloned());
            recorder.push(matmul_nt_swiglu::dispatch(params, weight, x, gate, hidden, up));
        }
    }

    /// `dX[m, cols] (+)= dY·W`.
    pub fn backward(&self, recorder: &mut Recorder, m: u32, dy: &Slice, dx: Target<'_>) {
        for (index, part) in self.shards.iter().enumerate() {
            let mut params = matmul_nn::Params::dense(m, part.shard.rows, self.cols);
            params.ld_in = self.rows;
            params.in_offset = part.shard.row0;
            params.out_offset = dx.offset;
            params.accumulate = (dx.accumulate || index > 0).into();
            let weight = part.weight.clone();
            recorder.push(matmul_nn::dispatch(params, weight, dy.clone(), dx.slice.clone()));
        }
    }

    /// Adds `dYᵀ·X` to the gradients of the shards that have one.
    pub fn gradient(
        &self,
        recorder: &mut Recorder,
        m: u32,
        dy: &Slice,
        x: &Slice,
        partials: &Slice,
    ) {
        for part in &self.shards {
            let Some(grad) = &part.grad else { continue };
            let mut params = matmul_tn::Params::dense(m, part.shard.rows, self.cols);
            params.ld_dy = self.rows;
            params.dy_offset = part.shard.row0;
            weight_gradient(recorder, params, dy, x, grad, partials);
        }
    }
}

impl Linear {
    /// Whether the backward pass needs the layer's input.
    pub fn trains(&self) -> bool {
        self.lora.as_ref().is_some_and(|lora| lora.a.grad.is_some())
            || self.matrix.shards.iter().any(|part| part.grad.is_some())
    }

    /// `y (+)= layer(x)` for `m` tokens; `inner [m, r]` keeps `x·Aᵀ`.
    pub fn forward(
        &self,
        recorder: &mut Recorder,
        m: u32,
        x: &Slice,
        y: Target<'_>,
        inner: Option<&Slice>,
    ) {
        let (Some(lora), Some(inner)) = (&self.lora, inner) else {
            return self.matrix.forward(recorder, m, x, y);
        };
        let (n, k) = (self.matrix.rows, self.matrix.cols);
        if !lora.shared {
            let (down, a) = (matmul_nt::Params::dense(m, lora.rank, k), dense(&lora.a.value));
            recorder.push(matmul_nt::dispatch(down, a, x.clone(), inner.clone()));
        }
        for part in &self.matrix.shards {
            let rows = part.shard.rows;
            let mut params = matmul_nt_lora::Params::dense(m, rows, k, lora.rank, lora.scale);
            params.ld_out = n;
            params.out_offset = y.offset + part.shard.row0;
            params.accumulate = y.accumulate.into();
            params.b_row0 = part.shard.row0;
            let term = (inner.clone(), lora.b.value.clone());
            let (weight, y) = (part.weight.clone(), y.slice.clone());
            recorder.push(matmul_nt_lora::dispatch(params, weight, term, x.clone(), y));
        }
    }

    /// Accumulates the gradients of the layer's trained tensors, and writes `dx` where the layers
    /// below need it.
    pub fn backward(
        &self,
        recorder: &mut Recorder,
        m: u32,
        (dy, x): (&Slice, &Slice),
        inner: Option<&Slice>,
        dx: Option<Target<'_>>,
        scratch: &LinearScratch<'_>,
    ) {
        self.matrix.gradient(recorder, m, dy, x, scratch.partials);
        if let Some(dx) = dx {
            self.matrix.backward(recorder, m, dy, dx);
        }
        let (Some(lora), Some(inner), Some(d_inner)) = (&self.lora, inner, scratch.d_lora) else {
            return;
        };
        let (n, k, rank) = (self.matrix.rows, self.matrix.cols, lora.rank);
        let mut into = matmul_nn::Params::dense(m, n, rank);
        into.alpha = lora.scale;
        let b = dense(&lora.b.value);
        recorder.push(matmul_nn::dispatch(into, b, dy.clone(), d_inner.clone()));
        if let (Some(d_a), Some(d_b)) = (&lora.a.grad, &lora.b.grad) {
            let mut params = matmul_tn::Params::dense(m, n, rank);
            params.alpha = lora.scale;
            weight_gradient(recorder, params, dy, inner, d_b, scratch.partials);
            let params = matmul_tn::Params::dense(m, rank, k);
            weight_gradient(recorder, params, d_inner, x, d_a, scratch.partials);
        }
        if let Some(dx) = dx {
            let mut params = matmul_nn::Params::dense(m, rank, k);
            params.out_offset = dx.offset;
            params.accumulate = 1;
            let a = dense(&lora.a.value);
            recorder.push(matmul_nn::dispatch(params, a, d_inner.clone(), dx.slice.clone()));
        }
    }
}
