//! Hidden states at a window's lower edge, kept on disk, so that a fixed trunk is run once for each
//! sequence and not once for each step.
//!
//! A file holds one level (`trunk_level.rs`). It is filled as sequences come up, and what a crash
//! cut off is computed again. States that were just computed are rounded as a file has them, at the
//! lower edge of every window that they pass, and a sequence is always computed together with the
//! same others ([`Groups`]): its states are the same whatever was there before and in whichever
//! batch it first comes up, so that a run that was killed and goes on ends like one that was not.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use edge_gpu::Slice;
use serde::Serialize;

use super::disk;
use super::trunk_level::{Level, Sizes, round};
use crate::adapter::AdapterTensors;
use crate::batch::{Batch, Sampler};
use crate::compress::calibrate::hash::Fnv;
use crate::data::Stream;
use crate::model::Model;
use crate::model::block::Geometry;
use crate::session::mebibytes;

/// Which sequences are computed together: those of a micro-batch of the first epoch, so that a run
/// from its beginning computes what it is about to use.
pub struct Groups {
    stream: Stream,
    /// In its first epoch.
    sampler: Sampler,
    size: usize,
    /// Place of each sequence in the order of that epoch.
    places: Vec<u32>,
    /// Tokens of each sequence.
    lens: Vec<u32>,
}

impl Groups {
    /// Groups of up to `size` sequences of `seq_len` tokens at most.
    ///
    /// # Errors
    /// The stream has no such sequence.
    pub fn new(stream: &Stream, seq_len: usize, seed: u64, size: usize) -> Result<Self> {
        let sampler = Sampler::new(stream, seq_len, seed)?;
        let lens = stream.padded_lens(seq_len);
        let mut places = vec![0; lens.len()];
        for (place, &index) in (0..).zip(sampler.order()) {
            places[index as usize] = place;
        }
        Ok(Self { stream: stream.clone(), sampler, size: size.max(1), places, lens })
    }

    /// The group of a sequence.
    fn of(&self, index: u32) -> Batch {
        let order = self.sampler.order();
        let first = self.places[index as usize] as usize / self.size * self.size;
        let members = &order[first..order.len().min(first + self.size)];
        self.sampler.batch_of(&self.stream, members.to_vec())
    }
}

/// What a cache did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct CacheReport {
    /// Most bytes on disk at once.
    pub peak_disk_bytes: u64,
    /// Sequences whose trunk was run.
    pub computed: u64,
    /// Sequences that were read back.
    pub read: u64,
}

/// The levels of a run: the one below the window that is trained, and the one before, from which it
/// is filled.
pub struct TrunkCache {
    dir: PathBuf,
    /// Whether files stay when the run ends.
    keep: bool,
    /// Of model, data and device.
    base: String,
    sizes: Sizes,
    groups: Groups,
    level: Option<Level>,
    below: Option<Level>,
    states: Vec<f32>,
    report: CacheReport,
}

impl TrunkCache {
    /// A cache in `dir`, which is made if absent. `base` says what the states depend on beside
    /// adapters: model, formats, data and its groups, device.
    ///
    /// # Errors
    /// The folder cannot be made, or has no room for a level.
    pub fn new(dir: &Path, keep: bool, base: String, sizes: Sizes, groups: Groups) -> Result<Self> {
        let shown = dir.display();
        fs::create_dir_all(dir)
            .with_context(|| format!("cannot make {shown}: give --trunk-cache another folder"))?;
        let free = fs4::available_space(dir)
            .with_context(|| format!("cannot tell the free space of {shown}"))?;
        // A run that goes on has its levels there.
        ensure!(
            keep || (2 * sizes.bytes()).saturating_sub(disk::held(dir)) <= free,
            "the trunk cache takes up to {} in {shown}, which has {} free: give --trunk-cache \
             another folder, or off",
            mebibytes(2 * sizes.bytes()),
            mebibytes(free)
        );
        Ok(Self {
            dir: dir.to_owned(),
            keep,
            base,
            sizes,
            groups,
            level: None,
            below: None,
            states: Vec::new(),
            report: CacheReport::default(),
        })
    }

    /// What it did so far.
    pub fn report(&self) -> CacheReport {
        self.report
    }

