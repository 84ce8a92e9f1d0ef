//! The report of a run: one HTML file that needs no other, made from the files of the run
//! directory, while the run goes on and afterwards.

mod charts;
mod page;
#[cfg(test)]
mod tests;

use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use serde_json::Value;

use crate::cli::options::TuneOptions;
use crate::metrics::Metrics;
use crate::run_dir::{RunState, events, write_atomically};
use crate::session::run_options;
use crate::tune::header::Header;
use crate::tune::session::RESULT;
use crate::tune::validate::BEST;
use crate::whole_file::{self, SETTINGS};

/// File name in a run directory.
pub const FILE: &str = "report.html";

/// All that is known of a run.
#[derive(Clone, Debug)]
pub struct Report {
    /// The run directory.
    pub dir: PathBuf,
    /// How it stands.
    pub state: RunState,
    /// What it is.
    pub header: Header,
    /// Its options.
    pub options: TuneOptions,
    /// What it measured.
    pub metrics: Metrics,
    /// Step and loss of the checkpoint in `best/`, nats.
    pub best: Option<(u64, f64)>,
    /// Why it ended early.
    pub stopped: Option<String>,
    /// `result.json`, once it is there.
    pub result: Value,
}

impl Report {
    /// Of a run directory.
    ///
    /// # Errors
    /// The directory is no run's, or a file is damaged; the sentence names file and line.
    pub fn read(dir: &Path) -> Result<Self> {
        let state = RunState::of(dir)?;
        let events = events(dir)?;
        let last = |kind: &str| events.iter().rev().find(|event| event["event"] == kind);
        let best = last("best").map(|event| {
            (event["step"].as_u64().unwrap_or(0), event["val_loss"].as_f64().unwrap_or(f64::NAN))
        });
        let stopped = last("early-stop").and_then(|event| event["reason"].as_str());
        Ok(Self {
            dir: dir.to_owned(),
            state,
            header: Header::read(dir)?,
            options: run_options(dir)?,
            metrics: Metrics::read(dir)?,
            best,
            stopped: stopped.map(str::to_owned),
            result: result(dir)?,
        })
    }

    /// The run directory, or that of the best checkpoint where the last one is worse or not there.
    pub fn best_dir(&self) -> PathBuf {
        let last = self.metrics.steps.last().map_or(0, |row| row.step);
        match self.best {
            Some((step, _)) if step < last || self.result.is_null() => self.dir.join(BEST),
            _ => self.dir.clone(),
        }
    }
}

/// `result.json`, or null where the run has none yet.
fn result(dir: &Path) -> Result<Value> {
    let path = dir.join(RESULT);
    if !path.exists() {
        return Ok(Value::Null);
    }
    let shown = path.display();
    let text = whole_file::text(&path, SETTINGS)
        .with_context(|| format!("cannot read {shown}: check its permissions"))?;
    serde_json::from_str(&text)
        .map_err(|error| anyhow::anyhow!("{shown} is damaged ({error}): delete it"))
}

/// Writes `report.html` of a run directory, atomically.
///
/// # Errors
/// As [`Report::read`], or the disk is full.
pub fn write(dir: &Path) -> Result<()> {
    let page = page::render(&Report::read(dir)?);
    write_atomically(&dir.join(FILE), page.as_bytes())
}

/// What to do with a run next.
pub fn next_command(dir: &Path, device: &str) -> String {
    format!(
        "cargo run --release -p edge-runtime -- generate --run {} --device {device} --prompt \
         \"The \"",
        dir.display()
    )
}
