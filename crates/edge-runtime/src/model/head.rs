//! Exits: `z = Head(rms_norm(x))`, cross-entropy, its gradient, and votes. An exit may have a
//! low-rank term beside the head that all share: `z = W·n + scale · B·(A·n)`, B \[V, r\].
//!
//! Logits exist one chunk at a time (`edge_scheduler::logits`): some tokens × the whole vocabulary
//! or one shard of the head. The first sweep over the vocabulary leaves three numbers a row
//! (maximum, sum of exponentials, logit of the target); the second one turns logits into gradients
//! or votes, and computes them again where the chunk has another shard's meanwhile (as in Cut
//! Cross-Entropy, arXiv 2411.09009).

use std::ops::Range;

use anyhow::{Context, Result};
use edge_gpu::{Recorder, Slice};
use edge_kernels::ops::loss::{
    cross_entropy_backward, cross_entropy_forward, cross_entropy_loss, kl_divergence, vote_combine,
    vote_reduce,
};
use edge_kernels::ops::matmul::{matmul_nn, matmul_nt, matmul_nt_lora, matmul_tn};
use edge_scheduler::logits::VOTE_TOKENS;

use super::block::Geometry;
use super::linear::{Lora, Matrix, MatrixShard, dense, weight_gradient};
use super::workspace::{Backward, CalibrationBuffers};
use super::{Exit, Model, Norm};
use crate::batch::IGNORE;
use crate::exits::Vote;
use crate::vote::TEMPERATURES;

/// Some rows of a pass.
#[derive(Clone, Copy, Debug)]
struct Rows {
    first: u32,
    count: u32,
}

impl Model {
    fn row_chunks(&self, rows: u32) -> impl Iterator<Item = Rows> + use<> {
        Self::chunks_of(rows, self.plan.logits.tokens)
    }

    fn chunks_of(rows: u32, step: u32) -> impl Iterator<Item = Rows> {
        (0..rows.div_ceil(step)).map(move |index| {
            let first = index * step;
            Rows { first, count: step.min(rows - first) }
        })
    }

    /// The place of a shard's logits in a chunk.
    fn place(&self, part: &MatrixShard, chunk: &Slice) -> Slice {
        let chunked = self.plan.logits;
        let row0 = if chunked.whole { part.shard.row0 } else { 0 };
        // Rows of shards come in 64s, so that the slice is aligned.
        let (tokens, rows) = (u64::from(chunked.tokens), u64::from(part.shard.rows));
        let first = chunk.offset_words() + tokens * u64::from(row0);
        chunk.buffer().slice(first, tokens * rows)
    }

    /// `normed[rows] · Aᵀ` of an exit's low-rank term, which [`Model::logits`] of these rows need.
    fn inner(&self, recorder: &mut Recorder, rows: Rows, term: Option<&Lora>) {
        let (Some(term), Some(inner)) = (term, &self.workspace.exit_inner) else { return };
        let d = self.shape.hidden_size;
        let mut params = matmul_nt::Params::dense(rows.count, term.rank, d);
        params.in_offset = rows.first * d;
        let (a, normed) = (dense(&term.a.value), self.workspace.normed.clone());
        recorder.push(matmul_nt::dispatch(params, a, normed, inner.clone()));
    }

    /// `logits = normed[rows] · shardᵀ`, of and to the workspace, and the exit's low-rank term.
    fn logits(&self, recorder: &mut Recorder, rows: Rows, part: &MatrixShard, term: Option<&Lora>) {
        let (ws, d) = (&self.workspace, self.shape.hidden_size);
        let (Some(term), Some(inner)) = (term, &ws.exit_inner) else {
            return self.logits_of(recorder, rows, part, (&ws.normed, &ws.logits));
        };
        let (n, rank) = (part.shard.rows, term.rank);
        let mut params = matmul_nt_lora::Params::dense(rows.count, n, d, rank, term.scale);
        params.in_offset = rows.first * d;
        params.b_row0 = part.shard.row0;
        let (weight, factors) = (part.weight.clone(), (inner.clone(), term.b.value.clone()));
        let (normed, logits) = (ws.normed.clone(), self.place(part, &ws.logits));
        recorder.push(matmul_nt_lora::dispatch(params, weight, factors, normed, logits));
    }