    /// Goes to the level behind `after` blocks, under the model's present adapters below it. The
    /// level before stays as what this one is filled from.
    ///
    /// # Errors
    /// The file cannot be opened, or another process has it.
    pub fn begin(&mut self, model: &Model, after: u32) -> Result<()> {
        let mut key = Fnv::default();
        key.text(&self.base).text(&format!("{:?}", edges(model, 0, after)));
        if !model.job.isolated {
            adapters_below(&mut key, &model.adapter()?, after);
        }
        let old = self.below.take();
        self.below = self.level.take();
        if let Some(old) = old.filter(|_| !self.keep) {
            old.remove()?;
        }
        if after > 0 {
            let level = Level::open(&self.dir, after, &key.hex(), self.sizes)?;
            self.level = Some(level);
        }
        self.remove_others();
        let levels = u64::from(self.level.is_some()) + u64::from(self.below.is_some());
        let bytes = levels * self.sizes.bytes();
        self.report.peak_disk_bytes = self.report.peak_disk_bytes.max(bytes);
        Ok(())
    }

    /// Whether there are hidden states to read: the trunk is not empty.
    pub fn has_level(&self) -> bool {
        self.level.is_some()
    }

    /// Puts the residual stream at the level into the stream that the model's blocks work on,
    /// computing what the cache lacks. The model's ids are overwritten, and the samples of its
    /// first micro-batch. False where there is no level: the trunk is empty.
    ///
    /// # Errors
    /// A file cannot be read or written, or the device fails.
    pub fn load(&mut self, model: &Model, batch: &Batch) -> Result<bool> {
        let Some(level) = &mut self.level else { return Ok(false) };
        let stride = batch.seq_len * self.sizes.hidden_size as usize;
        self.states.resize(batch.sequences * stride, 0.0);
        let mut missing = Vec::new();
        for (&index, states) in batch.indices.iter().zip(self.states.chunks_mut(stride)) {
            match level.read(index, states)? {
                true => self.report.read += 1,
                false => missing.push(index),
            }
        }
        for index in missing {
            self.fill(model, index, batch)?;
        }
        let stream = head(model.stream(), self.states.len());
        model.device.write(&stream, bytemuck::cast_slice(&self.states))?;
        Ok(true)
    }

    /// Puts the states of a sequence of the batch into its place, computing its group where another
    /// one of it has not done that.
    fn fill(&mut self, model: &Model, index: u32, batch: &Batch) -> Result<()> {
        let stride = batch.seq_len * self.sizes.hidden_size as usize;
        for computed in [false, true] {
            let Some(level) = &mut self.level else { return Ok(()) };
            let rows = batch.indices.iter().zip(self.states.chunks_mut(stride));
            let mut found = true;
            for (_, states) in rows.filter(|(other, _)| **other == index) {
                found &= level.read(index, states)?;
            }
            if found {
                return Ok(());
            }
            ensure!(
                !computed,
                "{} does not give back what was written to it: check the disk, or give \
                 --trunk-cache another folder",
                level.path.display()
            );
            self.compute(model, index)?;
        }
        Ok(())
    }

    /// Runs the trunk for the group of a sequence: from the level before where that has all of it,
    /// else from the embedding.
    fn compute(&mut self, model: &Model, index: u32) -> Result<()> {
        let Some(level) = &mut self.level else { return Ok(()) };
        let batch = self.groups.of(index);
        let width = self.sizes.hidden_size as usize;
        let stride = batch.seq_len * width;
        let mut states = vec![0.0; batch.sequences * stride];
        let mut from = 0;
        if let Some(below) = &mut self.below {
            let mut all = true;
            for (&index, states) in batch.indices.iter().zip(states.chunks_mut(stride)) {
                all = all && below.read(index, states)?;
            }
            from = if all { below.after } else { 0 };
        }
        let g = Geometry::sequences(batch.sequences as u32, batch.seq_len as u32);
        model.set_segments(&batch.segments, g)?;
        if from == 0 {
            model.set_ids(&batch.ids)?;
        }
        climb(model, &mut states, from, level, g)?;
        for (&index, states) in batch.indices.iter().zip(states.chunks(stride)) {
            let len = (self.groups.lens[index as usize] as usize).min(batch.seq_len);
            level.write(index, &states[..len * width])?;
        }
        self.report.computed += batch.sequences as u64;
        Ok(())
    }

