//! A run that goes on: which one, from where, and what it keeps for that.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail, ensure};
use serde_json::json;

use super::checkpoints::{self, Checkpoint, Order, State};
use super::course::Turn;
use super::event::TuneEvent;
use super::save;
use super::session::Session;
use super::trainer::Trainer;
use crate::batch::Sampler;
use crate::cli::args::Method;
use crate::compress::calibrate::hash::{Fnv, model_hash};
use crate::data::Dataset;
use crate::run_dir::{CONFIG, RunState, write_config};
use crate::session::Source;

/// A run that ended before its end, and the checkpoint that it goes on from.
#[derive(Debug)]
pub struct Resume {
    run: PathBuf,
    /// `None`: the run wrote none, and begins again.
    pub(super) checkpoint: Option<Checkpoint>,
    /// Why newer checkpoints are not used.
    pub(super) notices: Vec<String>,
}

impl Resume {
    /// The run in a directory, behind its newest checkpoint that is whole; or behind the checkpoint
    /// whose folder `path` is. `None`: the run is finished.
    ///
    /// # Errors
    /// There is no run, another process has it, or none of its checkpoints can be used.
    pub fn find(path: &Path) -> Result<Option<Self>> {
        let run = run_of(path);
        ensure!(
            run.join(CONFIG).is_file(),
            "{} is no run that can go on, it has no {CONFIG}: give --resume a directory that tune \
             wrote, or a checkpoint in it",
            path.display()
        );
        match RunState::of(run)? {
            RunState::Running => bail!(
                "{} is in use by another process: wait for it, or stop that first",
                run.display()
            ),
            RunState::Finished => return Ok(None),
            RunState::Interrupted | RunState::Failed(_) | RunState::Died => {}
        }
        let (checkpoint, notices) = match run == path {
            true => checkpoints::newest(run)?,
            false => (Some(checkpoints::named(path)?), Vec::new()),
        };
        ensure!(
            checkpoint.is_some() || notices.is_empty(),
            "no checkpoint of {} can be used: {}; restore one, or start a new run with another \
             --out",
            run.display(),
            notices.join("; ")
        );
        Ok(Some(Self { run: run.to_owned(), checkpoint, notices }))
    }

    /// The run directory.
    pub fn run(&self) -> &Path {
        &self.run
    }

    /// Steps that are not done again.
    pub fn step(&self) -> u64 {
        self.state().map_or(0, State::step)
    }

    pub(super) fn state(&self) -> Option<&State> {
        self.checkpoint.as_ref().map(|checkpoint| &checkpoint.state)
    }

    /// Makes sure that model and data are those that the run began with.
    ///
    /// # Errors
    /// They are not.
    pub(super) fn check(&self, source: &Source, data: &Dataset) -> Result<()> {
        let Some(state) = self.state() else { return Ok(()) };
        let run = self.run.display();
        ensure!(
            model_hash(&source.dir, &source.checkpoint)? == state.model,
            "{} is not the model that {run} began with: give --model that one, or start a new run",
            source.dir.display()
        );
        ensure!(
            data_hash(data) == state.data,
            "the data are not those that {run} began with: give --data the same files, or start a \
             new run"
        );
        Ok(())
    }

    /// Puts values, moments and counts into a trainer.
    ///
    /// # Errors
    /// The checkpoint is of another device or model, or the device fails.
    pub(super) fn restore(&self, trainer: &mut Trainer) -> Result<()> {
        let Some(checkpoint) = &self.checkpoint else { return Ok(()) };
        let state = &checkpoint.state;
        ensure!(
            state.window < trainer.windows() && state.updates.len() == trainer.updates().len(),
            "{} is of a run with other windows: start a new run",
            checkpoint.path.display()
        );
        checkpoints::restore(&checkpoint.tensors(), trainer, state.window)?;
        trainer.set_updates(&state.updates);
        Ok(())
    }
}

/// The run directory that a path is, or that has it as a checkpoint.
pub(crate) fn run_of(path: &Path) -> &Path {
    let parent = path.parent().filter(|parent| parent.ends_with(checkpoints::DIR));
    match (checkpoints::step_of(path), parent.and_then(Path::parent)) {
        (Some(_), Some(run)) => run,
        _ => path,
    }
}