    /// `logits = normed[rows] · shardᵀ`.
    fn logits_of(
        &self,
        recorder: &mut Recorder,
        rows: Rows,
        part: &MatrixShard,
        (normed, logits): (&Slice, &Slice),
    ) {
        let d = self.shape.hidden_size;
        let mut params = matmul_nt::Params::dense(rows.count, part.shard.rows, d);
        params.in_offset = rows.first * d;
        let (normed, logits) = (normed.clone(), self.place(part, logits));
        recorder.push(matmul_nt::dispatch(params, part.weight.clone(), normed, logits));
    }

    fn statistics(&self, recorder: &mut Recorder, rows: Rows, part: &MatrixShard, stats: &Slice) {
        self.statistics_of(recorder, rows, part, (&self.workspace.logits, stats), 1.0);
    }

    /// Row statistics of `scale · logits`.
    fn statistics_of(
        &self,
        recorder: &mut Recorder,
        rows: Rows,
        part: &MatrixShard,
        (logits, stats): (&Slice, &Slice),
        scale: f32,
    ) {
        let params = cross_entropy_forward::Params {
            rows: rows.count,
            cols: part.shard.rows,
            ld: part.shard.rows,
            row0: rows.first,
            col0: part.shard.row0,
            first: (part.shard.row0 == 0).into(),
            scale,
        };
        let (logits, targets) = (self.place(part, logits), self.workspace.targets.clone());
        recorder.push(cross_entropy_forward::dispatch(params, logits, targets, stats.clone()));
    }

    fn add_loss(&self, recorder: &mut Recorder, rows: u32, stats: &Slice) {
        let params = cross_entropy_loss::Params { rows, accumulate: 1 };
        let ws = &self.workspace;
        let targets = ws.targets.clone();
        recorder.push(cross_entropy_loss::dispatch(
            params,
            targets,
            stats.clone(),
            ws.loss.clone(),
        ));
    }

    /// Adds the loss at an exit to the workspace's `loss`, with row statistics in `stats`.
    pub(crate) fn exit_loss(
        &self,
        recorder: &mut Recorder,
        exit: &Exit,
        x: &Slice,
        stats: &Slice,
        g: Geometry,
    ) {
        let term = exit.term.as_ref();
        self.norm(recorder, g.rows(), x, &exit.norm);
        for rows in self.row_chunks(g.rows()) {
            self.inner(recorder, rows, term);
            for part in &self.head_matrix().shards {
                self.logits(recorder, rows, part, term);
                self.statistics(recorder, rows, part, stats);
            }
        }
        self.add_loss(recorder, g.rows(), stats);
    }

