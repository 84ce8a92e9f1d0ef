//! Hidden states at a window's lower edge, kept on disk, so that a fixed trunk is run once for each
//! sequence and not once for each step.
//!
//! A file holds one level: `[sequences, seq_len, d]` in f16 behind a header and an index. It is
//! filled as sequences come up; each entry has its length and a CRC-32, so that what a crash cut
//! off is computed again. States that were just computed are rounded as well, at the lower edge of
//! every window that they pass, and each sequence is computed by itself: its states are the same
//! whatever was there before and in whichever batch it first comes up, so that a run that was
//! killed and goes on ends like one that was not.
//!
//! The file is read and written by calls and not mapped: where a disk fails, that is an error with
//! a sentence and not a signal.

use std::fs::{self, File, OpenOptions, TryLockError};
use std::io::{Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail, ensure};
use edge_gpu::Slice;
use half::f16;
use half::slice::HalfFloatSliceExt;
use serde::Serialize;

use crate::adapter::AdapterTensors;
use crate::batch::Batch;
use crate::compress::calibrate::hash::Fnv;
use crate::model::Model;
use crate::model::block::Geometry;
use crate::session::mebibytes;

/// First bytes of a file, with the version of the layout.
const MAGIC: &[u8; 8] = b"EDGTRNK1";

/// Bytes of the header: magic, key, and the numbers of [`Sizes`] and the level.
const HEADER_BYTES: u64 = 64;

/// Bytes of an entry of the index: tokens and CRC-32, both 0 while there is none.
const ENTRY_BYTES: u64 = 8;

/// What a cache holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sizes {
    /// Training sequences.
    pub sequences: u64,
    /// Tokens of the longest.
    pub seq_len: u64,
    /// `d`.
    pub hidden_size: u64,
}

impl Sizes {
    /// Bytes of a level on disk.
    pub fn bytes(self) -> u64 {
        self.first() + 2 * self.sequences * self.stride()
    }

    /// Numbers of a sequence.
    fn stride(self) -> u64 {
        self.seq_len * self.hidden_size
    }

