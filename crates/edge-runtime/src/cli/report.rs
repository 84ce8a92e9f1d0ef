//! What commands print: JSON objects for programs, progress for people.

use std::io::{IsTerminal, Write};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use indicatif::{ProgressBar, ProgressStyle};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use crate::evaluate::Voted;
use crate::exits::Vote;
use crate::model::stream::StreamReport;
use crate::profile::ProfileReport;
use crate::tune::trunk_cache::CacheReport;

/// Validation loss at an exit.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct ExitLoss {
    /// Exit, counted from 1.
    pub exit: usize,
    /// Mean over predicted tokens, nats.
    pub val_loss: f64,
}

impl ExitLoss {
    /// Of exits from the bottom up.
    pub fn all(losses: &[f64]) -> Vec<Self> {
        let numbered = losses.iter().enumerate();
        numbered.map(|(index, &val_loss)| Self { exit: index + 1, val_loss }).collect()
    }
}

/// Validation loss of the combined exits.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct VoteLoss {
    /// `last`, `max`, `mean` or `learned`.
    pub rule: String,
    /// Mean over predicted tokens, nats.
    pub val_loss: f64,
}

/// The best validation between and after the steps of a run.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct BestReport {
    /// Optimiser steps until then.
    pub step: u64,
    /// Its loss, nats.
    pub val_loss: f64,
}

/// `tune --json`; the keys in this order. What was not measured or predicted is null.
#[derive(Clone, Debug, Default, Serialize)]
pub struct TuneReport {
    /// `lora`, `full`, `qlora`, `partial` or `edge`.
    pub method: String,
    /// Name of the device.
    pub device: String,
    /// Optimiser steps done.
    pub steps: u64,
    /// Tokens that went through the model in training.
    pub tokens: u64,
    /// Predicted tokens that counted in the training loss.
    pub trained_tokens: u64,
    /// Steps that were left out, because loss or gradient was no number.
    pub skipped_steps: u64,
    /// `tokens` over the time of the steps.
    pub tokens_per_second: f64,
    /// Median time of a step, ms.
    pub step_ms_median: f64,
    /// Mean training loss of the last steps, nats.
    pub train_loss: f64,
    /// Before training, nats.
    pub val_loss_before: Option<f64>,
    /// After training, nats: the vote's with --method edge, else the last exit's.
    pub val_loss: Option<f64>,
    /// `exp(val_loss)`.
    pub val_perplexity: Option<f64>,
    /// Each exit's loss; of methods without exits the only one. Empty without validation data.
    pub exits: Vec<ExitLoss>,
    /// The combined exits' loss.
    pub vote: Option<VoteLoss>,
    /// With several exits: each one's loss on the half of the validation data that the learned
    /// vote was not fitted on.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub held_out_exits: Vec<ExitLoss>,
    /// Every rule's loss on that half, and its cost.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub votes: Vec<Voted>,
    /// Most device memory in use at once, bytes.
    pub peak_device_bytes: u64,
    /// The same by category.
    pub peak_device_bytes_by_category: Map<String, Value>,
    /// Most memory of the process, bytes.
    pub peak_host_bytes: Option<u64>,
    /// The best validation, whose checkpoint is in `best/`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub best: Option<BestReport>,
    /// Whether `--early-stopping` ended the run.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub stopped_early: bool,
    /// Whether Ctrl-C, or the listener of an application, ended the run.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub interrupted: bool,
    /// What the cache of hidden states did, where there was one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub trunk_cache: Option<CacheReport>,
    /// What the plan said of `peak_device_bytes`.
    pub predicted_peak_device_bytes: Option<u64>,
    /// What the plan said of a step, ms.
    pub predicted_step_ms: Option<f64>,
    /// What streaming of weights did in training, where blocks do not stay on the device.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub streaming: Option<StreamReport>,
    /// Time by op, with `--profile`.
    pub profile: Option<ProfileReport>,
    /// The run directory.
    pub run_dir: String,
}

/// `eval --json`; the keys in this order.
#[derive(Clone, Debug, Default, Serialize)]
pub struct EvalReport {
    /// Mean over predicted tokens, nats: the vote's where there are several exits, else the last
    /// exit's.
    pub loss: f64,
    /// `exp(loss)`.
    pub perplexity: f64,
    /// Predicted tokens.
    pub tokens: u64,
    /// Examples that lost their end; `--max-windows` may have left some of them out.
    pub cut: u64,
    /// Examples left out, since no answer begins within a sequence.
    pub skipped: u64,
    /// Each exit's loss; of a model without exits the only one.
    pub exits: Vec<ExitLoss>,
    /// The combined exits' loss.
    pub vote: Option<VoteLoss>,
    /// Every rule's loss and cost, with `--all-votes`.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub votes: Vec<Voted>,
}

