//! Hidden states of all calibration sequences, f32: in memory, or in a temporary file where they
//! are large. What the operating system keeps of the file in its cache it can drop at any time.

use std::fs::File;
use std::io::{Read, Seek, SeekFrom, Write};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use anyhow::{Context, Result};

/// Bytes of host memory that calibration holds, now and at most: hidden states in memory and
/// compressed weights. Cheap to clone. Pieces in flight (one micro-batch, one shard of a weight)
/// are not counted.
#[derive(Clone, Debug, Default)]
pub struct HostMeter(Arc<Counts>);

#[derive(Debug, Default)]
struct Counts {
    current: AtomicU64,
    peak: AtomicU64,
}

impl HostMeter {
    /// Bytes held now.
    pub fn current_bytes(&self) -> u64 {
        self.0.current.load(Ordering::Relaxed)
    }

    /// Most bytes that were held at once.
    pub fn peak_bytes(&self) -> u64 {
        self.0.peak.load(Ordering::Relaxed)
    }

    pub(crate) fn charge(&self, bytes: u64) -> HostCharge {
        let now = self.0.current.fetch_add(bytes, Ordering::Relaxed) + bytes;
        self.0.peak.fetch_max(now, Ordering::Relaxed);
        HostCharge { meter: self.clone(), bytes }
    }
}

/// Bytes that are held until this is dropped.
#[derive(Debug)]
pub(crate) struct HostCharge {
    meter: HostMeter,
    bytes: u64,
}

impl Drop for HostCharge {
    fn drop(&mut self) {
        self.meter.0.current.fetch_sub(self.bytes, Ordering::Relaxed);
    }
}

/// Where hidden states go that are too large for memory.
#[derive(Clone, Debug)]
pub struct Spill {
    /// A folder for temporary files, which have no name and vanish with the process.
    pub dir: PathBuf,
    /// Hidden states of more bytes than this go there.
    pub above_bytes: u64,
}

/// Hidden states `[sequences, seq_len, d]`.
#[derive(Debug)]
pub struct States {
    sequences: usize,
    /// f32 of a sequence: `seq_len · d`.
    stride: usize,
    data: Data,
}

#[derive(Debug)]
enum Data {
    Memory {
        values: Vec<f32>,
        _charge: HostCharge,
    },
    /// And the folder that it was made in.
    File(File, PathBuf),
}

impl States {
    /// Zeros.
    ///
    /// # Errors
    /// A temporary file cannot be made.
    pub(super) fn new(
        sequences: usize,
        stride: usize,
        spill: Option<&Spill>,
        meter: &HostMeter,
    ) -> Result<Self> {
        let bytes = 4 * (sequences * stride) as u64;
        let data = match spill.filter(|spill| bytes > spill.above_bytes) {
            None => {
                Data::Memory { values: vec![0.0; sequences * stride], _charge: meter.charge(bytes) }
            }
            Some(Spill { dir, .. }) => {
                let file = tempfile::tempfile_in(dir).and_then(|file| {
                    file.set_len(bytes)?;
                    Ok(file)
                });
                let file = file.with_context(|| {
                    format!("cannot make a temporary file in {}: name another", dir.display())
                })?;
                Data::File(file, dir.clone())
            }
        };
        Ok(Self { sequences, stride, data })
    }

    /// Number of sequences.
    pub fn sequences(&self) -> usize {
        self.sequences
    }

    /// Numbers of a sequence, `seq_len · d`.
    pub fn stride(&self) -> usize {
        self.stride
    }

    /// Whether they lie in a temporary file.
    pub fn is_spilled(&self) -> bool {
        matches!(self.data, Data::File(..))
    }

    /// Copies `count` sequences from `first` on into `out`.
    ///
    /// # Errors
    /// The file cannot be read.
    ///
    /// # Panics
    /// When there are fewer sequences.
    pub fn read(&self, first: usize, count: usize, out: &mut Vec<f32>) -> Result<()> {
        assert!(first + count <= self.sequences, "sequences {first}+{count}");
        let (start, len) = (first * self.stride, count * self.stride);
        out.resize(len, 0.0);
        match &self.data {
            Data::Memory { values, .. } => out.copy_from_slice(&values[start..start + len]),
            Data::File(file, dir) => {
                let mut file = file;
                file.seek(SeekFrom::Start(4 * start as u64))
                    .and_then(|_| file.read_exact(bytemuck::cast_slice_mut(out)))
                    .with_context(|| format!("cannot read back from {}", dir.display()))?;
            }
        }
        Ok(())
    }

    /// Overwrites whole sequences from `first` on.
    ///
    /// # Errors
    /// The file cannot be written.
    ///
    /// # Panics
    /// When there are fewer sequences.
    pub fn write(&mut self, first: usize, values: &[f32]) -> Result<()> {
        let start = first * self.stride;
        assert!(start + values.len() <= self.sequences * self.stride, "sequences from {first}");
        match &mut self.data {
            Data::Memory { values: all, .. } => {
                all[start..start + values.len()].copy_from_slice(values)
            }
            Data::File(file, dir) => {
                file.seek(SeekFrom::Start(4 * start as u64))
                    .and_then(|_| file.write_all(bytemuck::cast_slice(values)))
                    .with_context(|| {
                        format!("cannot write hidden states in {}: free space", dir.display())
                    })?;
            }
        }
        Ok(())
    }

    /// All of them, `[sequences, seq_len, d]`.
    ///
    /// # Errors
    /// As [`States::read`].
    pub fn to_vec(&self) -> Result<Vec<f32>> {
        let mut out = Vec::new();
        self.read(0, self.sequences, &mut out)?;
        Ok(out)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::message;

    #[test]
    fn memory_and_file_hold_the_same() {
        let dir = tempfile::tempdir().expect("a folder");
        let spill = |above_bytes| Spill { dir: dir.path().to_owned(), above_bytes };
        let meter = HostMeter::default();
        let mut memory = States::new(5, 3, Some(&spill(60)), &meter).expect("states");
        let mut file = States::new(5, 3, Some(&spill(59)), &meter).expect("states");
        assert!(!memory.is_spilled() && file.is_spilled());
        assert_eq!((meter.current_bytes(), meter.peak_bytes()), (60, 60));
        let values: Vec<f32> = (0..6).map(|i| 0.5 + i as f32).collect();
        for states in [&mut memory, &mut file] {
            states.write(2, &values).expect("written");
            let mut out = Vec::new();
            states.read(1, 2, &mut out).expect("read");
            assert_eq!(out, [0.0, 0.0, 0.0, 0.5, 1.5, 2.5]);
        }
        assert_eq!(memory.to_vec().expect("read"), file.to_vec().expect("read"));
        // The file has no name.
        assert_eq!(std::fs::read_dir(dir.path()).expect("a folder").count(), 0);
        drop(memory);
        assert_eq!((meter.current_bytes(), meter.peak_bytes()), (0, 60));
        let absent = Spill { dir: dir.path().join("absent"), above_bytes: 0 };
        assert!(message(States::new(1, 1, Some(&absent), &meter)).contains("absent"));
    }
}