    /// First byte of the states.
    fn first(self) -> u64 {
        (HEADER_BYTES + ENTRY_BYTES * self.sequences).next_multiple_of(4096)
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
    /// Tokens of each sequence.
    lens: Vec<u32>,
    level: Option<Level>,
    below: Option<Level>,
    states: Vec<f32>,
    report: CacheReport,
}

impl TrunkCache {
    /// A cache in `dir`, which is made if absent, of sequences of `lens` tokens. `base` says what
    /// the states depend on beside adapters: model, formats, data, device.
    ///
    /// # Errors
    /// The folder cannot be made, or has no room for a level.
    pub fn new(dir: &Path, keep: bool, base: String, sizes: Sizes, lens: Vec<u32>) -> Result<Self> {
        let shown = dir.display();
        fs::create_dir_all(dir)
            .with_context(|| format!("cannot make {shown}: give --trunk-cache another folder"))?;
        let free = fs4::available_space(dir)
            .with_context(|| format!("cannot tell the free space of {shown}"))?;
        ensure!(
            keep || 2 * sizes.bytes() <= free,
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
            lens,
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
        for (row, &index) in batch.indices.iter().enumerate() {
            let states = &mut self.states[row * stride..(row + 1) * stride];
            match level.read(index, states)? {
                true => self.report.read += 1,
                false => missing.push(row),
            }
        }
        if !missing.is_empty() {
            self.compute(model, batch, &missing)?;
            self.report.computed += missing.len() as u64;
        }
        let stream = head(model.stream(), self.states.len());
        model.device.write(&stream, bytemuck::cast_slice(&self.states))?;
        Ok(true)
    }

    /// Runs the trunk for these rows of the batch: from the level before where that has them,
    /// else from the embedding.
    fn compute(&mut self, model: &Model, batch: &Batch, rows: &[usize]) -> Result<()> {
        let width = self.sizes.hidden_size as usize;
        let stride = batch.seq_len * width;
        let Some(level) = &mut self.level else { return Ok(()) };
        for &row in rows {
            let index = batch.indices[row];
            let len = (self.lens[index as usize] as usize).min(batch.seq_len);
            let mut states = vec![0.0; len * width];
            let mut from = 0;
            if let Some(below) = &mut self.below
                && below.read(index, &mut states)?
            {
                from = below.after;
            }
            let rows = row * batch.seq_len..row * batch.seq_len + len;
            let g = Geometry::sequences(1, len as u32);
            model.set_segments(&batch.segments[rows.clone()], g)?;
            if from == 0 {
                model.set_ids(&batch.ids[rows])?;
            }
            climb(model, &mut states, from, level)?;
            let out = &mut self.states[row * stride..(row + 1) * stride];
            out.fill(0.0);
            level.write(index, &states, &mut out[..len * width])?;
        }
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

/// Takes the states of a sequence from behind block `from`, or from the embedding of the model's
/// ids, to a level. At the edges below it they are rounded, as its file would have had them.
fn climb(model: &Model, states: &mut [f32], from: u32, level: &Level) -> Result<()> {
    let len = states.len() as u32 / model.shape.hidden_size;
    let g = Geometry::sequences(1, len);
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

/// A file of states.
struct Level {
    after: u32,
    path: PathBuf,
    file: File,
    sizes: Sizes,
    /// Tokens and CRC-32 of each sequence.
    index: Vec<(u32, u32)>,
    bytes: Vec<u8>,
}

impl Level {
    fn open(dir: &Path, after: u32, key: &str, sizes: Sizes) -> Result<Self> {
        let path = dir.join(format!("trunk-{after}-{key}.f16"));
        let shown = path.display();
        let mut options = OpenOptions::new();
        let file = options.read(true).write(true).create(true).truncate(false).open(&path);
        let file = file
            .with_context(|| format!("cannot open {shown}: give --trunk-cache another folder"))?;
        match file.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => bail!(
                "{shown} is in use by another run: wait for it, or give --trunk-cache another \
                 folder"
            ),
            // Some file systems have no locks.
            Err(TryLockError::Error(_)) => {}
        }
        let index = vec![(0, 0); sizes.sequences as usize];
        let mut level = Self { after, path, file, sizes, index, bytes: Vec::new() };
        let header = level.header(key);
        level.start(&header).with_context(|| {
            let path = level.path.display();
            format!("cannot read or write {path}: free space or remove it")
        })?;
        Ok(level)
    }

    fn header(&self, key: &str) -> Vec<u8> {
        let mut header = MAGIC.to_vec();
        header.extend(key.as_bytes());
        let Sizes { sequences, seq_len, hidden_size } = self.sizes;
        for number in [self.after.into(), sequences, seq_len, hidden_size] {
            header.extend(u64::to_le_bytes(number));
        }
        header.resize(HEADER_BYTES as usize, 0);
        header
    }

    /// Takes over what the file has under this header, or begins anew.
    fn start(&mut self, header: &[u8]) -> std::io::Result<()> {
        let len = self.file.metadata()?.len();
        let mut found = vec![0; header.len()];
        if len == self.sizes.bytes() {
            self.file.read_exact(&mut found)?;
        }
        if found != header {
            self.file.set_len(0)?;
            self.file.set_len(self.sizes.bytes())?;
            self.file.seek(SeekFrom::Start(0))?;
            return self.file.write_all(header);
        }
        let mut entries = vec![0; (ENTRY_BYTES * self.sizes.sequences) as usize];
        self.file.read_exact(&mut entries)?;
        for (entry, bytes) in self.index.iter_mut().zip(entries.as_chunks::<4>().0.chunks(2)) {
            *entry = (u32::from_le_bytes(bytes[0]), u32::from_le_bytes(bytes[1]));
        }
        Ok(())
    }

    fn at(&self, index: u32) -> u64 {
        self.sizes.first() + 2 * u64::from(index) * self.sizes.stride()
    }

    /// Reads the states of a sequence, as far as they are asked for; zeros behind what is there,
    /// which is padding. False where there are none, or they are damaged.
    fn read(&mut self, index: u32, states: &mut [f32]) -> Result<bool> {
        let (tokens, crc) = self.index[index as usize];
        if tokens == 0 || u64::from(tokens) > self.sizes.seq_len {
            return Ok(false);
        }
        let values = u64::from(tokens) * self.sizes.hidden_size;
        self.bytes.resize(2 * values as usize, 0);
        let at = self.at(index);
        self.file
            .seek(SeekFrom::Start(at))
            .and_then(|_| self.file.read_exact(&mut self.bytes))
            .with_context(|| format!("cannot read {}", self.path.display()))?;
        if crc32fast::hash(&self.bytes) != crc {
            return Ok(false);
        }
        let wanted = states.len().min(values as usize);
        decode(&self.bytes[..2 * wanted], &mut states[..wanted]);
        states[wanted..].fill(0.0);
        Ok(true)
    }

    /// Writes the states of a sequence, and leaves them in `rounded` as they will be read.
    fn write(&mut self, index: u32, states: &[f32], rounded: &mut [f32]) -> Result<()> {
        check(states)?;
        self.bytes.clear();
        self.bytes.extend(states.iter().flat_map(|&x| f16::from_f32(x).to_le_bytes()));
        decode(&self.bytes, rounded);
        let tokens = (states.len() as u64 / self.sizes.hidden_size) as u32;
        let entry = (tokens, crc32fast::hash(&self.bytes));
        self.index[index as usize] = entry;
        let packed = [entry.0.to_le_bytes(), entry.1.to_le_bytes()].concat();
        let (at, slot) = (self.at(index), HEADER_BYTES + ENTRY_BYTES * u64::from(index));
        let mut put = |at, bytes: &[u8]| {
            self.file.seek(SeekFrom::Start(at)).and_then(|_| self.file.write_all(bytes))
        };
        put(at, &self.bytes).and_then(|_| put(slot, &packed)).with_context(|| {
            format!("cannot write {}: free space, or give --trunk-cache off", self.path.display())
        })
    }

    fn remove(self) -> Result<()> {
        let path = self.path.clone();
        drop(self);
        fs::remove_file(&path).with_context(|| format!("cannot remove {}", path.display()))
    }
}

/// What f16 can hold.
fn check(states: &[f32]) -> Result<()> {
    ensure!(
        states.iter().all(|x| x.is_finite()),
        "the hidden states below the window are no numbers: the run diverged, lower --lr"
    );
    ensure!(
        states.iter().all(|x| x.abs() <= f16::MAX.to_f32()),
        "the hidden states below the window exceed what f16 holds ({}): give --trunk-cache off",
        f16::MAX
    );
    Ok(())
}

/// Rounds states as a file does.
fn round(states: &mut [f32]) -> Result<()> {
    check(states)?;
    let halves: Vec<f16> = states.iter().map(|x| f16::from_f32(*x)).collect();
    halves.convert_to_f32_slice(states);
    Ok(())
}

fn decode(bytes: &[u8], values: &mut [f32]) {
    let halves: Vec<f16> =
        bytes.as_chunks::<2>().0.iter().map(|bytes| f16::from_le_bytes(*bytes)).collect();
    halves.convert_to_f32_slice(values);
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::message;

    const SIZES: Sizes = Sizes { sequences: 3, seq_len: 4, hidden_size: 2 };

    fn open(dir: &Path, key: &str) -> Level {
        Level::open(dir, 2, key, SIZES).expect("a level")
    }

    #[test]
    fn what_is_written_is_read_rounded_also_by_the_next_run() {
        let dir = tempfile::tempdir().expect("a folder");
        let key = "0123456789abcdef";
        let mut level = open(dir.path(), key);
        let mut out = [9.0; 8];
        assert!(!level.read(1, &mut out).expect("read"));
        let states: Vec<f32> = (0..6).map(|i| 0.1 + i as f32).collect();
        let mut rounded = [0.0; 6];
        level.write(1, &states, &mut rounded).expect("written");
        assert_eq!(rounded[3], f16::from_f32(3.1).to_f32());
        drop(level);
        let mut level = open(dir.path(), key);
        assert!(level.read(1, &mut out).expect("read"));
        assert_eq!((&out[..6], &out[6..]), (&rounded[..], &[0.0; 2][..]));
        let mut part = [0.0; 4];
        assert!(level.read(1, &mut part).expect("read"));
        assert_eq!(part, rounded[..4]);
        assert!(!level.read(0, &mut out).expect("read"));
        let error = message(level.write(0, &[1e5; 2], &mut [0.0; 2]));
        assert!(error.contains("--trunk-cache off"), "{error}");
    }

    #[test]
    fn damage_and_other_keys_are_not_used() {
        let dir = tempfile::tempdir().expect("a folder");
        let key = "0123456789abcdef";
        let mut level = open(dir.path(), key);
        level.write(2, &[1.0; 8], &mut [0.0; 8]).expect("written");
        let path = level.path.clone();
        let error = message(Level::open(dir.path(), 2, key, SIZES).map(|_| ()));
        assert!(error.contains("in use by another run"), "{error}");
        drop(level);
        let mut out = [0.0; 8];
        // Another key in the same place, as if hashes were cut short.
        let other = "0123456789abcdee";
        fs::copy(&path, dir.path().join(format!("trunk-2-{other}.f16"))).expect("copied");
        assert!(!open(dir.path(), other).read(2, &mut out).expect("read"));
        let mut bytes = fs::read(&path).expect("a file");
        let last = bytes.len() - 1;
        bytes[last] ^= 1;
        fs::write(&path, &bytes).expect("written");
        assert!(!open(dir.path(), key).read(2, &mut out).expect("read"));
        fs::write(&path, &bytes[..last]).expect("written");
        assert!(!open(dir.path(), key).read(2, &mut out).expect("read"));
        assert_eq!(fs::metadata(&path).expect("a file").len(), SIZES.bytes());
    }

    #[test]
    fn adapters_above_the_level_and_empty_ones_do_not_count() {
        use edge_scheduler::Projection;
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
