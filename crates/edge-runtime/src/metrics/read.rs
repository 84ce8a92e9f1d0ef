//! Reading `metrics.jsonl` again, whole or as it grows.

use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use serde_json::Value;

use super::{JSONL, Row, StepRow, ValidationRow};
use crate::whole_file;

/// The rows of a run.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Metrics {
    /// Training steps, in order.
    pub steps: Vec<StepRow>,
    /// Validations, in order.
    pub validations: Vec<ValidationRow>,
}

impl Metrics {
    /// Those that a run directory has so far.
    ///
    /// # Errors
    /// The file is absent or a line is damaged; the sentence names it.
    pub fn read(dir: &Path) -> Result<Self> {
        let mut metrics = Self::default();
        for row in Tail::open(dir)?.rows()? {
            metrics.push(row);
        }
        Ok(metrics)
    }

    /// Adds a row.
    pub fn push(&mut self, row: Row) {
        match row {
            Row::Step(row) => self.steps.push(row),
            Row::Validation(row) => self.validations.push(row),
        }
    }
}

/// The file of a run that may still go on.
#[derive(Debug)]
pub struct Tail {
    file: File,
    path: PathBuf,
    /// The beginning of a line whose end is not written yet.
    part: Vec<u8>,
    lines: usize,
}

impl Tail {
    /// Opens the file in a run directory, at its start.
    ///
    /// # Errors
    /// There is none.
    pub fn open(dir: &Path) -> Result<Self> {
        let path = dir.join(JSONL);
        let file = whole_file::open(&path).with_context(|| {
            format!("cannot read {}: give a directory that tune wrote", path.display())
        })?;
        Ok(Self { file, path, part: Vec::new(), lines: 0 })
    }

    /// The rows that were added since the last call; a line that is not finished waits for it.
    ///
    /// # Errors
    /// A line is damaged; the sentence names it.
    pub fn rows(&mut self) -> Result<Vec<Row>> {
        let shown = self.path.display();
        let read = self.file.read_to_end(&mut self.part);
        read.with_context(|| format!("cannot read {shown}: check its permissions"))?;
        let whole = self.part.iter().rposition(|byte| *byte == b'\n').map_or(0, |end| end + 1);
        let bytes: Vec<u8> = self.part.drain(..whole).collect();
        let mut rows = Vec::new();
        for line in bytes.split_inclusive(|byte| *byte == b'\n') {
            self.lines += 1;
            let number = self.lines;
            rows.push(parse(line).map_err(|error| {
                anyhow::anyhow!(
                    "line {number} of {shown} is damaged ({error}): delete that line and start \
                     again"
                )
            })?);
        }
        Ok(rows)
    }
}

fn parse(line: &[u8]) -> serde_json::Result<Row> {
    let value: Value = serde_json::from_slice(line)?;
    match value.get("val_exits") {
        Some(_) => serde_json::from_value(value).map(Row::Validation),
        None => serde_json::from_value(value).map(Row::Step),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::metrics::tests::{step, validation};
    use crate::testing::message;

    #[test]
    fn damaged_lines_are_named_and_unfinished_ones_wait() {
        let dir = tempfile::tempdir().unwrap();
        assert!(message(Metrics::read(dir.path())).contains("directory that tune wrote"));
        let path = dir.path().join(JSONL);
        let good = [validation(0), step(1)].map(|row| row.json().unwrap()).join("\n");
        std::fs::write(&path, format!("{good}\n{{\"step\":2,\"lo")).unwrap();
        let metrics = Metrics::read(dir.path()).unwrap();
        assert_eq!((metrics.steps.len(), metrics.validations.len()), (1, 1));
        for wrong in ["{\"step\":2,\"lo", "{\"step\":\"two\"}", "[]", "\u{0}\u{0}"] {
            std::fs::write(&path, format!("{good}\n{wrong}\n{good}\n")).unwrap();
            let error = message(Metrics::read(dir.path()));
            assert!(error.contains("line 3 of") && error.contains("delete that line"), "{error}");
        }
        std::fs::write(&path, format!("{good}\n\n{good}\n")).unwrap();
        assert!(message(Metrics::read(dir.path())).contains("line 3 of"));
    }
}