    /// The loss at an exit, and its gradient down to the residual stream (`d_x`), the exit's norm
    /// and, with method `full`, the head. `scale` is the weight of one token in the mean.
    ///
    /// # Errors
    /// The model was not built for training.
    pub(crate) fn exit_loss_backward(
        &self,
        recorder: &mut Recorder,
        exit: &Exit,
        x: &Slice,
        scale: f32,
        g: Geometry,
    ) -> Result<()> {
        let ws = &self.workspace;
        let back = ws.backward.as_ref().context("the model was not built for training")?;
        let (head, d) = (self.head_matrix(), self.shape.hidden_size);
        let made_again = head.shards.len() > 1 && !self.plan.logits.whole;
        let term = exit.term.as_ref();
        self.norm(recorder, g.rows(), x, &exit.norm);
        for rows in self.row_chunks(g.rows()) {
            self.inner(recorder, rows, term);
            for part in &head.shards {
                self.logits(recorder, rows, part, term);
                self.statistics(recorder, rows, part, &ws.stats[0]);
            }
            for (index, part) in head.shards.iter().enumerate() {
                if made_again {
                    self.logits(recorder, rows, part, term);
                }
                let logits = self.place(part, &ws.logits);
                let params = cross_entropy_backward::Params {
                    rows: rows.count,
                    cols: part.shard.rows,
                    ld: part.shard.rows,
                    row0: rows.first,
                    col0: part.shard.row0,
                    scale,
                };
                recorder.push(cross_entropy_backward::dispatch(
                    params,
                    logits.clone(),
                    ws.targets.clone(),
                    ws.stats[0].clone(),
                ));
                let mut params = matmul_nn::Params::dense(rows.count, part.shard.rows, d);
                params.out_offset = rows.first * d;
                params.accumulate = (index > 0).into();
                let (dy, dx) = (logits.clone(), back.d_normed.clone());
                recorder.push(matmul_nn::dispatch(params, part.weight.clone(), dy, dx));
                if let Some(grad) = &part.grad {
                    let x = self.normed_rows(rows);
                    let params = matmul_tn::Params::dense(rows.count, part.shard.rows, d);
                    weight_gradient(recorder, params, &logits, &x, grad, &back.partials);
                }
                if let Some(term) = term {
                    self.term_backward(recorder, rows, part, term, &logits, back);
                }
            }
            if let Some(term) = term {
                self.inner_backward(recorder, rows, term, back);
            }
        }
        self.add_loss(recorder, g.rows(), &ws.stats[0]);
        self.norm_backward(recorder, g.rows(), x, &exit.norm, false);
        Ok(())
    }

    /// The norm's output for these rows of a chunk, which starts at a multiple of 64 rows, so that
    /// the slice is aligned.
    fn normed_rows(&self, rows: Rows) -> Slice {
        let d = self.shape.hidden_size;
        let (first, count) = (u64::from(rows.first * d), u64::from(rows.count * d));
        self.workspace.normed.buffer().slice(first, count)
    }

    /// From a shard's gradient at the logits to that of `B` and that at `inner`.
    fn term_backward(
        &self,
        recorder: &mut Recorder,
        rows: Rows,
        part: &MatrixShard,
        term: &Lora,
        d_logits: &Slice,
        back: &Backward,
    ) {
        let (Some(inner), Some(d_inner)) = (&self.workspace.exit_inner, &back.d_exit_inner) else {
            return;
        };
        let (n, rank) = (part.shard.rows, term.rank);
        // Shards start at a multiple of 64 rows.
        let words = |row: u32| u64::from(row) * u64::from(rank);
        let of_shard =
            |b: &Slice| b.buffer().slice(b.offset_words() + words(part.shard.row0), words(n));
        let mut params = matmul_nn::Params::dense(rows.count, n, rank);
        params.accumulate = (part.shard.row0 > 0).into();
        params.alpha = term.scale;
        let b = dense(&of_shard(&term.b.value));
        recorder.push(matmul_nn::dispatch(params, b, d_logits.clone(), d_inner.clone()));
        if let Some(grad) = &term.b.grad {
            let mut params = matmul_tn::Params::dense(rows.count, n, rank);
            params.alpha = term.scale;
            let grad = of_shard(grad);
            weight_gradient(recorder, params, d_logits, inner, &grad, &back.partials);
        }
    }

    /// From the gradient at `inner` to that of `A` and that at the norm's output.
    fn inner_backward(&self, recorder: &mut Recorder, rows: Rows, term: &Lora, back: &Backward) {
        let Some(d_inner) = &back.d_exit_inner else { return };
        let (d, rank) = (self.shape.hidden_size, term.rank);
        if let Some(grad) = &term.a.grad {
            let params = matmul_tn::Params::dense(rows.count, rank, d);
            let x = self.normed_rows(rows);
            weight_gradient(recorder, params, d_inner, &x, grad, &back.partials);
        }
        let mut params = matmul_nn::Params::dense(rows.count, rank, d);
        params.out_offset = rows.first * d;
        params.accumulate = 1;
        let a = dense(&term.a.value);
        recorder.push(matmul_nn::dispatch(params, a, d_inner.clone(), back.d_normed.clone()));
    }

