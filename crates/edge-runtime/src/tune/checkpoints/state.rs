//! What of a run a checkpoint keeps beside tensors.

use anyhow::{Result, ensure};
use edge_scheduler::Job;
use edge_scheduler::stream::Streaming;
use serde::{Deserialize, Serialize};

use super::super::course::Spent;
use super::super::run::CurvePoint;
use super::super::session::Skipped;
use crate::batch::Position;
use crate::metrics::Logs;

/// Version of the files: others are refused.
const VERSION: u32 = 1;

/// Where a run stands behind a step.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub(crate) struct State {
    /// Of the files.
    pub(crate) version: u32,
    /// Release that wrote it.
    pub(crate) program_version: String,
    /// What the model's files are ([`crate::compress::calibrate::hash::model_hash`]).
    pub(crate) model: String,
    /// The same of the data's tokens.
    pub(crate) data: String,
    /// Device, by name: on another one the run goes on, and not to the last bit.
    pub(crate) device: String,
    /// What was spent.
    pub(crate) spent: Spent,
    /// Tokens that the loss counted.
    pub(crate) trained_tokens: u64,
    /// Steps that were left out.
    pub(crate) skipped: Skipped,
    /// Position in the data.
    pub(crate) position: Position,
    /// Part of the run of the last step, from 0.
    pub(crate) phase: usize,
    /// Window of the last step, from 0.
    pub(crate) window: usize,
    /// Updates of each window: Adam's `t`.
    pub(crate) updates: Vec<u32>,
    /// Number of the next of `--evals` validations.
    pub(crate) evals: u64,
    /// Step and loss of the best validation, and validations since then.
    pub(crate) best: (Option<(u64, f64)>, u64),
    /// Validation loss before training.
    pub(crate) val_loss_before: Option<f64>,
    /// Validations so far.
    pub(crate) curve: Vec<CurvePoint>,
    /// The schedule of a step.
    pub(crate) order: Order,
    /// Bytes of the files that grow with each step.
    pub(crate) logs: Logs,
}

impl State {
    /// A state of this version, with nothing in it.
    pub(crate) fn new() -> Self {
        let program_version = env!("CARGO_PKG_VERSION").to_owned();
        Self { version: VERSION, program_version, ..Self::default() }
    }

    /// Optimiser steps so far.
    pub(crate) fn step(&self) -> u64 {
        self.spent.steps
    }

    pub(crate) fn check_version(&self) -> Result<()> {
        let (found, program) = (self.version, &self.program_version);
        ensure!(
            found == VERSION,
            "it is of version {found}, by release {program}, and this one reads {VERSION}"
        );
        Ok(())
    }

    #[cfg(test)]
    pub(crate) fn at_step(steps: u64) -> Self {
        Self { spent: Spent { steps, ..Spent::default() }, ..Self::new() }
    }
}

/// The parts of a [`Job`] that the search for a schedule decides: a run that goes on keeps to
/// them, whatever was measured of the device since.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub(crate) struct Order {
    batch: u32,
    eval_batch: u32,
    recompute: bool,
    streams: u32,
    columns: bool,
    logits_bytes: u64,
    streaming: Option<Slots>,
}

/// [`Streaming`] in a file.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
struct Slots {
    resident: Vec<bool>,
    slots: u32,
    ahead: bool,
}

impl Order {
    /// That of a job.
    pub(crate) fn of(job: &Job) -> Self {
        Self {
            batch: job.batch,
            eval_batch: job.eval_batch,
            recompute: job.recompute,
            streams: job.streams,
            columns: job.columns,
            logits_bytes: job.logits_bytes,
            streaming: job.streaming.as_ref().map(|streaming| Slots {
                resident: streaming.resident.clone(),
                slots: streaming.slots,
                ahead: streaming.ahead,
            }),
        }
    }

    /// Changes a job to this one; `staged`: the device's memory cannot be written by the host.
    ///
    /// # Errors
    /// It is of another model.
    pub(crate) fn apply(&self, job: &mut Job, staged: bool) -> Result<()> {
        let fits = |slots: &Slots| slots.resident.len() == job.blocks.len() && slots.slots > 0;
        ensure!(
            self.batch > 0 && self.eval_batch > 0 && self.streaming.as_ref().is_none_or(fits),
            "the checkpoint's schedule is not of this model: start the run again"
        );
        job.batch = self.batch;
        job.eval_batch = self.eval_batch;
        job.recompute = self.recompute;
        job.streams = self.streams;
        job.columns = self.columns;
        job.logits_bytes = self.logits_bytes;
        job.streaming = self.streaming.as_ref().map(|slots| Streaming {
            resident: slots.resident.clone(),
            slots: slots.slots,
            staged,
            ahead: slots.ahead,
        });
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use edge_kernels::Format;
    use edge_scheduler::BlockFormats;

    #[test]
    fn a_job_gets_its_schedule_back() {
        let blocks = vec![BlockFormats::uniform(Format::F32); 3];
        let plain = Job::new(blocks, [Format::F32; 2], 4, 16);
        let resident = vec![true, false, false];
        let streaming = Streaming { resident, slots: 2, staged: true, ahead: true };
        let chosen = Job {
            batch: 2,
            recompute: true,
            streams: 2,
            columns: true,
            logits_bytes: 4096,
            streaming: Some(streaming),
            ..plain.clone()
        };
        let text = serde_json::to_string(&Order::of(&chosen)).expect("text");
        let order: Order = serde_json::from_str(&text).expect("an order");
        let mut job = plain.clone();
        order.apply(&mut job, true).expect("applied");
        assert_eq!(job, chosen);
        let mut other = Job { blocks: plain.blocks[..2].to_vec(), ..plain };
        assert!(order.apply(&mut other, true).is_err());
    }

    #[test]
    fn a_state_reads_again_to_the_last_bit() {
        let spent = Spent { steps: 3, seconds: 0.1 + 0.2, tokens: 9 };
        let best = (Some((2, std::f64::consts::PI)), 1);
        let state = State { spent, best, val_loss_before: Some(1.0 / 3.0), ..State::new() };
        let text = serde_json::to_string_pretty(&state).expect("text");
        assert_eq!(serde_json::from_str::<State>(&text).expect("a state"), state);
        state.check_version().expect("this version");
        let old = text.replace(&format!("\"version\": {VERSION}"), "\"version\": 0");
        let old: State = serde_json::from_str(&old).expect("a state");
        assert!(old.check_version().is_err());
    }
}
