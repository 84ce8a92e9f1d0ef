//! What a run measures, step by step: `metrics.jsonl`, the same as `metrics.csv`, and event files
//! for TensorBoard.

mod log;
mod read;
mod tfevents;

pub use self::log::MetricsLog;
pub use self::read::{Metrics, Tail};
pub use self::tfevents::{TfEvents, masked_crc32c};

use serde::{Deserialize, Deserializer, Serialize};

/// File with an object for each step and each validation.
pub const JSONL: &str = "metrics.jsonl";

/// The same columns for spreadsheets.
pub const CSV: &str = "metrics.csv";

/// A training step. Losses that are no numbers are null in files.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct StepRow {
    /// Optimiser steps so far, this one included.
    pub step: u64,
    /// Part of the run, from 1; more than one with progressive and isolated windows.
    pub phase: u64,
    /// The window that was trained, from 1.
    pub window: u64,
    /// Mean over the trained tokens before the update, nats.
    #[serde(deserialize_with = "number")]
    pub loss: f64,
    /// Learning rate.
    #[serde(deserialize_with = "number")]
    pub lr: f64,
    /// Norm of the gradient before clipping.
    #[serde(deserialize_with = "number")]
    pub grad_norm: f64,
    /// Tokens that went through the model in training so far.
    pub tokens: u64,
    /// Tokens a second in this step.
    #[serde(deserialize_with = "number")]
    pub tokens_per_s: f64,
    /// Time of this step, ms.
    #[serde(deserialize_with = "number")]
    pub step_ms: f64,
    /// Seconds of training so far; validation does not count.
    #[serde(deserialize_with = "number")]
    pub seconds: f64,
    /// Most device memory in use at once so far.
    pub device_bytes: u64,
    /// The memory budget, where there is one.
    pub budget_bytes: Option<u64>,
    /// Share of the run that is done, by what counts it.
    #[serde(deserialize_with = "number")]
    pub done: f64,
}

/// A validation, behind the step of the same number; 0: before training.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ValidationRow {
    /// Optimiser steps so far.
    pub step: u64,
    /// Tokens that went through the model in training so far.
    pub tokens: u64,
    /// Seconds of training so far.
    #[serde(deserialize_with = "number")]
    pub seconds: f64,
    /// Share of the run that is done.
    #[serde(deserialize_with = "number")]
    pub done: f64,
    /// Loss that the best checkpoint is chosen by: the vote's, or with a learned vote, which is
    /// fitted behind training, and with a single exit the last exit's. Nats.
    #[serde(deserialize_with = "number")]
    pub val_loss: f64,
    /// Loss of the vote, nats.
    #[serde(deserialize_with = "number")]
    pub val_vote: f64,
    /// Loss at each exit, from the bottom up, nats.
    #[serde(deserialize_with = "numbers")]
    pub val_exits: Vec<f64>,
}

/// A line of `metrics.jsonl`.
#[derive(Clone, Debug, PartialEq)]
pub enum Row {
    /// A training step.
    Step(StepRow),
    /// A validation.
    Validation(ValidationRow),
}

/// Bytes of the files that grow with each step, at some step: what lies behind is of later ones.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Logs {
    /// `metrics.jsonl`.
    pub(crate) jsonl: u64,
    /// `metrics.csv`.
    pub(crate) csv: u64,
    /// Name and bytes of the event file.
    pub(crate) events: (String, u64),
}

/// JSON has no NaN: null stands for numbers that are none.
pub(crate) fn number<'de, D: Deserializer<'de>>(deserializer: D) -> Result<f64, D::Error> {
    Ok(Option::deserialize(deserializer)?.unwrap_or(f64::NAN))
}

pub(crate) fn numbers<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<f64>, D::Error> {
    let values: Vec<Option<f64>> = Vec::deserialize(deserializer)?;
    Ok(values.into_iter().map(|value| value.unwrap_or(f64::NAN)).collect())
}

/// The columns of `metrics.csv` for a run with this many exits: the keys of both kinds of rows.
fn columns(exits: usize) -> Vec<String> {
    let names = "step phase window loss lr grad_norm tokens tokens_per_s step_ms seconds \
                 device_bytes budget_bytes done val_loss val_vote";
    let mut columns: Vec<String> = names.split_whitespace().map(str::to_owned).collect();
    columns.extend((1..=exits).map(|exit| format!("val_exit_{exit}")));
    columns
}

