//! A file of hidden states: `[sequences, seq_len, d]` in f16 behind a header and an index. Each
//! entry has its length and a CRC-32, so that what a crash cut off is known to be missing.
//!
//! It is read and written by calls and not mapped: where a disk fails, that is an error with a
//! sentence and not a signal.

use std::fs::{self, File, OpenOptions, TryLockError};
use std::io::{Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail, ensure};
use half::f16;
use half::slice::HalfFloatSliceExt;

/// First bytes of a file, with the version of the layout.
const MAGIC: &[u8; 8] = b"EDGTRNK1";

/// Bytes of the header: magic, key, and the numbers of [`Sizes`] and the level.
const HEADER_BYTES: u64 = 64;

/// Bytes of an entry of the index: tokens and CRC-32, both 0 while there is none.
const ENTRY_BYTES: u64 = 8;

/// What a file holds.
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

/// A file of states.
pub(super) struct Level {
    /// Blocks below it.
    pub(super) after: u32,
    pub(super) path: PathBuf,
    file: File,
    sizes: Sizes,
    /// Tokens and CRC-32 of each sequence.
    index: Vec<(u32, u32)>,
    bytes: Vec<u8>,
}

impl Level {
    pub(super) fn open(dir: &Path, after: u32, key: &str, sizes: Sizes) -> Result<Self> {
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
    pub(super) fn read(&mut self, index: u32, states: &mut [f32]) -> Result<bool> {
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

    /// Writes the states of a sequence.
    pub(super) fn write(&mut self, index: u32, states: &[f32]) -> Result<()> {
        check(states)?;
        self.bytes.clear();
        self.bytes.extend(states.iter().flat_map(|&x| f16::from_f32(x).to_le_bytes()));
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

    pub(super) fn remove(self) -> Result<()> {
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
pub(super) fn round(states: &mut [f32]) -> Result<()> {
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
        let rounded: Vec<f32> = states.iter().map(|x| f16::from_f32(*x).to_f32()).collect();
        level.write(1, &states).expect("written");
        drop(level);
        let mut level = open(dir.path(), key);
        assert!(level.read(1, &mut out).expect("read"));
        assert_eq!((&out[..6], &out[6..]), (&rounded[..], &[0.0; 2][..]));
        let mut part = [0.0; 4];
        assert!(level.read(1, &mut part).expect("read"));
        assert_eq!(part, rounded[..4]);
        assert!(!level.read(0, &mut out).expect("read"));
        let error = message(level.write(0, &[1e5; 2]));
        assert!(error.contains("--trunk-cache off"), "{error}");
    }

    #[test]
    fn damage_and_other_keys_are_not_used() {
        let dir = tempfile::tempdir().expect("a folder");
        let key = "0123456789abcdef";
        let mut level = open(dir.path(), key);
        level.write(2, &[1.0; 8]).expect("written");
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
}
