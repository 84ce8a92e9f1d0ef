//! What was measured of a device: one file an adapter in the user's cache folder, valid for one
//! version of its driver.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use edge_gpu::DeviceInfo;
use edge_kernels::Format;
use edge_scheduler::rates::{Cost, Rates};
use edge_scheduler::simulate::TransferRates;
use serde::{Deserialize, Serialize};

use super::price::Speed;
use crate::autotune::cache_file;
use crate::run_dir::write_atomically;
use crate::whole_file::{self, SETTINGS};

/// Folder of the files in the user's cache folder.
const FOLDER: &str = "facts";

/// Version of the file, and of the kernels whose speed is in it: it rises when they change much.
const FILE_VERSION: u32 = 5;

/// A call that was measured.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Sample {
    /// Name of the op.
    pub op: String,
    /// Format of its weights.
    pub format: String,
    /// Sizes that it is compared by.
    pub sizes: Vec<f64>,
    /// Floating-point operations.
    pub flops: f64,
    /// Least bytes.
    pub bytes: f64,
    /// What it took.
    pub seconds: f64,
}

/// What is known of a device.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Facts {
    version: u32,
    name: String,
    backend: String,
    driver_info: String,
    /// Formats of weights that were measured.
    pub formats: BTreeSet<String>,
    /// Calls on their own.
    pub samples: Vec<Sample>,
    /// What starting a dispatch costs, seconds.
    pub floor_s: f64,
    /// What the host takes for a dispatch, seconds: a step of small ones waits for it.
    pub host_s: f64,
    /// What a dispatch takes in a step over what it takes on its own, where none waits for the
    /// host.
    pub scale: f64,
    /// Seconds of a step beside its dispatches.
    pub between_s: f64,
    /// File (in the system's cache) into a slot or its staging memory, bytes a second.
    pub copy_bytes_per_s: f64,
    /// Cost of a load beside, seconds.
    pub load_s: f64,
    /// File that is not in the system's cache to memory, bytes a second; `None` where that was not
    /// measured.
    pub cold_bytes_per_s: Option<f64>,
    /// Staging memory into a slot; `None` where the host writes slots.
    pub transfer_bytes_per_s: Option<f64>,
    /// What a second of copying adds to dispatches that run meanwhile.
    pub interference: f64,
}

/// What [`Facts::formats`] has of them.
fn names(blocks: &[Format], tables: &[Format]) -> impl Iterator<Item = String> {
    let blocks = blocks.iter().map(|format| format.name().to_owned());
    blocks.chain(tables.iter().map(|format| format!("{} table", format.name())))
}

/// Removes the facts of a device whose kernels are others from now on; there may be none.
pub fn forget(info: &DeviceInfo) {
    if let Some(path) = cache_file(info, FOLDER) {
        let removed = std::fs::remove_file(path);
        tracing::debug!(ok = removed.is_ok(), "facts of former kernels");
    }
}

impl Facts {
    /// Nothing known yet.
    pub fn new(info: &DeviceInfo) -> Self {
        Self {
            version: FILE_VERSION,
            name: info.name.clone(),
            backend: info.backend.clone(),
            driver_info: info.driver_info.clone(),
            formats: BTreeSet::new(),
            samples: Vec::new(),
            floor_s: 0.0,
            host_s: 0.0,
            scale: 1.0,
            between_s: 0.0,
            copy_bytes_per_s: 1e9,
            load_s: 0.0,
            cold_bytes_per_s: None,
            transfer_bytes_per_s: None,
            interference: 0.0,
        }
    }

    /// Whether all formats of blocks and of tables were measured, which have other products.
    pub fn cover(&self, blocks: &[Format], tables: &[Format]) -> bool {
        names(blocks, tables).all(|name| self.formats.contains(&name))
    }

    /// Says that formats of blocks and of tables were measured.
    pub fn add_formats(&mut self, blocks: &[Format], tables: &[Format]) {
        self.formats.extend(names(blocks, tables));
    }

    /// How fast it runs dispatches.
    pub fn speed(&self) -> Speed {
        let mut rates = Rates::new(self.floor_s);
        for sample in &self.samples {
            let cost = Cost {
                kind: (sample.op.clone(), sample.format.clone()),
                sizes: sample.sizes.clone(),
                flops: sample.flops,
                bytes: sample.bytes,
            };
            rates.add(&cost, sample.seconds);
        }
        let Self { host_s, scale, between_s, .. } = *self;
        Speed::Measured { rates, host_s, scale, between_s }
    }

    /// How fast weights come; `cold`: from a disk rather than from the system's cache.
    pub fn transfers(&self, cold: bool) -> TransferRates {
        TransferRates {
            read_bytes_per_s: self.cold_bytes_per_s.filter(|_| cold).unwrap_or(f64::INFINITY),
            copy_bytes_per_s: self.copy_bytes_per_s,
            transfer_bytes_per_s: self.transfer_bytes_per_s,
            load_s: self.load_s,
            interference: self.interference,
        }
    }

    /// Reads the facts of a device from its file; `None` where there are none that hold for it.
    ///
    /// # Errors
    /// The file is damaged.
    pub fn load(info: &DeviceInfo) -> Result<Option<Self>> {
        match cache_file(info, FOLDER).filter(|path| path.exists()) {
            Some(path) => Self::load_from(&path, info),
            None => Ok(None),
        }
    }

    fn load_from(path: &Path, info: &DeviceInfo) -> Result<Option<Self>> {
        let remedy = || format!("{} is not usable: delete it and measure again", path.display());
        let text = whole_file::text(path, SETTINGS).with_context(remedy)?;
        let facts: Self = serde_json::from_str(&text).with_context(remedy)?;
        let own = [&facts.name, &facts.backend, &facts.driver_info]
            == [&info.name, &info.backend, &info.driver_info];
        // What an earlier driver or version left behind is measured again.
        Ok((own && facts.version == FILE_VERSION).then_some(facts))
    }

    /// Writes the file; where it is.
    ///
    /// # Errors
    /// There is no cache folder, or it cannot be written.
    pub fn save(&self, info: &DeviceInfo) -> Result<PathBuf> {
        let path =
            cache_file(info, FOLDER).context("this system has no cache folder for device facts")?;
        let dir = path.parent().context("a folder")?;
        std::fs::create_dir_all(dir).with_context(|| format!("cannot make {}", dir.display()))?;
        write_atomically(&path, serde_json::to_string(self)?.as_bytes())?;
        Ok(path)
    }
}
