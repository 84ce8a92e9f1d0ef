//! All records of the repository, and what they say of a row over time.

use std::fs;
use std::path::Path;

use anyhow::{Context, Result};

use crate::record::{self, Record};

/// Values that are enough for a fence: a step that was meant is forgotten after one record of as
/// many passes.
const ENOUGH: usize = 8;

/// A record and where it lies.
#[derive(Clone, Debug)]
pub struct Entry {
    /// Folder of its device.
    pub device: String,
    /// Name of the file without `.csv`: date and commit.
    pub name: String,
    /// What is in it.
    pub record: Record,
}

/// Records by device, older ones first.
#[derive(Clone, Debug, Default)]
pub struct History {
    /// The records.
    pub entries: Vec<Entry>,
}

impl History {
    /// Reads `folder/DEVICE/*.csv`. A folder that is not there has no records.
    ///
    /// # Errors
    /// A file cannot be read or is no record.
    pub fn read(folder: &Path) -> Result<Self> {
        let mut entries = Vec::new();
        if !folder.exists() {
            return Ok(Self::default());
        }
        for device in listed(folder)?.into_iter().filter(|path| path.is_dir()) {
            let name = device.file_name().unwrap_or_default().to_string_lossy().into_owned();
            for path in listed(&device)? {
                if path.extension().is_some_and(|extension| extension == "csv") {
                    let stem = path.file_stem().unwrap_or_default().to_string_lossy();
                    let (device, stem) = (name.clone(), stem.into_owned());
                    entries.push(Entry { device, name: stem, record: record::read(&path)? });
                }
            }
        }
        Ok(Self { entries })
    }

    /// The records of one device.
    pub fn of(&self, device: &str) -> impl DoubleEndedIterator<Item = &Entry> {
        self.entries.iter().filter(move |entry| entry.device == device)
    }

    /// The calibrated times of a row on one machine: whole records, the newest first, until there
    /// are enough.
    pub fn calibrated(&self, device: &str, fingerprint: &str, key: &str) -> Vec<f64> {
        let mut values = Vec::new();
        for entry in self.of(device).rev() {
            if values.len() >= ENOUGH {
                break;
            }
            if entry.record.fingerprint == fingerprint {
                let rows = entry.record.rows.iter().filter(|row| row.key() == key);
                values.extend(rows.filter_map(|row| row.calibrated));
            }
        }
        values
    }
}

/// What is in a folder, in the order of names.
fn listed(folder: &Path) -> Result<Vec<std::path::PathBuf>> {
    let entries =
        fs::read_dir(folder).with_context(|| format!("{} cannot be read", folder.display()))?;
    let paths: std::io::Result<Vec<_>> =
        entries.map(|entry| entry.map(|entry| entry.path())).collect();
    let mut paths = paths.with_context(|| format!("{} cannot be read", folder.display()))?;
    paths.sort();
    Ok(paths)
}