    /// Takes `x [rows, d]` at the last exit for the distribution that others are compared with.
    ///
    /// # Errors
    /// The model was not built for calibration.
    pub(crate) fn set_reference(
        &self,
        recorder: &mut Recorder,
        x: &Slice,
        rows: u32,
    ) -> Result<()> {
        let buffers = self.calibration_buffers()?;
        self.norm_into(recorder, rows, x, &self.last_exit().norm, &buffers.normed);
        Ok(())
    }

    /// Takes `x [rows, d]` at the last exit for the distribution that is compared.
    pub(crate) fn set_compared(&self, recorder: &mut Recorder, x: &Slice, rows: u32) {
        self.norm(recorder, rows, x, &self.last_exit().norm);
    }

    /// Row statistics of both distributions, in the workspace's `calibration.stats` and
    /// `stats[0]`, and the divergence of each row in `calibration.kl`. `compared` is the head of
    /// the second one.
    ///
    /// # Errors
    /// The model was not built for calibration.
    pub(crate) fn divergence(
        &self,
        recorder: &mut Recorder,
        compared: &Matrix,
        rows: u32,
    ) -> Result<()> {
        let (ws, reference) = (&self.workspace, self.calibration_buffers()?);
        let stats = [&reference.stats, &ws.stats[0]];
        let logits = [(&reference.normed, &reference.logits), (&ws.normed, &ws.logits)];
        // In the same shards.
        let shards = [&self.head_matrix().shards, &compared.shards];
        let again = shards[0].len() > 1 && !self.plan.logits.whole;
        for rows in self.row_chunks(rows) {
            for index in 0..shards[0].len() {
                for which in 0..2 {
                    let (pair, part) = (logits[which], &shards[which][index]);
                    self.logits_of(recorder, rows, part, pair);
                    self.statistics_of(recorder, rows, part, (pair.1, stats[which]), 1.0);
                }
            }
            for (index, part) in shards[0].iter().enumerate() {
                for which in (0..2).filter(|_| again) {
                    self.logits_of(recorder, rows, &shards[which][index], logits[which]);
                }
                let params = kl_divergence::Params {
                    rows: rows.count,
                    cols: part.shard.rows,
                    ld: part.shard.rows,
                    row0: rows.first,
                    first: (part.shard.row0 == 0).into(),
                };
                recorder.push(kl_divergence::dispatch(
                    params,
                    logits.map(|(_, logits)| self.place(part, logits)),
                    stats.map(Slice::clone),
                    reference.kl.clone(),
                ));
            }
        }
        Ok(())
    }

    fn last_exit(&self) -> &Exit {
        &self.exits[self.exits.len() - 1]
    }

    pub(crate) fn calibration_buffers(&self) -> Result<&CalibrationBuffers> {
        let buffers = self.workspace.calibration.as_ref();
        buffers.context("the model was not built for calibration")
    }

    /// Adds the loss of the exits' vote to the workspace's `loss`. Needs the residual streams in
    /// `workspace.exits` and the row statistics of every exit.
    ///
    /// `max`: P(v) = max_k p_k(v) / Σ_u max_k p_k(u), the paper's; `mean`: P(v) = mean_k p_k(v);
    /// `learned`: P(v) = Σ_k w_k softmax(z_k / τ_k)(v), whose row statistics it makes itself.
    ///
    /// # Errors
    /// The model was not built to vote.
    pub(crate) fn vote_loss(&self, recorder: &mut Recorder, vote: Vote, g: Geometry) -> Result<()> {
        let ws = &self.workspace;
        let (votes, vote_stats) = ws.votes.as_ref().context("the model was not built to vote")?;
        if vote == Vote::Learned {
            for (index, _) in self.voters(vote) {
                let term = self.exits[index].term.as_ref();
                self.norm(recorder, g.rows(), &ws.exits[index], &self.voter_norm(vote, index));
                for rows in self.row_chunks(g.rows()) {
                    self.inner(recorder, rows, term);
                    for part in &self.head_matrix().shards {
                        self.logits(recorder, rows, part, term);
                        self.statistics(recorder, rows, part, &ws.stats[index]);
                    }
                }
            }
        }
        for rows in Self::chunks_of(g.rows(), self.plan.logits.tokens.min(VOTE_TOKENS)) {
            for part in &self.head_matrix().shards {
                self.vote_chunk(recorder, vote, rows, part, g)?;
                let params = vote_reduce::Params {
                    rows: rows.count,
                    cols: part.shard.rows,
                    ld: part.shard.rows,
                    row0: rows.first,
                    col0: part.shard.row0,
                    first: (part.shard.row0 == 0).into(),
                };
                let targets = ws.targets.clone();
                recorder.push(vote_reduce::dispatch(
                    params,
                    votes.clone(),
                    targets,
                    vote_stats.clone(),
                ));
            }
        }
        self.add_loss(recorder, g.rows(), vote_stats);
        Ok(())
    }

