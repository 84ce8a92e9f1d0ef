//! Event files of TensorBoard: records of a length and bytes, both with checksums, whose bytes are
//! a protocol buffer `Event` with scalars (tensorflow/core/util/event.proto, lib/io/record_writer).

use std::fs::File;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result};

use super::log::{cut, shorten};

/// Remainders of CRC32C (Castagnoli, reflected) by byte. crc32fast has the other polynomial.
const TABLE: [u32; 256] = {
    let mut table = [0; 256];
    let mut byte = 0;
    while byte < 256 {
        let mut crc = byte as u32;
        let mut bit = 0;
        while bit < 8 {
            crc = if crc & 1 == 1 { crc >> 1 ^ 0x82f6_3b78 } else { crc >> 1 };
            bit += 1;
        }
        table[byte] = crc;
        byte += 1;
    }
    table
};

fn crc32c(bytes: &[u8]) -> u32 {
    !bytes.iter().fold(!0, |crc, byte| TABLE[usize::from(crc as u8 ^ byte)] ^ crc >> 8)
}

/// The checksum of a record: rotated, so that a checksum of checksums is none.
pub fn masked_crc32c(bytes: &[u8]) -> u32 {
    crc32c(bytes).rotate_right(15).wrapping_add(0xa282_ead8)
}

fn varint(out: &mut Vec<u8>, mut value: u64) {
    while value >= 0x80 {
        out.push(value as u8 | 0x80);
        value >>= 7;
    }
    out.push(value as u8);
}

/// A field of bytes: its number with wire type 2, length, bytes.
fn field(out: &mut Vec<u8>, number: u8, bytes: &[u8]) {
    out.push(number << 3 | 2);
    varint(out, bytes.len() as u64);
    out.extend(bytes);
}

/// `Event { wall_time = 1, step = 2, ... }` without its content.
fn event(wall_time: f64, step: u64) -> Vec<u8> {
    let mut bytes = vec![1 << 3 | 1];
    bytes.extend(wall_time.to_le_bytes());
    bytes.push(2 << 3);
    varint(&mut bytes, step);
    bytes
}

/// `Event { summary = 5: Summary { value = 1: Value { tag = 1, simple_value = 2 } } }`.
fn summary(wall_time: f64, step: u64, scalars: &[(String, f64)]) -> Vec<u8> {
    let mut values = Vec::new();
    for (tag, value) in scalars {
        let mut bytes = Vec::new();
        field(&mut bytes, 1, tag.as_bytes());
        bytes.push(2 << 3 | 5);
        bytes.extend((*value as f32).to_le_bytes());
        field(&mut values, 1, &bytes);
    }
    let mut bytes = event(wall_time, step);
    field(&mut bytes, 5, &values);
    bytes
}

fn record(out: &mut Vec<u8>, bytes: &[u8]) {
    let len = (bytes.len() as u64).to_le_bytes();
    out.extend(len);
    out.extend(masked_crc32c(&len).to_le_bytes());
    out.extend(bytes);
    out.extend(masked_crc32c(bytes).to_le_bytes());
}

/// Beginning of an event file's name, which TensorBoard looks for.
const PREFIX: &str = "events.out.tfevents.";

/// End of it.
const SUFFIX: &str = ".edge-llm";

/// An event file that is written.
#[derive(Debug)]
pub struct TfEvents {
    file: File,
    path: PathBuf,
    waiting: Vec<u8>,
}

impl TfEvents {
    /// Creates `events.out.tfevents.SECONDS.edge-llm` in a directory.
    ///
    /// # Errors
    /// The file cannot be written.
    pub fn create(dir: &Path) -> Result<Self> {
        let now = wall_time();
        let path = dir.join(format!("{PREFIX}{:010}{SUFFIX}", now as u64));
        let file =
            File::options().create(true).append(true).open(&path).with_context(|| {
                format!("cannot write {}: give --out another path", path.display())
            })?;
        let mut version = event(now, 0);
        field(&mut version, 3, b"brain.Event:2");
        let mut events = Self { file, path, waiting: Vec::new() };
        record(&mut events.waiting, &version);
        Ok(events)
    }

