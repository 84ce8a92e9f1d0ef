//! Adapters that take turns on the device ([`Job::in_turns`]): those of one window lie there, the
//! others in an unnamed file, or are still as they started, which the seed tells.
//!
//! [`Job::in_turns`]: edge_scheduler::Job::in_turns

use std::fs::File;
use std::io::{Read, Seek, SeekFrom, Write};
use std::path::PathBuf;
use std::sync::PoisonError;

use anyhow::{Context, Result};
use edge_gpu::Slice;

use super::{Model, load};

/// Whose adapters are where.
#[derive(Debug)]
pub(crate) struct Turns {
    /// The window whose adapters lie on the device.
    active: usize,
    /// Whether they differ from what is kept of them.
    changed: bool,
    /// Whether the file has a window's adapters.
    kept: Vec<bool>,
    /// Seed of the adapters that are as they started.
    seed: u64,
    /// Where the file is made, once it is needed.
    dir: PathBuf,
    file: Option<File>,
}

impl Turns {
    /// All adapters as they started, those of the last window on the device.
    pub(super) fn new(windows: usize, seed: u64) -> Self {
        let kept = vec![false; windows];
        let dir = std::env::temp_dir();
        Self { active: windows - 1, changed: false, kept, seed, dir, file: None }
    }

    /// The file, at a position.
    fn file_at(&mut self, byte: u64) -> Result<&mut File> {
        if self.file.is_none() {
            let file = tempfile::tempfile_in(&self.dir);
            self.file = Some(file.with_context(|| {
                format!("cannot keep adapters in {}: check permissions", self.dir.display())
            })?);
        }
        let file = self.file.as_mut().context("it was made just now")?;
        file.seek(SeekFrom::Start(byte))?;
        Ok(file)
    }
}

impl Model {
    /// Says in which folder adapters are kept that are not on the device.
    pub fn keep_adapters_in(&self, dir: PathBuf) {
        if let Some(turns) = &self.turns {
            turns.lock().unwrap_or_else(PoisonError::into_inner).dir = dir;
        }
    }

    /// Says that adapters on the device were written.
    pub(crate) fn adapters_changed(&self) {
        if let Some(turns) = &self.turns {
            turns.lock().unwrap_or_else(PoisonError::into_inner).changed = true;
        }
    }

    /// [`Model::bring`] for the window of a layer.
    pub(super) fn bring_layer(&self, layer: usize) -> Result<()> {
        let mut windows = self.job.windows.iter();
        let window = windows.position(|window| window.contains(layer as u32));
        window.map_or(Ok(()), |window| self.bring(window))
    }

    /// Sees to it that the adapters of a window lie on the device. What was recorded before for
    /// another window's must be submitted.
    ///
    /// # Errors
    /// The device fails, or the file cannot be written or read.
    pub(crate) fn bring(&self, window: usize) -> Result<()> {
        let Some(turns) = &self.turns else { return Ok(()) };
        let mut turns = turns.lock().unwrap_or_else(PoisonError::into_inner);
        if turns.active == window {
            return Ok(());
        }
        let active = turns.active;
        if turns.changed {
            let file = turns.file_at(self.kept_at(active))?;
            for arena in self.shared_arenas(active) {
                let values = self.device.read_f32(arena)?;
                let written = file.write_all(bytemuck::cast_slice(&values));
                written.context("cannot keep the adapters of a window on disk: free space")?;
            }
            turns.kept[active] = true;
            turns.changed = false;
        }
        if turns.kept[window] {
            let file = turns.file_at(self.kept_at(window))?;
            for arena in self.shared_arenas(window) {
                let mut values = vec![0.0f32; arena.words() as usize];
                let read = file.read_exact(bytemuck::cast_slice_mut(&mut values));
                read.context("cannot read the adapters of a window back: start the run again")?;
                self.device.write(arena, bytemuck::cast_slice(&values))?;
            }
        } else {
            let window = self.job.windows[window];
            let blocks = window.first as usize..window.end as usize;
            load::init_adapters(&self.blocks, blocks, &self.device, turns.seed)?;
        }
        turns.active = window;
        Ok(())
    }

    /// The arenas of a window that others share.
    fn shared_arenas(&self, window: usize) -> &[Slice] {
        let values = &self.groups[window].values;
        &values[..self.plan.groups[window].shared_arenas()]
    }

    /// Where a window's adapters are in the file.
    fn kept_at(&self, window: usize) -> u64 {
        (0..window).flat_map(|below| self.shared_arenas(below)).map(|arena| 4 * arena.words()).sum()
    }
}