/// `eval --choices --json`; the keys in this order.
#[derive(Clone, Debug, Serialize)]
pub struct ChoicesReport {
    /// Share of right answers, by the chosen vote.
    pub accuracy: f64,
    /// Share of somebody who guesses.
    pub chance: f64,
    /// Questions.
    pub items: u64,
    /// Those whose beginning was left out.
    pub cut: u64,
    /// Share at each exit, from the bottom up; empty without exits.
    pub exits: Vec<f64>,
    /// Share by rule; empty without exits.
    pub votes: Vec<VoteAccuracy>,
}

/// Share of right answers by a rule.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct VoteAccuracy {
    /// The rule.
    pub rule: Vote,
    /// Share of right answers.
    pub accuracy: f64,
}

/// One line of JSON; numbers that are not finite become null.
///
/// # Errors
/// The report cannot be laid out.
pub fn json_line(report: &impl Serialize) -> Result<String> {
    serde_json::to_string(report).context("cannot lay out the report")
}

/// Prints a report as the last line on stdout.
///
/// # Errors
/// Standard output is closed.
pub fn print_json(report: &impl Serialize) -> Result<()> {
    let mut out = std::io::stdout().lock();
    writeln!(out, "{}", json_line(report)?).context("cannot write to standard output")
}

/// Most memory that this process has held, bytes; `None` where the system does not say.
pub fn peak_host_bytes() -> Option<u64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"))?;
    Some(line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok()? * 1024)
}

/// Starts [`peak_host_bytes`] again at what is held now; whether the system can.
pub fn reset_peak_host() -> bool {
    // proc(5): 5 resets the peak resident set size.
    std::fs::write("/proc/self/clear_refs", "5").is_ok()
}

/// Time between plain lines.
const LINE_EVERY: Duration = Duration::from_secs(3);

/// Parts of the whole in [`Progress::following`].
const SHARES: u64 = 1000;

/// Progress on stderr: a bar on a terminal, else a line each few seconds, nothing when quiet.
#[derive(Debug)]
pub struct Progress {
    label: &'static str,
    len: u64,
    position: u64,
    style: Style,
}

#[derive(Debug)]
enum Style {
    Quiet,
    Bar(ProgressBar),
    Lines {
        start: Instant,
        last: Instant,
    },
    /// Of work that somebody else does: whoever says how it goes says how long it will take.
    Following {
        bar: Option<ProgressBar>,
        last: Option<(Instant, String)>,
    },
}

impl Progress {
    /// Progress of `len` units of work called `label`.
    pub fn new(label: &'static str, len: u64, quiet: bool) -> Self {
        let style = if quiet {
            Style::Quiet
        } else if std::io::stderr().is_terminal() {
            let bar = ProgressBar::new(len).with_prefix(label);
            let form = "{prefix} {wide_bar} {pos}/{len} {msg} [{elapsed}, {eta} left]";
            bar.set_style(
                ProgressStyle::with_template(form).unwrap_or(ProgressStyle::default_bar()),
            );
            Style::Bar(bar)
        } else {
            let now = Instant::now();
            Style::Lines { start: now, last: now }
        };
        Self { label, len, position: 0, style }
    }

    /// The same of work that began earlier.
    pub fn since(mut self, started: Instant) -> Self {
        match &mut self.style {
            Style::Lines { start, .. } => *start = started,
            Style::Bar(bar) => *bar = bar.clone().with_elapsed(started.elapsed()),
            Style::Quiet | Style::Following { .. } => {}
        }
        self
    }

    /// Progress of work that another process does; [`Progress::share`] says how far it is.
    pub fn following() -> Self {
        let bar = std::io::stderr().is_terminal().then(|| {
            let form = "{percent} % {wide_bar}\n{msg}";
            let style = ProgressStyle::with_template(form);
            ProgressBar::new(SHARES).with_style(style.unwrap_or(ProgressStyle::default_bar()))
        });
        let style = Style::Following { bar, last: None };
        Self { label: "", len: SHARES, position: 0, style }
    }

    /// A share of the whole is done; at the end, that is said in any case.
    pub fn share(&mut self, done: f64, end: bool, message: impl FnOnce() -> String) {
        let Style::Following { bar, last } = &mut self.style else { return };
        self.position = (done * SHARES as f64) as u64;
        match bar {
            Some(bar) => {
                bar.set_message(message());
                bar.set_position(self.position);
            }
            None if end || last.as_ref().is_none_or(|(at, _)| at.elapsed() >= LINE_EVERY) => {
                let text = format!("{:.0} %: {}", 100.0 * done, message());
                // A run that waits or validates has nothing new.
                if last.as_ref().is_none_or(|(_, before)| *before != text) {
                    eprintln!("{text}");
                }
                *last = Some((Instant::now(), text));
            }
            None => {}
        }
    }

