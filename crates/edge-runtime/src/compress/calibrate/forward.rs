//! Hidden states through blocks, micro-batch by micro-batch, and what is measured on the way.

use std::ops::Range;

use anyhow::{Result, ensure};
use edge_gpu::{Recorder, Slice};
use edge_kernels::ops::matmul::matmul_tn;
use edge_kernels::ops::memory::fill;
use edge_scheduler::LinearInput;
use edge_scheduler::calibrate::{MomentPart, all_moment_parts};
use rayon::prelude::*;

use super::runner::Runner;
use super::states::States;
use super::text::CalibrationSet;
use crate::compress::solve::Hessian;
use crate::model::block::Geometry;

/// Shown the inputs of linear layers in a pass of this geometry.
type Tap<'a> = &'a mut dyn FnMut(&mut Recorder, LinearInput, &Slice, Geometry);

/// A pass that is not looked into.
pub(super) fn unseen(_: &mut Recorder, _: LinearInput, _: &Slice, _: Geometry) {}

/// Numbers whose squared errors are summed together, so that a sum does not depend on threads.
const ERROR_CHUNK: usize = 1 << 14;

impl Runner<'_> {
    /// First sequence and number of sequences of each micro-batch.
    pub(super) fn micro_batches(
        &self,
        sequences: usize,
    ) -> impl Iterator<Item = (usize, usize)> + use<> {
        let batch = self.model.job.batch as usize;
        (0..sequences).step_by(batch).map(move |first| (first, batch.min(sequences - first)))
    }

    /// The pass that takes `count` sequences.
    pub(super) fn geometry(&self, count: usize) -> Geometry {
        Geometry::sequences(count as u32, self.model.job.seq_len)
    }

    /// Puts blocks onto the device; their numbers there.
    ///
    /// # Panics
    /// When they are more than there is room for.
    pub(super) fn slots(&mut self, blocks: Range<u32>) -> Result<Vec<u32>> {
        assert!(self.is_resident() || blocks.len() <= 1, "one block at a time");
        blocks.map(|block| self.prepare(block)).collect()
    }

    /// Some blocks, in as few steps as there is room for.
    fn steps(&self, blocks: Range<u32>) -> Vec<Range<u32>> {
        match self.is_resident() {
            true => vec![blocks],
            false => blocks.map(|block| block..block + 1).collect(),
        }
    }

    /// Runs blocks on sequences of hidden states, `[count, seq_len, d]`, and leaves the output in
    /// the model's stream.
    pub(super) fn run(&self, slots: &[u32], values: &[f32], tap: Tap<'_>) -> Result<Geometry> {
        let stride = self.model.job.seq_len as usize * self.shape().hidden_size as usize;
        let g = self.geometry(values.len() / stride);
        self.model.write_head(self.model.stream(), bytemuck::cast_slice(values))?;
        let mut recorder = self.model.device.recorder();
        for &slot in slots {
            let tap = &mut |recorder: &mut Recorder, input, x: &Slice| tap(recorder, input, x, g);
            self.model.run_block(&mut recorder, slot, g, tap);
        }
        recorder.submit()?;
        Ok(g)
    }

    /// The model's stream, `[rows, d]`. Waits for the device.
    fn read_stream(&self, g: Geometry) -> Result<Vec<f32>> {
        let words = u64::from(g.rows()) * u64::from(self.shape().hidden_size);
        Ok(self.model.device.read_f32(&self.model.stream().buffer().slice(0, words))?)
    }

    /// The embeddings of a set: the input of the first block.
    ///
    /// # Errors
    /// The set's sequences have another length than the runner was opened for, an id lies outside
    /// the vocabulary, or the device fails.
    pub fn embed(&mut self, set: &CalibrationSet) -> Result<States> {
        let planned = self.model.job.seq_len as usize;
        ensure!(
            set.seq_len() == planned,
            "the calibration sequences have {} tokens, and the runner was opened for {planned}",
            set.seq_len()
        );
        let mut states = self.states(set.sequences())?;
        for (first, count) in self.micro_batches(set.sequences()) {
            states.write(first, &self.lookup(&set.batch(first, count).ids)?)?;
        }
        Ok(states)
    }

    /// The output of a block, with the weights that are set.
    ///
    /// # Errors
    /// The device fails, or a temporary file.
    pub fn forward(&mut self, block: u32, input: &States) -> Result<States> {
        let slots = self.slots(block..block + 1)?;
        let mut output = self.states(input.sequences())?;
        let mut values = Vec::new();
        for (first, count) in self.micro_batches(input.sequences()) {
            input.read(first, count, &mut values)?;
            let g = self.run(&slots, &values, &mut unseen)?;
            output.write(first, &self.read_stream(g)?)?;
        }
        Ok(output)
    }

    /// Takes hidden states through some blocks, in place, with the weights that are set.
    ///
    /// # Errors
    /// As [`Runner::forward`].
    pub fn advance(&mut self, blocks: Range<u32>, states: &mut States) -> Result<()> {
        let mut values = Vec::new();
        for blocks in self.steps(blocks) {
            let slots = self.slots(blocks)?;
            for (first, count) in self.micro_batches(states.sequences()) {
                states.read(first, count, &mut values)?;
                let g = self.run(&slots, &values, &mut unseen)?;
                states.write(first, &self.read_stream(g)?)?;
            }
        }
        Ok(())
    }

    /// A copy of hidden states.
    ///
    /// # Errors
    /// As [`Runner::forward`].
    pub fn copy(&self, states: &States) -> Result<States> {
        let mut copy = self.states(states.sequences())?;
        let mut values = Vec::new();
        for (first, count) in self.micro_batches(states.sequences()) {
            states.read(first, count, &mut values)?;
            copy.write(first, &values)?;
        }
        Ok(copy)
    }

    /// Second moments of what some linear layers of a block read, with the weights that are set,
    /// in the order of `which`. They are summed in one pass over the sequences where the plan has
    /// room for all at once, else in as many as it takes.
    ///
    /// # Errors
    /// As [`Runner::forward`].
    pub fn hessians(
        &mut self,
        block: u32,
        input: &States,
        which: &[LinearInput],
    ) -> Result<Vec<Hessian>> {
        let tokens = input.sequences() as u64 * u64::from(self.model.job.seq_len);
        let empty = |&input: &LinearInput| {
            let k = self.shape().input_cols(input) as usize;
            Hessian { k, sum: vec![0.0; k * k], tokens }
        };
        let mut hessians: Vec<Hessian> = which.iter().map(empty).collect();
        for pass in self.moment_passes(which) {
            self.sum_moments(block, input, &pass)?;
            for (part, sums) in pass {
                let values = self.model.device.read_f32(&sums.buffer().slice(0, part.words()))?;
                let at = part.row0 as usize * part.cols as usize;
                for (hessian, input) in hessians.iter_mut().zip(which) {
                    if *input == part.input {
                        hessian.sum[at..at + values.len()].copy_from_slice(&values);
                    }
                }
            }
        }
        Ok(hessians)
    }

    /// Parts of second moments with the buffer that each is summed in, by pass.
    fn moment_passes(&self, which: &[LinearInput]) -> Vec<Vec<(MomentPart, Slice)>> {
        let buffers = self.model.workspace.calibration.as_ref().map(|c| &c.moments[..]);
        let buffers = buffers.unwrap_or_default();
        let all = all_moment_parts(self.shape(), self.model.plan.max_shard_bytes);
        let wanted = |part: &MomentPart| which.contains(&part.input);
        if buffers.len() == all.len() {
            let pairs = all.into_iter().zip(buffers.iter().cloned());
            return vec![pairs.filter(|(part, _)| wanted(part)).collect()];
        }
        let parts: Vec<MomentPart> = all.into_iter().filter(wanted).collect();
        let passes = parts.chunks(buffers.len().max(1));
        passes.map(|pass| pass.iter().copied().zip(buffers.iter().cloned()).collect()).collect()
    }

    fn sum_moments(
        &mut self,
        block: u32,
        input: &States,
        pass: &[(MomentPart, Slice)],
    ) -> Result<()> {
        let slots = self.slots(block..block + 1)?;
        let mut recorder = self.model.device.recorder();
        for (part, sums) in pass {
            recorder.push(fill::dispatch(part.words() as u32, 0.0, sums.clone()));
        }
        recorder.submit()?;
        let mut values = Vec::new();
        for (first, count) in self.micro_batches(input.sequences()) {
            input.read(first, count, &mut values)?;
            let mut tap = |recorder: &mut Recorder, input, x: &Slice, g: Geometry| {
                for (part, sums) in pass.iter().filter(|(part, _)| part.input == input) {
                    let mut params = matmul_tn::Params::dense(g.rows(), part.rows, part.cols);
                    params.ld_dy = part.cols;
                    params.dy_offset = part.row0;
                    params.accumulate = 1;
                    let x = x.clone();
                    recorder.push(matmul_tn::dispatch(params, x.clone(), x, sums.clone()));
                }
            };
            self.run(&slots, &values, &mut tap)?;
        }
        Ok(())
    }

    /// Mean squared difference between the output of a block with the weights that are set and
    /// `reference`: the sensitivity of Edge-LLM where all of the block's weights are set.
    ///
    /// # Errors
    /// As [`Runner::forward`].
    pub fn output_mse(&mut self, block: u32, input: &States, reference: &States) -> Result<f64> {
        let slots = self.slots(block..block + 1)?;
        let (mut values, mut want) = (Vec::new(), Vec::new());
        let mut sum = 0.0;
        for (first, count) in self.micro_batches(input.sequences()) {
            input.read(first, count, &mut values)?;
            reference.read(first, count, &mut want)?;
            let g = self.run(&slots, &values, &mut unseen)?;
            let got = self.read_stream(g)?;
            let chunks = got.par_chunks(ERROR_CHUNK).zip(want.par_chunks(ERROR_CHUNK));
            let sums: Vec<f64> = chunks.map(|(got, want)| squared_error(got, want)).collect();
            sum += sums.iter().sum::<f64>();
        }
        Ok(sum / (input.sequences() * input.stride()) as f64)
    }

    /// Variance of what a block adds to the residual stream, about the mean of each channel:
    /// what would remain of the block if all its weights were lost but a constant.
    ///
    /// # Errors
    /// A temporary file fails.
    pub fn contribution_variance(&self, input: &States, output: &States) -> Result<f64> {
        let d = self.shape().hidden_size as usize;
        let (mut sums, mut squares) = (vec![0.0; d], vec![0.0; d]);
        let (mut x, mut y) = (Vec::new(), Vec::new());
        for (first, count) in self.micro_batches(input.sequences()) {
            input.read(first, count, &mut x)?;
            output.read(first, count, &mut y)?;
            for (x, y) in x.chunks_exact(d).zip(y.chunks_exact(d)) {
                for channel in 0..d {
                    let added = f64::from(y[channel]) - f64::from(x[channel]);
                    sums[channel] += added;
                    squares[channel] += added * added;
                }
            }
        }
        let tokens = (input.sequences() * input.stride() / d) as f64;
        let channels = sums.iter().zip(&squares);
        let variance = channels.map(|(sum, square)| square / tokens - (sum / tokens).powi(2));
        Ok(variance.sum::<f64>() / d as f64)
    }
}

fn squared_error(got: &[f32], want: &[f32]) -> f64 {
    let pairs = got.iter().zip(want);
    pairs.map(|(&got, &want)| (f64::from(got) - f64::from(want)).powi(2)).sum()
}