impl Row {
    /// Its line of `metrics.csv`: what it does not have stays empty.
    fn csv(&self, exits: usize) -> String {
        let finite = |value: f64| if value.is_finite() { value.to_string() } else { String::new() };
        let mut cells = match self {
            Self::Step(row) => vec![
                row.step.to_string(),
                row.phase.to_string(),
                row.window.to_string(),
                finite(row.loss),
                finite(row.lr),
                finite(row.grad_norm),
                row.tokens.to_string(),
                finite(row.tokens_per_s),
                finite(row.step_ms),
                finite(row.seconds),
                row.device_bytes.to_string(),
                row.budget_bytes.map(|bytes| bytes.to_string()).unwrap_or_default(),
                finite(row.done),
            ],
            Self::Validation(row) => {
                let mut cells = vec![String::new(); 13];
                cells[0] = row.step.to_string();
                cells[6] = row.tokens.to_string();
                cells[9] = finite(row.seconds);
                cells[12] = finite(row.done);
                cells.extend([finite(row.val_loss), finite(row.val_vote)]);
                cells.extend(row.val_exits.iter().copied().map(finite));
                cells
            }
        };
        cells.resize(columns(exits).len(), String::new());
        cells.join(",")
    }

    /// Its line of `metrics.jsonl`.
    fn json(&self) -> serde_json::Result<String> {
        match self {
            Self::Step(row) => serde_json::to_string(row),
            Self::Validation(row) => serde_json::to_string(row),
        }
    }

    /// Its scalars for TensorBoard, and the step that they belong to.
    fn scalars(&self) -> (u64, Vec<(String, f64)>) {
        match self {
            Self::Step(row) => {
                let scalars = [
                    ("train/loss".to_owned(), row.loss),
                    (format!("train/loss_window_{}", row.window), row.loss),
                    ("train/lr".to_owned(), row.lr),
                    ("train/grad_norm".to_owned(), row.grad_norm),
                    ("speed/tokens_per_s".to_owned(), row.tokens_per_s),
                    ("speed/step_ms".to_owned(), row.step_ms),
                    ("memory/device_bytes".to_owned(), row.device_bytes as f64),
                ];
                (row.step, scalars.into())
            }
            Self::Validation(row) => {
                let mut scalars = vec![
                    ("val/loss".to_owned(), row.val_loss),
                    ("val/vote".to_owned(), row.val_vote),
                ];
                let exits = (1..).zip(&row.val_exits);
                scalars.extend(exits.map(|(exit, loss)| (format!("val/exit_{exit}"), *loss)));
                (row.step, scalars)
            }
        }
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// A step of a run of 100.
    pub(crate) fn step(step: u64) -> Row {
        Row::Step(StepRow {
            step,
            phase: 1,
            window: step % 2 + 1,
            loss: 5.0 - step as f64 / 100.0,
            lr: 1e-3,
            grad_norm: 0.5,
            tokens: 64 * step,
            tokens_per_s: 1000.0,
            step_ms: 64.0,
            seconds: 0.064 * step as f64,
            device_bytes: 1 << 20,
            budget_bytes: None,
            done: step as f64 / 100.0,
        })
    }

    /// A validation of the same run, with two exits.
    pub(crate) fn validation(step: u64) -> Row {
        let loss = 5.0 - step as f64 / 100.0;
        Row::Validation(ValidationRow {
            step,
            tokens: 64 * step,
            seconds: 0.064 * step as f64,
            done: step as f64 / 100.0,
            val_loss: loss,
            val_vote: loss,
            val_exits: vec![loss + 0.5, loss],
        })
    }

    #[test]
    fn csv_has_the_keys_of_json_as_columns() {
        let columns = columns(2);
        for row in [step(3), validation(3)] {
            let object: serde_json::Map<String, serde_json::Value> =
                serde_json::from_str(&row.json().unwrap()).unwrap();
            let csv = row.csv(2);
            let cells: Vec<&str> = csv.split(',').collect();
            assert_eq!(cells.len(), columns.len());
            for (key, value) in &object {
                if key == "val_exits" {
                    assert_eq!(cells[15..], ["5.47", "4.97"]);
                    continue;
                }
                let cell = cells[columns.iter().position(|column| column == key).unwrap()];
                let want = value.as_f64();
                assert_eq!(cell.parse::<f64>().ok(), want, "{key}");
            }
        }
    }

    #[test]
    fn numbers_that_are_none_are_null_and_read_again() {
        let Row::Step(row) = step(1) else { panic!() };
        let row = Row::Step(StepRow { loss: f64::NAN, grad_norm: f64::INFINITY, ..row });
        let text = row.json().unwrap();
        assert!(text.contains("\"loss\":null") && row.csv(1).starts_with("1,1,2,,0.001,,64"));
        let again: StepRow = serde_json::from_str(&text).unwrap();
        assert!(again.loss.is_nan() && again.grad_norm.is_nan() && again.step == 1);
    }
}
