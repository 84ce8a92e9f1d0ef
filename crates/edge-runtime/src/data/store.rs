//! Where token ids lie: in memory, or, where they are many, in a temporary file that is mapped.
//!
//! The file has no name, so that it is gone with the process, however that ends.

use std::fs::File;
use std::io::{BufWriter, Write};
use std::marker::PhantomData;
use std::ops::Deref;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::{Context, Result, ensure};
use bytemuck::Pod;
use memmap2::Mmap;

use crate::session::mebibytes;

/// Values of one type, read only; copies share them.
pub struct Table<T>(Place<T>);

enum Place<T> {
    Memory(Arc<Vec<T>>),
    File(Arc<Mmap>, PhantomData<T>),
}

impl<T: Pod> Deref for Table<T> {
    type Target = [T];

    fn deref(&self) -> &[T] {
        match &self.0 {
            Place::Memory(values) => values,
            // Pages are aligned to more than any T, and the file has whole values.
            Place::File(map, _) => bytemuck::cast_slice(map),
        }
    }
}

impl<T> Clone for Table<T> {
    fn clone(&self) -> Self {
        Self(match &self.0 {
            Place::Memory(values) => Place::Memory(values.clone()),
            Place::File(map, _) => Place::File(map.clone(), PhantomData),
        })
    }
}

impl<T: Pod + PartialEq> PartialEq for Table<T> {
    fn eq(&self, other: &Self) -> bool {
        self[..] == other[..]
    }
}

impl<T: Pod> std::fmt::Debug for Table<T> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let place = if self.is_mapped() { "in a file" } else { "in memory" };
        write!(f, "{} values {place}", self.len())
    }
}

impl<T> Default for Table<T> {
    fn default() -> Self {
        Vec::new().into()
    }
}

impl<T> From<Vec<T>> for Table<T> {
    fn from(values: Vec<T>) -> Self {
        Self(Place::Memory(Arc::new(values)))
    }
}

impl<T> FromIterator<T> for Table<T> {
    fn from_iter<I: IntoIterator<Item = T>>(values: I) -> Self {
        values.into_iter().collect::<Vec<T>>().into()
    }
}

impl<T> Table<T> {
    /// Whether the values lie in a file.
    pub fn is_mapped(&self) -> bool {
        matches!(self.0, Place::File(..))
    }
}

/// A [`Table`] while it is made.
pub(super) struct Writer<T> {
    kept: Vec<T>,
    file: Option<Spilled>,
    len: usize,
    last: Option<T>,
    limit_bytes: usize,
}

/// The file of a writer.
struct Spilled {
    file: BufWriter<File>,
    dir: PathBuf,
}

impl<T: Pod> Writer<T> {
    /// One that keeps up to `limit_bytes` in memory.
    pub(super) fn new(limit_bytes: usize) -> Self {
        Self { kept: Vec::new(), file: None, len: 0, last: None, limit_bytes }
    }

    pub(super) fn len(&self) -> usize {
        self.len
    }

    pub(super) fn last(&self) -> Option<T> {
        self.last
    }

    /// Adds values, when `share` of all is read.
    ///
    /// # Errors
    /// They do not fit into memory and cannot be written.
    pub(super) fn extend(&mut self, values: &[T], share: f64) -> Result<()> {
        self.len += values.len();
        self.last = values.last().copied().or(self.last);
        if let Some(spilled) = &mut self.file {
            return spilled.write(values);
        }
        self.kept.extend_from_slice(values);
        if size_of_val(&self.kept[..]) > self.limit_bytes {
            let expected = size_of_val(&self.kept[..]) as f64 / share.clamp(1e-6, 1.0);
            let mut spilled = Spilled::new(&folder()?, expected as u64)?;
            spilled.write(&std::mem::take(&mut self.kept))?;
            self.file = Some(spilled);
        }
        Ok(())
    }

    /// The values.
    ///
    /// # Errors
    /// The file cannot be written or mapped.
    pub(super) fn finish(self) -> Result<Table<T>> {
        let Some(Spilled { file, dir }) = self.file else { return Ok(self.kept.into()) };
        let shown = dir.display();
        let file = file.into_inner().map_err(std::io::IntoInnerError::into_error);
        let file = file.with_context(|| full(&dir))?;
        // SAFETY: the file has no name, so that nobody else writes or truncates it, and this is
        // its only handle; it is closed with this function, and the map is only read.
        let map = unsafe { Mmap::map(&file) };
        let map = map.with_context(|| format!("cannot map the token ids in {shown}"))?;
        Ok(Table(Place::File(Arc::new(map), PhantomData)))
    }
}

impl Spilled {
    fn new(dir: &Path, expected_bytes: u64) -> Result<Self> {
        let shown = dir.display();
        let free = fs4::available_space(dir)
            .with_context(|| format!("cannot tell the free space of {shown}"))?;
        ensure!(
            expected_bytes <= free,
            "the token ids take about {} in {shown}, which has {} free: free some, or take less \
             data",
            mebibytes(expected_bytes),
            mebibytes(free)
        );
        let file = tempfile::tempfile_in(dir)
            .with_context(|| format!("cannot make a temporary file in {shown}"))?;
        Ok(Self { file: BufWriter::with_capacity(1 << 20, file), dir: dir.to_owned() })
    }

    fn write<T: Pod>(&mut self, values: &[T]) -> Result<()> {
        let written = self.file.write_all(bytemuck::cast_slice(values));
        written.with_context(|| full(&self.dir))
    }
}

fn full(dir: &Path) -> String {
    format!("cannot write the token ids to {}: free some space there", dir.display())
}

/// The folder of temporary files: in the user's cache, since the system's own is often memory.
fn folder() -> Result<PathBuf> {
    let cache = dirs::cache_dir().map(|dir| dir.join("edge-llm").join("tokens"));
    match cache.filter(|dir| std::fs::create_dir_all(dir).is_ok()) {
        Some(dir) => Ok(dir),
        None => Ok(std::env::temp_dir()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::message;

    #[test]
    fn many_values_lie_in_a_file() {
        let made = |limit| {
            let mut writer = Writer::<u32>::new(limit);
            for first in 0..100 {
                writer.extend(&[first, first + 1, first + 2], 0.5).unwrap();
            }
            assert_eq!((writer.len(), writer.last()), (300, Some(101)));
            writer.finish().unwrap()
        };
        let (memory, file) = (made(1200), made(1199));
        assert_eq!((memory.is_mapped(), file.is_mapped()), (false, true));
        assert_eq!(memory, file);
        assert_eq!(file.clone()[297..], [99, 100, 101]);
        let none = Writer::<u32>::new(0).finish().unwrap();
        assert!(none.is_empty() && !none.is_mapped());
    }

    #[test]
    fn a_full_disk_is_told_before_it_is_full() {
        let dir = tempfile::tempdir().unwrap();
        let error = message(Spilled::new(dir.path(), u64::MAX).map(|_| ()));
        assert!(error.contains("free some") && error.contains("token ids take about"), "{error}");
        let absent = message(Spilled::new(&dir.path().join("absent"), 1).map(|_| ()));
        assert!(absent.contains("absent"), "{absent}");
    }
}