    /// The file of a run that goes on, without what lies behind its first bytes; those after it are
    /// removed. A new one where it is not there.
    ///
    /// # Errors
    /// A file cannot be written.
    pub(super) fn resume(dir: &Path, (name, bytes): &(String, u64)) -> Result<Self> {
        let files = std::fs::read_dir(dir).into_iter().flatten().flatten();
        for file in files {
            let found = file.file_name().to_string_lossy().into_owned();
            // Names hold the time, so that later files have greater ones.
            if found.starts_with(PREFIX) && found.ends_with(SUFFIX) && found > *name {
                std::fs::remove_file(file.path()).with_context(|| shorten(&file.path()))?;
            }
        }
        let plain = name.starts_with(PREFIX) && !name.contains(['/', '\\']);
        let path = dir.join(name);
        if !plain || !path.exists() {
            return Self::create(dir);
        }
        let open = File::options().append(true).open(&path);
        let file = open.with_context(|| shorten(&path))?;
        cut(&path, *bytes).with_context(|| shorten(&path))?;
        Ok(Self { file, path, waiting: Vec::new() })
    }

    /// Name and bytes of the file, without what waits.
    ///
    /// # Errors
    /// The file is gone.
    pub(super) fn len(&self) -> Result<(String, u64)> {
        let name = self.path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let metadata = self.file.metadata();
        let metadata = metadata.with_context(|| format!("cannot read {}", self.path.display()))?;
        Ok((name, metadata.len()))
    }

    /// Adds scalars of a step; [`TfEvents::flush`] writes them.
    pub fn push(&mut self, step: u64, scalars: &[(String, f64)]) {
        record(&mut self.waiting, &summary(wall_time(), step, scalars));
    }

    /// Writes what waits.
    ///
    /// # Errors
    /// The disk is full.
    pub fn flush(&mut self) -> Result<()> {
        let written = self.file.write_all(&self.waiting);
        self.waiting.clear();
        written.with_context(|| format!("cannot write {}: check free space", self.path.display()))
    }
}

/// Seconds since 1970.
fn wall_time() -> f64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs_f64()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn checksums_are_those_of_the_standard() {
        // RFC 3720, appendix B.4.
        assert_eq!(crc32c(&[0; 32]), 0x8a91_36aa);
        assert_eq!(crc32c(&[0xff; 32]), 0x62a8_ab43);
        assert_eq!(crc32c(b"123456789"), 0xe306_9283);
        // The length in front of the first record of a file of TensorFlow, 24 bytes.
        assert_eq!(masked_crc32c(&24u64.to_le_bytes()), 0x224b_7fa3);
    }

    #[test]
    fn records_are_framed_and_hold_the_scalars() {
        let dir = tempfile::tempdir().unwrap();
        let mut events = TfEvents::create(dir.path()).unwrap();
        events.push(300, &[("train/loss".to_owned(), 2.5), ("b".to_owned(), f64::NAN)]);
        events.flush().unwrap();
        let path = std::fs::read_dir(dir.path()).unwrap().next().unwrap().unwrap().path();
        assert!(path.file_name().unwrap().to_str().unwrap().starts_with("events.out.tfevents."));
        let bytes = std::fs::read(path).unwrap();
        let (mut rest, mut records) = (&bytes[..], Vec::new());
        while !rest.is_empty() {
            let (head, after) = rest.split_at(12);
            let len = u64::from_le_bytes(head[..8].try_into().unwrap());
            assert_eq!(head[8..], masked_crc32c(&head[..8]).to_le_bytes());
            let (data, after) = after.split_at(len as usize);
            assert_eq!(after[..4], masked_crc32c(data).to_le_bytes());
            records.push(data);
            rest = &after[4..];
        }
        assert_eq!(records.len(), 2);
        // double wall_time, int64 step, string file_version.
        assert_eq!(records[0][0], 0x09);
        assert_eq!(records[0][9..], *b"\x10\x00\x1a\x0dbrain.Event:2");
        let mut want = b"\x10\xac\x02\x2a\x1d\x0a\x11\x0a\x0atrain/loss\x15".to_vec();
        want.extend(2.5f32.to_le_bytes());
        want.extend(b"\x0a\x08\x0a\x01b\x15");
        assert_eq!(records[1][9..records[1].len() - 4], want);
    }
}
