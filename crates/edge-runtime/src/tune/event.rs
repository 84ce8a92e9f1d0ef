//! What a run says while it goes on, and what its listener answers.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use anyhow::{Result, bail};

use super::course::Budget;
use super::header::Header;
use crate::exits::Vote;
use crate::interrupt::Interrupted;
use crate::metrics::{StepRow, ValidationRow};

/// What a listener wants of a run.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Control {
    /// It goes on.
    #[default]
    Continue,
    /// It ends as with Ctrl-C: the step is finished, and what was learned so far is validated and
    /// written. Before training has a run directory, the run fails with
    /// [`Interrupted`] and leaves nothing behind.
    Stop,
}

/// How the steps of a run ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ended {
    /// The budget is used.
    Whole,
    /// Validation losses improved no more (`early_stopping`).
    Early,
    /// The listener answered [`Control::Stop`].
    Interrupted,
}

/// What happens in a run. In this order: `Planned`, `Loaded`, `Started`, then `Phase` before the
/// first `Step` of each part of the run, `Trained` and `Saved`; a `Validated` before `Started`, as
/// many as were asked for between steps, and one behind `Trained`, where there are validation data.
/// `Work`, `Notice` and `Checkpointed` come in between. A run that goes on has no `Validated`
/// before `Started`; where the device fails on the way and is opened again, they begin anew.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub enum TuneEvent {
    /// A sentence for people.
    Notice(String),
    /// What the run is to be; nothing is loaded yet.
    Planned(Box<Header>),
    /// `done` of `len` units of work beside the steps: loading, validation, measurement.
    Work {
        /// What is done.
        label: &'static str,
        /// Units that are done, from 1.
        done: u64,
        /// All units, at least `done`; about so many, where the run cannot know.
        len: u64,
    },
    /// The model is on the device.
    Loaded,
    /// The steps begin; the budget ends them.
    Started(Budget),
    /// A part of the run begins.
    Phase {
        /// Which part, from 1; more than one with progressive and isolated windows.
        phase: u64,
        /// The window of its first step, from 1.
        window: u64,
    },
    /// A step is done: its row of `metrics.jsonl`.
    Step(StepRow),
    /// A validation is done.
    Validated {
        /// `validate before`, `validate` or `validate after` the steps.
        label: &'static str,
        /// Its row of `metrics.jsonl`.
        row: ValidationRow,
        /// Predicted tokens.
        tokens: u64,
        /// How exits were combined, where there are several.
        vote: Option<Vote>,
    },
    /// The validation was the best so far, and `best/` has its checkpoint.
    Best {
        /// Optimiser steps so far.
        step: u64,
        /// Its loss, nats.
        val_loss: f64,
    },
    /// A checkpoint is written, from which the run can go on.
    Checkpointed {
        /// Optimiser steps so far.
        step: u64,
        /// Its folder.
        path: PathBuf,
    },
    /// The run waits, once a second: the battery is low or the device hot.
    Resting {
        /// Which.
        reason: String,
        /// How long it has waited.
        seconds: u64,
    },
    /// The steps are over.
    Trained(Ended),
    /// All files of the run are in this directory.
    Saved(PathBuf),
}

/// Who hears the events of a run.
pub type Listener<'a> = &'a mut dyn FnMut(&TuneEvent) -> Control;

/// Hands events to a listener and remembers whether it wants the run to stop.
pub struct Events<'a> {
    listener: Listener<'a>,
    stopped: Arc<AtomicBool>,
}

impl<'a> Events<'a> {
    /// Events for this listener.
    pub fn new(listener: Listener<'a>) -> Self {
        Self { listener, stopped: Arc::default() }
    }

    /// The same listener, for a part of the run.
    pub fn lend(&mut self) -> Events<'_> {
        Events { listener: &mut *self.listener, stopped: Arc::clone(&self.stopped) }
    }

    /// Hands an event out.
    pub fn send(&mut self, event: &TuneEvent) {
        // A stop cannot be taken back: the run may have acted on it.
        if (self.listener)(event) == Control::Stop {
            self.stopped.store(true, Ordering::Relaxed);
        }
    }

    /// Hands a sentence for people out.
    pub fn notice(&mut self, text: impl Into<String>) {
        self.send(&TuneEvent::Notice(text.into()));
    }

    /// Begins `len` units of work called `label`.
    pub fn work(&mut self, label: &'static str, len: u64) -> Work<'_, 'a> {
        Work { events: self, label, done: 0, len }
    }

    /// Whether the run should stop after its current step.
    pub fn stopped(&self) -> bool {
        self.stopped.load(Ordering::Relaxed)
    }

    /// Ends work that leaves nothing half done where the listener wants to stop.
    ///
    /// # Errors
    /// [`Interrupted`].
    pub fn check(&self) -> Result<()> {
        if self.stopped() {
            bail!(Interrupted);
        }
        Ok(())
    }
}

/// Work while it goes on.
pub struct Work<'e, 'a> {
    events: &'e mut Events<'a>,
    label: &'static str,
    done: u64,
    len: u64,
}

impl Work<'_, '_> {
    /// One unit more is done.
    pub fn step(&mut self) {
        self.done += 1;
        self.len = self.len.max(self.done);
        let Self { label, done, len, .. } = *self;
        self.events.send(&TuneEvent::Work { label, done, len });
    }

    /// As [`Events::check`].
    ///
    /// # Errors
    /// [`Interrupted`].
    pub fn check(&self) -> Result<()> {
        self.events.check()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stop_holds() {
        let mut heard = Vec::new();
        let mut listener = |event: &TuneEvent| {
            heard.push(event.clone());
            match event {
                TuneEvent::Work { done: 2, .. } => Control::Stop,
                _ => Control::Continue,
            }
        };
        let mut events = Events::new(&mut listener);
        let mut work = events.work("load", 3);
        work.step();
        work.check().expect("nobody stops");
        work.step();
        work.step();
        assert!(work.check().is_err_and(|error| error.is::<Interrupted>()));
        events.notice("stopped");
        assert!(events.stopped());
        let done = |done| TuneEvent::Work { label: "load", done, len: 3 };
        let notice = TuneEvent::Notice("stopped".to_owned());
        assert_eq!(heard, [done(1), done(2), done(3), notice]);
    }
}