    /// One unit more is done; `message` says how it went.
    pub fn step(&mut self, message: impl FnOnce() -> String) {
        self.reach(self.position + 1, message);
    }

    /// `position` units are done in all; `message` says how it went.
    pub fn reach(&mut self, position: u64, message: impl FnOnce() -> String) {
        self.position = position.min(self.len);
        let done = self.position == self.len;
        match &mut self.style {
            Style::Quiet | Style::Following { .. } => {}
            Style::Bar(bar) => {
                bar.set_message(message());
                bar.set_position(self.position);
            }
            Style::Lines { start, last } => {
                if last.elapsed() >= LINE_EVERY || done {
                    *last = Instant::now();
                    let line = line(self.label, self.position, self.len, start.elapsed());
                    eprintln!("{line} {}", message());
                }
            }
        }
    }

    /// A line for people that stays, above the bar.
    pub fn say(&self, text: &str) {
        match &self.style {
            Style::Quiet => {}
            Style::Bar(bar) | Style::Following { bar: Some(bar), .. } => {
                bar.suspend(|| eprintln!("{text}"));
            }
            Style::Lines { .. } | Style::Following { .. } => eprintln!("{text}"),
        }
    }

    /// The work is over, whether all of it was done or not.
    pub fn finish(self) {
        if let Style::Bar(bar) | Style::Following { bar: Some(bar), .. } = self.style {
            bar.finish_and_clear();
        }
    }
}

fn line(label: &str, position: u64, len: u64, elapsed: Duration) -> String {
    let elapsed = elapsed.as_secs_f64();
    let left = elapsed / position.max(1) as f64 * len.saturating_sub(position) as f64;
    format!("{label} {position}/{len} [{elapsed:.0} s, {left:.0} s left]")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn keys(text: &str) -> Vec<String> {
        let value: Map<String, Value> = serde_json::from_str(text).unwrap();
        value.keys().cloned().collect()
    }

    #[test]
    fn keys_of_tune_are_stable() {
        let text = json_line(&TuneReport { train_loss: f64::NAN, ..TuneReport::default() });
        let text = text.unwrap();
        let expected = "method device steps tokens trained_tokens skipped_steps \
                        tokens_per_second step_ms_median train_loss val_loss_before val_loss \
                        val_perplexity exits vote peak_device_bytes \
                        peak_device_bytes_by_category peak_host_bytes \
                        predicted_peak_device_bytes predicted_step_ms profile run_dir";
        assert_eq!(keys(&text).join(" "), expected);
        assert!(text.contains("\"train_loss\":null") && !text.contains('\n'));
    }

    #[test]
    fn keys_of_eval_are_stable() {
        let report = EvalReport {
            exits: vec![ExitLoss { exit: 1, val_loss: 2.0 }],
            vote: Some(VoteLoss { rule: "mean".to_owned(), val_loss: 1.5 }),
            ..EvalReport::default()
        };
        let text = json_line(&report).unwrap();
        assert_eq!(keys(&text).join(" "), "loss perplexity tokens cut skipped exits vote");
        assert!(text.contains(r#""exits":[{"exit":1,"val_loss":2.0}]"#));
        assert!(text.contains(r#""vote":{"rule":"mean","val_loss":1.5}"#));
        let text = json_line(&report).unwrap();
        assert_eq!(keys(&text).join(" "), "loss perplexity tokens cut skipped exits vote");
    }

    #[test]
    fn lines_estimate_the_rest() {
        let text = line("tune", 3, 12, Duration::from_secs(6));
        assert_eq!(text, "tune 3/12 [6 s, 18 s left]");
        assert_eq!(line("tune", 0, 0, Duration::ZERO), "tune 0/0 [0 s, 0 s left]");
    }

    #[test]
    fn quiet_progress_asks_for_no_message() {
        let mut progress = Progress::new("tune", 2, true);
        progress.step(|| panic!("not needed"));
        progress.say("nothing");
        progress.finish();
    }

    #[test]
    #[cfg(target_os = "linux")]
    fn the_process_knows_its_peak() {
        let touched = vec![1u8; 32 << 20];
        let peak = peak_host_bytes().unwrap();
        assert!(peak >= touched.iter().map(|byte| u64::from(*byte)).sum());
    }
}
