//! The files that a run adds to at every step. What is written waits in memory for at most a few
//! seconds, so that steps do not wait for a disk and a crash loses little.

use std::fs::File;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};

use super::{CSV, JSONL, Logs, Row, TfEvents, columns};

/// Longest that a row waits, as long as rows come.
const FLUSH_EVERY: Duration = Duration::from_secs(2);

/// A file and what waits to be written to it.
#[derive(Debug)]
struct Lines {
    file: File,
    path: PathBuf,
    waiting: String,
}

impl Lines {
    fn create(dir: &Path, name: &str) -> Result<Self> {
        let path = dir.join(name);
        let open = File::options().create(true).append(true).open(&path);
        let file = open
            .with_context(|| format!("cannot write {}: give --out another path", path.display()))?;
        Ok(Self { file, path, waiting: String::new() })
    }

    /// The file of a run that goes on, without what lies behind its first `bytes`.
    fn resume(dir: &Path, name: &str, bytes: u64) -> Result<Self> {
        let lines = Self::create(dir, name)?;
        cut(&lines.path, bytes).with_context(|| shorten(&lines.path))?;
        Ok(lines)
    }

    fn push(&mut self, line: &str) {
        self.waiting.push_str(line);
        self.waiting.push('\n');
    }

    /// One write of whole lines, so that a run that dies leaves whole lines.
    fn flush(&mut self) -> Result<()> {
        let written = self.file.write_all(self.waiting.as_bytes());
        self.waiting.clear();
        written.with_context(|| format!("cannot write {}: check free space", self.path.display()))
    }
}

/// Drops what a file has behind its first `bytes`.
pub(super) fn cut(path: &Path, bytes: u64) -> std::io::Result<()> {
    // Windows cuts nothing that is open for appending alone.
    let file = File::options().write(true).open(path)?;
    // A shorter file lost rows that were not flushed to the disk; there is nothing to drop.
    if file.metadata()?.len() > bytes {
        file.set_len(bytes)?;
    }
    Ok(())
}

pub(super) fn shorten(path: &Path) -> String {
    format!("cannot write {}: check its permissions", path.display())
}

/// `metrics.jsonl`, `metrics.csv` and the event file of a run.
#[derive(Debug)]
pub struct MetricsLog {
    jsonl: Lines,
    csv: Lines,
    events: TfEvents,
    exits: usize,
    flushed: Instant,
}

impl MetricsLog {
    /// Creates the files in a run directory, for a run with this many exits.
    ///
    /// # Errors
    /// A file cannot be written.
    pub fn create(dir: &Path, exits: usize) -> Result<Self> {
        let mut csv = Lines::create(dir, CSV)?;
        csv.push(&columns(exits).join(","));
        let (jsonl, events) = (Lines::create(dir, JSONL)?, TfEvents::create(dir)?);
        Ok(Self { jsonl, csv, events, exits, flushed: Instant::now() })
    }

    /// The files of a run that goes on, as they were when they had `logs` bytes.
    ///
    /// # Errors
    /// A file cannot be written.
    pub(crate) fn resume(dir: &Path, exits: usize, logs: &Logs) -> Result<Self> {
        let jsonl = Lines::resume(dir, JSONL, logs.jsonl)?;
        let mut csv = Lines::resume(dir, CSV, logs.csv)?;
        if logs.csv == 0 {
            csv.push(&columns(exits).join(","));
        }
        let events = TfEvents::resume(dir, &logs.events)?;
        Ok(Self { jsonl, csv, events, exits, flushed: Instant::now() })
    }

    /// Bytes of the files, once they are on the disk.
    ///
    /// # Errors
    /// The disk is full.
    pub(crate) fn logs(&mut self) -> Result<Logs> {
        self.flush()?;
        let len = |lines: &Lines| -> Result<u64> {
            let len = lines.file.sync_data().and_then(|()| lines.file.metadata());
            let len = len.with_context(|| format!("cannot write {}", lines.path.display()))?;
            Ok(len.len())
        };
        let (jsonl, csv) = (len(&self.jsonl)?, len(&self.csv)?);
        Ok(Logs { jsonl, csv, events: self.events.len()? })
    }

    /// Adds a row.
    ///
    /// # Errors
    /// The disk is full.
    pub fn push(&mut self, row: &Row) -> Result<()> {
        self.jsonl.push(&row.json().context("cannot lay out a row of metrics")?);
        self.csv.push(&row.csv(self.exits));
        let (step, scalars) = row.scalars();
        self.events.push(step, &scalars);
        match self.flushed.elapsed() >= FLUSH_EVERY {
            true => self.flush(),
            false => Ok(()),
        }
    }

    /// Writes what waits.
    ///
    /// # Errors
    /// The disk is full.
    pub fn flush(&mut self) -> Result<()> {
        self.flushed = Instant::now();
        self.jsonl.flush()?;
        self.csv.flush()?;
        self.events.flush()
    }
}

impl Drop for MetricsLog {
    /// A run that fails keeps the rows before that; its own error is the one to be reported.
    fn drop(&mut self) {
        let written = self.flush();
        tracing::debug!(ok = written.is_ok(), "the last rows of metrics");
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::metrics::tests::{step, validation};
    use crate::metrics::{Metrics, read::Tail};

    #[test]
    fn rows_wait_and_are_written_whole() {
        let dir = tempfile::tempdir().unwrap();
        let mut log = MetricsLog::create(dir.path(), 2).unwrap();
        log.push(&validation(0)).unwrap();
        for number in 1..=5 {
            log.push(&step(number)).unwrap();
        }
        let path = dir.path().join(JSONL);
        assert_eq!(std::fs::metadata(&path).unwrap().len(), 0, "rows wait");
        log.flushed -= FLUSH_EVERY;
        log.push(&step(6)).unwrap();
        let mut tail = Tail::open(dir.path()).unwrap();
        assert_eq!(tail.rows().unwrap().len(), 7);
        log.push(&validation(6)).unwrap();
        assert!(tail.rows().unwrap().is_empty());
        drop(log);
        assert_eq!(tail.rows().unwrap(), [validation(6)]);
        let metrics = Metrics::read(dir.path()).unwrap();
        assert_eq!((metrics.steps.len(), metrics.validations.len()), (6, 2));
        let csv = std::fs::read_to_string(dir.path().join(CSV)).unwrap();
        assert_eq!(csv.lines().count(), 9);
        assert!(csv.starts_with("step,phase,window,loss,lr,") && csv.contains("val_exit_2\n"));
    }
}