    /// The exits that a vote asks, with their weights.
    fn voters(&self, vote: Vote) -> Vec<(usize, f32)> {
        let exits = self.exits.len();
        match (vote, self.learned()) {
            (Vote::Learned, Some(learned)) => {
                let weights = learned.weights.iter().copied().enumerate();
                weights.filter(|(_, weight)| *weight > 1e-6).collect()
            }
            (Vote::Last | Vote::Learned, _) => vec![(exits - 1, 1.0)],
            (Vote::Max, _) => (0..exits).map(|index| (index, 1.0)).collect(),
            (Vote::Mean, _) => (0..exits).map(|index| (index, 1.0 / exits as f32)).collect(),
        }
    }

    /// The norm that a vote reads an exit with.
    fn voter_norm(&self, vote: Vote, index: usize) -> Norm {
        match (vote, self.learned()) {
            (Vote::Learned, Some(_)) => self.vote_norm(index),
            _ => self.exits[index].norm.clone(),
        }
    }

    /// The log-probability of each target that counts at an exit under each temperature of
    /// [`TEMPERATURES`], added to `log_p`, by temperature.
    ///
    /// # Errors
    /// The device fails.
    pub(crate) fn score_exit(
        &self,
        index: usize,
        targets: &[u32],
        g: Geometry,
        log_p: &mut [Vec<f32>],
    ) -> Result<()> {
        let (ws, stats, shards) =
            (&self.workspace, self.exit_stats(index), &self.head_matrix().shards);
        let again = shards.len() > 1 && !self.plan.logits.whole;
        let mut recorder = self.device.recorder();
        let term = self.exits[index].term.as_ref();
        self.norm(&mut recorder, g.rows(), self.exit_stream(index), &self.exits[index].norm);
        for rows in self.row_chunks(g.rows()) {
            self.inner(&mut recorder, rows, term);
            for part in shards.iter().filter(|_| !again) {
                self.logits(&mut recorder, rows, part, term);
            }
            let (first, count) = (rows.first as usize, rows.count as usize);
            let targets = &targets[first..first + count];
            for (log_p, &temperature) in log_p.iter_mut().zip(&TEMPERATURES) {
                for part in shards {
                    if again {
                        self.logits(&mut recorder, rows, part, term);
                    }
                    let scaled = 1.0 / temperature;
                    self.statistics_of(&mut recorder, rows, part, (&ws.logits, stats), scaled);
                }
                recorder.submit()?;
                let at = stats.offset_words() + 3 * first as u64;
                let of_rows = self.device.read_f32(&stats.buffer().slice(at, 3 * count as u64))?;
                let counted = of_rows.as_chunks::<3>().0.iter().zip(targets);
                let counted = counted.filter(|(_, target)| **target != IGNORE);
                log_p.extend(counted.map(|([max, sum, z], _)| z - max - sum.ln()));
            }
        }
        Ok(())
    }