/// A number for the tokens of training and validation, and for which of them count.
pub(super) fn data_hash(data: &Dataset) -> String {
    let mut hash = Fnv::default();
    for stream in std::iter::once(&data.train).chain(&data.valid) {
        hash.number(stream.ids.len() as u64).sampled(bytemuck::cast_slice(&stream.ids));
        hash.sampled(&stream.answers);
        for example in stream.examples.iter() {
            hash.number(example.start as u64).number(example.prompt as u64);
        }
    }
    hash.hex()
}

impl Session<'_> {
    /// Writes a checkpoint behind `turn`, the last step, unless one of this step is there.
    ///
    /// # Errors
    /// The device fails or the disk is full.
    pub(super) fn checkpoint(&mut self, turn: Turn, evals: u64, sampler: &Sampler) -> Result<()> {
        if self.checkpointed == Some(self.spent.steps) {
            return Ok(());
        }
        let state = self.state(turn, evals, sampler)?;
        let Self { options, source, .. } = *self;
        let model = &self.trainer.model;
        let fill = |dir: &Path| -> Result<()> {
            checkpoints::save(dir, model, turn.window)?;
            // With method full the values are the model, and larger than what it is saved in.
            if options.method != Method::Full {
                save::results(options, source, model, dir)?;
            }
            write_config(dir, &self.written)
        };
        let keep = options.keep_checkpoints;
        let path = checkpoints::write(self.run_dir.path(), &state, keep, fill)?;
        let step = self.spent.steps;
        self.checkpointed = Some(step);
        self.run_dir.event("checkpoint", json!({"step": step}))?;
        self.events.send(&TuneEvent::Checkpointed { step, path });
        Ok(())
    }

    fn state(&mut self, turn: Turn, evals: u64, sampler: &Sampler) -> Result<State> {
        let logs = self.log.logs()?;
        if self.hashes.is_none() {
            let model = model_hash(&self.source.dir, &self.source.checkpoint)?;
            self.hashes = Some((model, data_hash(self.data)));
        }
        let (model, data) = self.hashes.clone().context("they were made just now")?;
        let trainer = &self.trainer;
        Ok(State {
            model,
            data,
            device: trainer.model.device.info().name.clone(),
            spent: self.spent,
            trained_tokens: self.trained_tokens,
            skipped: self.skipped,
            position: sampler.position(),
            phase: turn.phase,
            window: turn.window,
            updates: trainer.updates().to_vec(),
            evals,
            best: (self.best.found, self.best.since),
            val_loss_before: self.val_loss_before,
            curve: self.curve.clone(),
            order: Order::of(&trainer.model.job),
            logs,
            ..State::new()
        })
    }

    /// Puts the session where a checkpoint left it.
    ///
    /// # Errors
    /// As [`Resume::restore`]; or a file of the run cannot be changed.
    pub(super) fn go_on(&mut self, resume: &Resume) -> Result<()> {
        checkpoints::remove_behind(self.run_dir.path(), resume.step())?;
        for notice in &resume.notices {
            self.events.notice(notice.as_str());
        }
        let Some(checkpoint) = &resume.checkpoint else {
            let run = self.run_dir.path().display();
            self.events.notice(format!("{run} has no checkpoint yet: the run begins again"));
            return Ok(());
        };
        resume.restore(&mut self.trainer)?;
        let state = &checkpoint.state;
        let device = &self.trainer.model.device.info().name;
        if *device != state.device {
            self.events.notice(format!(
                "the run began on {} and goes on on {device}: it will not be the same to the last \
                 bit",
                state.device
            ));
        }
        self.spent = state.spent;
        self.trained_tokens = state.trained_tokens;
        self.skipped = state.skipped;
        (self.best.found, self.best.since) = state.best;
        self.val_loss_before = state.val_loss_before;
        self.curve = state.curve.clone();
        self.checkpointed = Some(state.step());
        self.read_steps()?;
        self.events.notice(format!("going on behind step {} of the run", state.step()));
        Ok(())
    }
}