    /// Leaves the files where they are when the run ends: it may be resumed.
    pub fn keep_files(&mut self) {
        self.keep = true;
    }

    /// Removes what a run that was killed left of levels that are no longer needed.
    fn remove_others(&self) {
        let (false, Ok(files)) = (self.keep, fs::read_dir(&self.dir)) else { return };
        let used = [&self.level, &self.below].map(|level| level.as_ref().map(|l| l.path.clone()));
        let name = |path: &Path| path.file_name().map(|n| n.to_string_lossy().into_owned());
        for path in files.flatten().map(|file| file.path()) {
            let trunk = name(&path).is_some_and(|n| n.starts_with("trunk-") && n.ends_with(".f16"));
            if trunk && !used.contains(&Some(path.clone())) {
                // It takes room, and that is all.
                let _ = fs::remove_file(&path);
            }
        }
    }
}

/// The edges of windows above `from` and up to `after` blocks, from the bottom up.
fn edges(model: &Model, from: u32, after: u32) -> Vec<u32> {
    let firsts = model.job.windows.iter().map(|window| window.first);
    firsts.filter(|first| from < *first && *first <= after).collect()
}

/// Takes the states of sequences from behind block `from`, or from the embedding of the model's
/// ids, to a level. At the edges below it they are rounded, as its file would have had them.
fn climb(model: &Model, states: &mut [f32], from: u32, level: &Level, g: Geometry) -> Result<()> {
    let g = if model.job.isolated { g.of_base() } else { g };
    let stream = head(model.stream(), states.len());
    model.expect_blocks(&(from..level.after).collect::<Vec<_>>());
    let mut at = from;
    for edge in edges(model, from, level.after) {
        let mut recorder = model.device.recorder();
        if at == 0 {
            model.embed(&mut recorder, g.rows(), model.stream());
        } else {
            model.device.write(&stream, bytemuck::cast_slice(states))?;
        }
        model.run_blocks(&mut recorder, at..edge, g);
        recorder.submit()?;
        states.copy_from_slice(&model.device.read_f32(&stream)?);
        if edge < level.after {
            round(states)?;
        }
        at = edge;
    }
    Ok(())
}

impl Drop for TrunkCache {
    fn drop(&mut self) {
        if self.keep {
            return;
        }
        // What cannot be removed is a file in a run directory: no reason to fail a run.
        for level in [self.level.take(), self.below.take()].into_iter().flatten() {
            let _ = level.remove();
        }
        let _ = fs::remove_dir(&self.dir);
    }
}

/// The first words of the residual stream.
fn head(stream: &Slice, words: usize) -> Slice {
    stream.buffer().slice(stream.offset_words(), words as u64)
}

fn adapters_below(key: &mut Fnv, adapters: &AdapterTensors, after: u32) {
    for ((layer, projection), (a, b)) in adapters {
        // An adapter whose B is zero changes nothing.
        if *layer < after as usize && b.iter().any(|b| *b != 0.0) {
            key.number(*layer as u64).text(projection.name());
            key.bytes(bytemuck::cast_slice(a)).bytes(bytemuck::cast_slice(b));
        }
    }
}

#[cfg(test)]
mod tests {
    use edge_scheduler::Projection;

    use super::*;

    #[test]
    fn adapters_above_the_level_and_empty_ones_do_not_count() {
        let key = |tensors: &AdapterTensors| {
            let mut key = Fnv::default();
            adapters_below(&mut key, tensors, 2);
            key.hex()
        };
        let mut tensors = AdapterTensors::new();
        let none = key(&tensors);
        tensors.insert((0, Projection::Q), (vec![1.0], vec![0.0]));
        tensors.insert((2, Projection::Q), (vec![1.0], vec![1.0]));
        assert_eq!(key(&tensors), none);
        tensors.insert((1, Projection::Q), (vec![1.0], vec![1.0]));
        assert_ne!(key(&tensors), none);
    }
}
