//! Validation during a run: losses, the best checkpoint, an early end, the page.

use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use serde_json::json;

use super::best::Verdict;
use super::event::TuneEvent;
use super::run::CurvePoint;
use super::save;
use super::session::Session;
use crate::evaluate::Evaluation;
use crate::exits::Vote;
use crate::metrics::{Row, ValidationRow};
use crate::report;
use crate::run_dir::{remove_dir, replace_dir, write_config};
use crate::vote::{Learned, Scores};

/// Folder of the best checkpoint in a run directory.
pub const BEST: &str = "best";

/// What fitting the learned vote left.
pub(super) struct Fitted {
    /// Losses on what it was not fitted on, by all votes.
    pub held_out: Evaluation,
    /// Losses on all of the validation data by the run's vote, where they are known by then.
    all: Option<Evaluation>,
}

/// When the page was written and how long that took.
#[derive(Debug, Default)]
pub(super) struct Refresh {
    last: Option<(Instant, Duration)>,
}

impl Refresh {
    /// Whether it is time: pages of long runs take long, and should take a small part of the run.
    fn is_due(&self) -> bool {
        const SHARE: u32 = 20;
        self.last.is_none_or(|(at, took)| at.elapsed() >= took * SHARE)
    }
}

impl Session<'_> {
    /// Losses on the validation data, where there are any.
    pub(super) fn validate(&mut self, label: &'static str) -> Result<Option<Evaluation>> {
        let Some(stream) = &self.data.valid else { return Ok(None) };
        let model = &self.trainer.model;
        let sequences = model.job.eval_batch as usize;
        let count = stream.eval_batch_count(self.seq_len, sequences, None);
        let mut work = self.events.work(label, count);
        let batches = stream.eval_batches(self.seq_len, sequences, None)?;
        let result = model.evaluate(batches, self.options.vote, |_| work.step())?;
        self.note(label, &result)?;
        Ok(Some(result))
    }

    /// The losses after training: those of fitting the vote, where they say them all.
    pub(super) fn validate_after(&mut self, fitted: Option<&Fitted>) -> Result<Option<Evaluation>> {
        let label = "validate after";
        let Some(result) = fitted.and_then(|fitted| fitted.all.clone()) else {
            return self.validate(label);
        };
        self.note(label, &result)?;
        Ok(Some(result))
    }

    /// Keeps losses for the page and those who listen.
    fn note(&mut self, label: &'static str, result: &Evaluation) -> Result<()> {
        let vote = (self.trainer.windows() > 1).then_some(self.options.vote);
        let row = ValidationRow {
            step: self.spent.steps,
            tokens: self.spent.tokens,
            seconds: self.spent.seconds,
            done: self.budget.done(self.spent).min(1.0),
            val_loss: self.judged(result),
            val_vote: result.vote,
            val_exits: result.exits.clone(),
        };
        self.log.push(&Row::Validation(row.clone()))?;
        self.events.send(&TuneEvent::Validated { label, row, tokens: result.tokens, vote });
        self.curve.push(CurvePoint {
            seconds: self.spent.seconds,
            tokens: self.spent.tokens,
            val_loss: result.exits.iter().copied().fold(f64::INFINITY, f64::min),
            val_exits: result.exits.clone(),
            val_vote: result.vote,
        });
        Ok(())
    }

    /// The loss that a checkpoint is judged by. A learned vote is fitted behind training, on the
    /// validation data, so that its loss is not comparable with what was before.
    fn judged(&self, result: &Evaluation) -> f64 {
        match self.options.vote {
            Vote::Last | Vote::Learned => result.last(),
            Vote::Max | Vote::Mean if self.trainer.windows() > 1 => result.vote,
            Vote::Max | Vote::Mean => result.last(),
        }
    }

    /// Validates between steps; whether the run should end. `counts`: the exit that is judged by
    /// is being trained.
    pub(super) fn validate_during(&mut self, counts: bool) -> Result<bool> {
        let device = self.trainer.model.device.clone();
        self.times.extend(device.take_profile());
        let result = self.validate("validate")?;
        // The profile is of training alone.
        device.take_profile();
        let Some(result) = result else { return Ok(false) };
        let (step, loss) = (self.spent.steps, self.judged(&result));
        let verdict = self.best.judge(step, loss, counts);
        if verdict == Verdict::Best {
            self.keep_best(step, loss)?;
        }
        self.log.flush()?;
        self.refresh_page();
        let (Verdict::Stop, since) = (verdict, self.best.since) else { return Ok(false) };
        let best = match self.best.found {
            Some((at, best)) => format!("is {loss:.4} and was {best:.4} at step {at}"),
            None => "was never a number".to_owned(),
        };
        let text = format!(
            "stopped early at step {step}: the validation loss {best}, {since} validations without \
             improvement (--early-stopping)"
        );
        self.events.notice(text.as_str());
        self.run_dir.event("early-stop", json!({"step": step, "reason": text}))?;
        Ok(true)
    }

    /// The validation after training counts too, where there were others.
    pub(super) fn judge_last(&mut self, after: Option<&Evaluation>) -> Result<()> {
        let between = self.options.eval_every > 0 || self.options.evals > 0;
        let Some(after) = after.filter(|_| between) else { return Ok(()) };
        let (step, loss) = (self.spent.steps, self.judged(after));
        if self.best.judge(step, loss, false) == Verdict::Best {
            self.keep_best(step, loss)?;
        }
        Ok(())
    }

    /// Writes `best/`, which at any moment is whole.
    fn keep_best(&mut self, step: u64, loss: f64) -> Result<()> {
        let best = self.run_dir.path().join(BEST);
        let next = self.run_dir.path().join("best.tmp");
        // What a run that was killed left of it.
        remove_dir(&next)?;
        std::fs::create_dir(&next)
            .with_context(|| format!("cannot create {}: check free space", next.display()))?;
        let model = &self.trainer.model;
        save::results(self.options, self.source, model, &next)?;
        write_config(&next, &self.written)?;
        replace_dir(&next, &best)?;
        self.run_dir.event("best", json!({"step": step, "val_loss": loss}))?;
        self.events.send(&TuneEvent::Best { step, val_loss: loss });
        Ok(())
    }

    /// Writes the page, if it is time.
    pub(super) fn refresh_page(&mut self) {
        if self.page.is_due() {
            self.write_page();
        }
    }

    /// Writes the page from the files, as `report` does. A run does not end for want of a page.
    pub(super) fn write_page(&mut self) {
        let started = Instant::now();
        let written = self.log.flush().and_then(|()| report::write(self.run_dir.path()));
        if let Err(error) = written {
            self.events.notice(format!("the report is not written: {error:#}"));
        }
        self.page.last = Some((Instant::now(), started.elapsed()));
    }

    /// Fits the learned vote on the first half of the validation data, and judges all votes on the
    /// second.
    pub(super) fn fit_vote(&mut self) -> Result<Option<Fitted>> {
        let (Some(stream), true) = (&self.data.valid, self.trainer.windows() > 1) else {
            return Ok(None);
        };
        let model = &mut self.trainer.model;
        let sequences = model.job.eval_batch as usize;
        let mut batches: Vec<_> = stream.eval_batches(self.seq_len, sequences, None)?.collect();
        let held_out = batches.split_off(batches.len() / 2);
        if batches.is_empty() {
            self.events
                .notice("the validation data are too short to fit a vote on: the last exit speaks");
            return Ok(None);
        }
        let count = (batches.len() + held_out.len()) as u64;
        let mut work = self.events.work("fit the vote", count);
        let scores = model.score_exits(batches.into_iter(), || work.step())?;
        let learned = match scores.fit() {
            Ok(learned) => learned,
            // What was trained is to be kept.
            Err(error) => {
                self.events.notice(format!("{error:#}: the last exit speaks"));
                return Ok(None);
            }
        };
        model.set_learned(learned.clone())?;
        let judged = model.evaluate_all(held_out.into_iter(), &Vote::ALL, |_| work.step())?;
        let shown = |values: &[f32]| {
            values.iter().map(|x| format!("{x:.2}")).collect::<Vec<_>>().join(" / ")
        };
        self.events.notice(format!(
            "vote learned on the first half of the validation data: weights {}, temperatures {}",
            shown(&learned.weights),
            shown(&learned.temperatures)
        ));
        let votes = judged.votes.iter();
        let votes: Vec<String> = votes
            .map(|v| {
                format!("{} {:.4} ({:.3} ms/token)", v.rule.name(), v.val_loss, v.ms_per_token)
            })
            .collect();
        let exits: Vec<String> = judged.exits.iter().map(|loss| format!("{loss:.4}")).collect();
        self.events.notice(format!(
            "on the second half: loss {} at the exits, {}",
            exits.join(" / "),
            votes.join(", ")
        ));
        let all = self.over_both(&scores, &learned, &judged)?;
        Ok(Some(Fitted { held_out: judged, all }))
    }

    /// The losses over both halves: what the vote was fitted on has those of the first one, but for
    /// votes that are no mixture.
    fn over_both(
        &self,
        scores: &Scores,
        learned: &Learned,
        held_out: &Evaluation,
    ) -> Result<Option<Evaluation>> {
        let exits: Vec<f64> = (0..self.trainer.windows()).map(|k| scores.exit_loss(k)).collect();
        let vote = match self.options.vote {
            Vote::Learned => scores.vote_loss(learned)?,
            Vote::Last => *exits.last().unwrap_or(&f64::NAN),
            Vote::Max | Vote::Mean => return Ok(None),
        };
        let tokens = scores.tokens() as u64;
        let first = Evaluation { tokens, exits, vote, votes: Vec::new() };
        Ok(held_out.by(self.options.vote).map(|second| first.with(&second)))
    }
}