    /// Combines the exits' probabilities of a chunk in `workspace.votes`.
    fn vote_chunk(
        &self,
        recorder: &mut Recorder,
        vote: Vote,
        rows: Rows,
        part: &MatrixShard,
        g: Geometry,
    ) -> Result<()> {
        let ws = &self.workspace;
        let (votes, _) = ws.votes.as_ref().context("the model was not built to vote")?;
        for (turn, (index, weight)) in self.voters(vote).into_iter().enumerate() {
            let term = self.exits[index].term.as_ref();
            self.norm(recorder, g.rows(), &ws.exits[index], &self.voter_norm(vote, index));
            self.inner(recorder, rows, term);
            self.logits(recorder, rows, part, term);
            let params = vote_combine::Params {
                rows: rows.count,
                cols: part.shard.rows,
                ld: part.shard.rows,
                row0: rows.first,
                mode: (vote != Vote::Max).into(),
                first: (turn == 0).into(),
                weight,
            };
            let (logits, stats) = (self.place(part, &ws.logits), ws.stats[index].clone());
            recorder.push(vote_combine::dispatch(params, logits, stats, votes.clone()));
        }
        Ok(())
    }

    /// All logits at an exit, chunk by chunk, on the host: `[rows, vocab]`.
    pub(crate) fn read_logits(&self, exit: &Exit, x: &Slice, g: Geometry) -> Result<Vec<f32>> {
        let vocab = self.shape.vocab_size as usize;
        let mut all = vec![0.0; g.rows() as usize * vocab];
        let mut recorder = self.device.recorder();
        let term = exit.term.as_ref();
        self.norm(&mut recorder, g.rows(), x, &exit.norm);
        for rows in self.row_chunks(g.rows()) {
            self.inner(&mut recorder, rows, term);
            for part in &self.head_matrix().shards {
                self.logits(&mut recorder, rows, part, term);
                recorder.submit()?;
                let words = u64::from(rows.count) * u64::from(part.shard.rows);
                let chunk = self.place(part, &self.workspace.logits);
                let chunk = chunk.buffer().slice(chunk.offset_words(), words);
                let values = self.device.read_f32(&chunk)?;
                for (row, values) in values.chunks(part.shard.rows as usize).enumerate() {
                    let at = (rows.first as usize + row) * vocab + part.shard.row0 as usize;
                    all[at..at + values.len()].copy_from_slice(values);
                }
            }
        }
        Ok(all)
    }

    /// The probabilities of the next token behind row `row` of the pass, by the exits' vote; for
    /// one exit, its softmax. Waits for the device.
    ///
    /// # Errors
    /// The device fails, or the model was not built to vote.
    pub(crate) fn next_token(&self, vote: Vote, row: u32, g: Geometry) -> Result<Vec<f32>> {
        self.next_tokens(vote, row..row + 1, g)
    }

    /// As [`Model::next_token`], behind several rows of one chunk: `[rows, vocab]`.
    ///
    /// # Errors
    /// As [`Model::next_token`].
    pub(crate) fn next_tokens(
        &self,
        vote: Vote,
        rows: Range<u32>,
        g: Geometry,
    ) -> Result<Vec<f32>> {
        let (ws, vocab) = (&self.workspace, self.shape.vocab_size as usize);
        let rows = Rows { first: rows.start, count: rows.end - rows.start };
        let mut recorder = self.device.recorder();
        for (index, _) in self.voters(vote) {
            let (norm, term) = (self.voter_norm(vote, index), self.exits[index].term.as_ref());
            self.norm(&mut recorder, g.rows(), &ws.exits[index], &norm);
            self.inner(&mut recorder, rows, term);
            for part in &self.head_matrix().shards {
                self.logits(&mut recorder, rows, part, term);
                self.statistics(&mut recorder, rows, part, &ws.stats[index]);
            }
        }
        let (votes, _) = ws.votes.as_ref().context("the model was not built to vote")?;
        let mut probabilities = vec![0.0; rows.count as usize * vocab];
        for part in &self.head_matrix().shards {
            self.vote_chunk(&mut recorder, vote, rows, part, g)?;
            recorder.submit()?;
            let (row0, width) = (part.shard.row0 as usize, part.shard.rows as usize);
            let chunk = votes.buffer().slice(0, u64::from(rows.count) * width as u64);
            let chunk = self.device.read_f32(&chunk)?;
            for (all, chunk) in probabilities.chunks_mut(vocab).zip(chunk.chunks(width)) {
                all[row0..row0 + width].copy_from_slice(chunk);
            }
        }
        Ok(probabilities)
    }
}
