//! The events of a run for a person, as bars and lines on stderr, and Ctrl-C for the run.

use crate::cli::report::Progress;
use crate::exits::Vote;
use crate::interrupt;
use crate::metrics::{StepRow, ValidationRow};
use crate::session::mebibytes;
use crate::tune::course::{Budget, Spent};
use crate::tune::event::{Control, TuneEvent};

/// Listens to a run for the command line.
#[derive(Debug)]
pub struct Terminal {
    quiet: bool,
    /// The bar of the steps, and what its units are.
    steps: Option<(Budget, Progress)>,
    /// The bar of what goes on beside them.
    work: Option<(&'static str, Progress)>,
}

impl Terminal {
    /// Before a run; `quiet`: nothing is printed.
    pub fn new(quiet: bool) -> Self {
        Self { quiet, steps: None, work: None }
    }

    /// Shows an event, and stops the run where Ctrl-C was pressed.
    pub fn hear(&mut self, event: &TuneEvent) -> Control {
        if !self.quiet {
            self.show(event);
        }
        if interrupt::requested() { Control::Stop } else { Control::Continue }
    }

    fn show(&mut self, event: &TuneEvent) {
        if let TuneEvent::Work { label, done, len } = *event {
            return self.work(label, done, len);
        }
        // Work ends with whatever comes behind it.
        if let Some((_, bar)) = self.work.take() {
            bar.finish();
        }
        match event {
            TuneEvent::Notice(text) => self.say(text),
            TuneEvent::Planned(header) => self.say(&header.text()),
            TuneEvent::Started(budget) => {
                let (len, _) = budget.progress(Spent::default());
                self.steps = Some((*budget, Progress::new("tune", len, false)));
            }
            TuneEvent::Step(row) => self.step(row),
            TuneEvent::Validated { label, row, tokens, vote } => {
                self.say(&validated(label, row, *tokens, *vote));
            }
            TuneEvent::Trained(_) => {
                if let Some((_, bar)) = self.steps.take() {
                    bar.finish();
                }
            }
            TuneEvent::Work { .. }
            | TuneEvent::Loaded
            | TuneEvent::Phase { .. }
            | TuneEvent::Best { .. }
            | TuneEvent::Checkpointed { .. }
            | TuneEvent::Resting { .. }
            | TuneEvent::Saved(_) => {}
        }
    }

    fn work(&mut self, label: &'static str, done: u64, len: u64) {
        if self.work.as_ref().is_some_and(|(before, _)| *before != label)
            && let Some((_, bar)) = self.work.take()
        {
            bar.finish();
        }
        let new = || (label, Progress::new(label, len, false));
        self.work.get_or_insert_with(new).1.reach(done, String::new);
    }

    fn step(&mut self, row: &StepRow) {
        let Some((budget, bar)) = &mut self.steps else { return };
        let spent = Spent { steps: row.step, seconds: row.seconds, tokens: row.tokens };
        bar.reach(budget.progress(spent).1, || {
            format!(
                "loss {:.4}, lr {:.2e}, {:.0} tokens/s, peak {}",
                row.loss,
                row.lr,
                row.tokens_per_s,
                mebibytes(row.device_bytes)
            )
        });
    }

    /// A line that stays, above the bar.
    fn say(&self, text: &str) {
        match &self.steps {
            Some((_, bar)) => bar.say(text),
            None => Progress::new("", 0, false).say(text),
        }
    }
}

/// A validation in a line.
fn validated(label: &str, row: &ValidationRow, tokens: u64, vote: Option<Vote>) -> String {
    let exits: Vec<String> = row.val_exits.iter().map(|loss| format!("{loss:.4}")).collect();
    let vote = match vote {
        None => String::new(),
        Some(rule) => format!(", vote {} {:.4}", rule.name(), row.val_vote),
    };
    format!("{label}: loss {} at the exits{vote} ({tokens} tokens)", exits.join(" / "))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn validations_say_exits_and_vote() {
        let row = ValidationRow {
            step: 3,
            tokens: 96,
            seconds: 1.0,
            done: 0.5,
            val_loss: 2.0,
            val_vote: 1.5,
            val_exits: vec![3.0, 2.0],
        };
        let text = validated("validate", &row, 64, Some(Vote::Mean));
        assert_eq!(
            text,
            "validate: loss 3.0000 / 2.0000 at the exits, vote mean 1.5000 (64 tokens)"
        );
        assert!(validated("validate", &row, 64, None).ends_with("2.0000 at the exits (64 tokens)"));
    }

    #[test]
    fn a_quiet_terminal_keeps_no_bars() {
        let mut terminal = Terminal::new(true);
        terminal.hear(&TuneEvent::Work { label: "load", done: 1, len: 2 });
        terminal.hear(&TuneEvent::Started(Budget::Steps(3)));
        assert!(terminal.steps.is_none() && terminal.work.is_none());
    }
}
