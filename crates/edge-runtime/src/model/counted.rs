//! The head on the rows that count: where most targets are ignored, as with answers behind long
//! prompts, the rows whose targets count are gathered before logits are made, and their gradient
//! is spread over the pass again.
//!
//! Both ways are rows of a table by number, the table being a residual stream or its gradient.

use anyhow::{Context, Result};
use edge_gpu::{Recorder, Slice};
use edge_kernels::format::{Format, WeightBuffers};
use edge_kernels::ops::embedding::embedding_gather;
use edge_kernels::ops::memory::fill;

use super::Model;
use super::block::Geometry;
use crate::batch::{Batch, IGNORE};

/// The rows of a pass that the head works on.
#[derive(Clone, Debug)]
pub(crate) struct Counted {
    /// Of these rows.
    pub(crate) head: Geometry,
    /// Their targets.
    pub(crate) targets: Vec<u32>,
    /// The pass that they are gathered from; `None`: the head works on all of it.
    of: Option<Geometry>,
}

impl Counted {
    /// Of each row that the head works on, the sequence of the batch whose target it has, if that
    /// counts.
    pub(crate) fn sequences(&self, batch: &Batch) -> Vec<Option<usize>> {
        let rows = batch.targets.iter().enumerate();
        let owner =
            |(row, &target): (usize, &u32)| (target != IGNORE).then_some(row / batch.seq_len);
        match self.of {
            Some(_) => rows.map(owner).filter(Option::is_some).collect(),
            None => rows.map(owner).collect(),
        }
    }
}

/// Whether it is worth gathering `counted` of `rows`: a text's windows, of which only the last
/// row does not count, stay as they are.
fn worth(counted: usize, rows: usize) -> bool {
    8 * counted < 7 * rows
}

impl Model {
    /// After [`Model::set_batch`], whose `g` this is: writes which rows count to the device.
    ///
    /// # Errors
    /// The device fails.
    ///
    /// # Panics
    /// When no target counts: a batch without one has nothing for the head.
    pub(crate) fn set_counted(&self, batch: &Batch, g: Geometry) -> Result<Counted> {
        assert!(batch.trained_tokens > 0, "no target of the batch counts");
        if !worth(batch.trained_tokens, batch.targets.len()) {
            return Ok(Counted { head: g, targets: batch.targets.clone(), of: None });
        }
        let mut numbers = Vec::with_capacity(batch.trained_tokens);
        let mut targets = Vec::with_capacity(batch.trained_tokens);
        let mut places = vec![u32::MAX; batch.targets.len()];
        for (row, &target) in (0..).zip(&batch.targets).filter(|(_, target)| **target != IGNORE) {
            places[row as usize] = numbers.len() as u32;
            numbers.push(row);
            targets.push(target);
        }
        let ws = &self.workspace;
        self.write_head(&ws.targets, &targets)?;
        self.write_head(&ws.counted, &numbers)?;
        if let Some(back) = &ws.backward {
            self.write_head(&back.places, &places)?;
        }
        let head = Geometry::sequences(1, numbers.len() as u32);
        Ok(Counted { head, targets, of: Some(g) })
    }

    /// Brings the rows of `x` that count to its front.
    pub(crate) fn gather_counted(&self, recorder: &mut Recorder, x: &Slice, counted: &Counted) {
        let Some(g) = counted.of else { return };
        let (ws, rows) = (&self.workspace, counted.head.rows());
        // Blocks write the SwiGLU output anew before they read it.
        self.rows_of(recorder, rows, &ws.counted, (x, g.rows()), &ws.hidden);
        self.copy_rows(recorder, rows, &ws.hidden, x);
    }

    /// Takes the gradient of the rows that count from the front of `d_x` to their places, with
    /// zeros in all others.
    ///
    /// # Errors
    /// The model was not built for training.
    pub(crate) fn scatter_counted(&self, recorder: &mut Recorder, counted: &Counted) -> Result<()> {
        let Some(g) = counted.of else { return Ok(()) };
        let back = self.workspace.backward.as_ref();
        let back = back.context("the model was not built for training")?;
        let rows = counted.head.rows();
        self.copy_rows(recorder, rows, &back.d_x, &back.d_hidden);
        let words = g.rows() * self.shape.hidden_size;
        recorder.push(fill::dispatch(words, 0.0, back.d_x.clone()));
        self.rows_of(recorder, g.rows(), &back.places, (&back.d_hidden, rows), &back.d_x);
        Ok(())
    }

    /// `out[i] = table[numbers[i]]` for the first `count` numbers below `rows`.
    fn rows_of(
        &self,
        recorder: &mut Recorder,
        count: u32,
        numbers: &Slice,
        (table, rows): (&Slice, u32),
        out: &Slice,
    ) {
        let cols = self.shape.hidden_size;
        let params = embedding_gather::Params { tokens: count, cols, row0: 0, rows, scale: 1.0 };
        let table = WeightBuffers::dense(Format::F32, table.clone());
        recorder.push(embedding_gather::dispatch(params, numbers.clone(), out.clone(), table));
    }
}

#[cfg(test)]
mod tests {
    use super::worth;

    #[test]
    fn windows_of_text_are_not_gathered() {
        for (counted, rows) in [(15, 16), (255, 256), (1, 1), (42, 48), (7, 8)] {
            assert!(!worth(counted, rows), "{counted} of {rows}");
        }
        for (counted, rows) in [(1, 2), (41, 48), (60, 256)] {
            assert!(worth(counted, rows), "{counted} of {rows}");
        }
    }
}
