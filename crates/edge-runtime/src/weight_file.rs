//! Files of weights, read by position and never mapped: a map of a file that somebody cuts off ends
//! the process with SIGBUS where it is read, and one that somebody overwrites gives other weights
//! without a word. What is read here is an error instead, once the file is not what was opened.

use std::fs::{File, Metadata};
use std::io;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use anyhow::{Context, Result, ensure};

/// An open file whose length and time of change are known.
#[derive(Debug)]
pub(crate) struct WeightFile {
    path: PathBuf,
    file: File,
    bytes: u64,
    modified: Option<SystemTime>,
}

impl WeightFile {
    /// Opens a file; `remedy` is what helps where it cannot be.
    ///
    /// # Errors
    /// It is absent, or no file.
    pub(crate) fn open(path: PathBuf, remedy: &str) -> Result<Self> {
        let shown = path.display();
        // A pipe would be waited for here, and a device has no end.
        let other = std::fs::metadata(&path).is_ok_and(|about| !about.is_file());
        ensure!(!other, "{shown} is no file: {remedy}");
        let file = File::open(&path)
            .with_context(|| format!("cannot open {shown}: check its permissions, or {remedy}"))?;
        let about = file.metadata().with_context(|| format!("cannot read {shown}"))?;
        let (bytes, modified) = (about.len(), about.modified().ok());
        Ok(Self { path, file, bytes, modified })
    }

    /// Where it is.
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// Its length when it was opened.
    pub(crate) fn bytes(&self) -> u64 {
        self.bytes
    }

    /// The file itself, at its start.
    pub(crate) fn file(&self) -> &File {
        &self.file
    }

    /// Reads some bytes.
    ///
    /// # Errors
    /// The file has changed since it was opened, or the disk fails.
    pub(crate) fn read(&self, range: Range<u64>) -> Result<Vec<u8>> {
        let mut bytes = vec![0; range.end.saturating_sub(range.start) as usize];
        self.read_into(range.start, &mut bytes)?;
        Ok(bytes)
    }

    /// Reads the bytes from `start` on.
    ///
    /// # Errors
    /// As [`WeightFile::read`].
    pub(crate) fn read_into(&self, start: u64, out: &mut [u8]) -> Result<()> {
        let read = read_at(&self.file, start, out);
        // Behind reading: what changed before it is seen as well.
        self.check()?;
        read.with_context(|| {
            let (count, shown) = (out.len(), self.path.display());
            format!("cannot read {count} bytes at byte {start} of {shown}: check the disk")
        })
    }

    /// Reads little-endian words; bytes that are missing in the last one are zero.
    ///
    /// # Errors
    /// As [`WeightFile::read`].
    pub(crate) fn read_words(&self, range: Range<u64>, out: &mut [u32]) -> Result<()> {
        let bytes = (range.end - range.start) as usize;
        let words = &mut out[..bytes.div_ceil(4)];
        if let (false, Some(last)) = (bytes.is_multiple_of(4), words.last_mut()) {
            *last = 0;
        }
        self.read_into(range.start, &mut bytemuck::cast_slice_mut(words)[..bytes])?;
        // Where the host is little-endian too, this is nothing.
        words.iter_mut().for_each(|word| *word = u32::from_le(*word));
        Ok(())
    }

    /// Whether it is still what was opened, as far as length and time of change say.
    ///
    /// # Errors
    /// It is not.
    fn check(&self) -> Result<()> {
        let shown = self.path.display();
        let about = self.file.metadata().with_context(|| format!("cannot read {shown}"))?;
        let same =
            |about: &Metadata| about.len() == self.bytes && about.modified().ok() == self.modified;
        ensure!(
            same(&about),
            "{shown} was changed while it was in use: leave it alone, and start again"
        );
        Ok(())
    }
}

#[cfg(unix)]
fn read_at(file: &File, start: u64, out: &mut [u8]) -> io::Result<()> {
    use std::os::unix::fs::FileExt;
    file.read_exact_at(out, start)
}

#[cfg(windows)]
fn read_at(file: &File, mut start: u64, mut out: &mut [u8]) -> io::Result<()> {
    use std::os::windows::fs::FileExt;
    while !out.is_empty() {
        match file.seek_read(out, start) {
            Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
            Ok(count) => {
                start += count as u64;
                out = &mut out[count..];
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::message;

    #[test]
    fn a_file_that_changes_is_an_error() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("w.bin");
        let bytes: Vec<u8> = (0..=255).collect();
        std::fs::write(&path, &bytes).unwrap();
        let open = || WeightFile::open(path.clone(), "find it").unwrap();
        let file = open();
        assert_eq!(file.read(3..7).unwrap(), [3, 4, 5, 6]);
        let mut words = [u32::MAX; 3];
        file.read_words(0..6, &mut words).unwrap();
        assert_eq!(words, [0x0302_0100, 0x0504, u32::MAX]);
        assert!(message(file.read(250..260)).contains("10 bytes at byte 250"));
        // Shorter, longer, and other contents of the same length.
        for change in [&bytes[..100], &[bytes.as_slice(), &[0]].concat(), &vec![7; 256]] {
            std::fs::write(&path, &bytes).unwrap();
            let file = open();
            let before = file.file().metadata().unwrap().modified().unwrap();
            std::fs::write(&path, change).unwrap();
            // Clocks of file systems are coarse.
            let later = before + std::time::Duration::from_secs(1);
            File::options().write(true).open(&path).unwrap().set_modified(later).unwrap();
            let error = message(file.read(0..4));
            assert!(error.contains("w.bin was changed") && !error.contains('\n'), "{error}");
        }
        assert!(message(WeightFile::open(dir.path().into(), "find it")).contains("no file"));
        assert!(message(WeightFile::open(dir.path().join("x"), "find it")).contains("find it"));
    }
}
