//! Packed matrices of all candidates of a model, in a temporary file without a name: they are
//! made once, and measured in many combinations.

use std::collections::HashMap;
use std::fs::File;
use std::io::{Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use edge_kernels::Format;
use edge_kernels::pack::PackedHost;
use edge_scheduler::Projection;

/// Where a matrix lies in the file.
#[derive(Clone, Copy, Debug)]
struct Place {
    offset: u64,
    rows: u32,
    cols: u32,
    /// Words of values, and of scales.
    words: [usize; 2],
}

/// Matrices by block, projection and format.
#[derive(Debug)]
pub struct PackStore {
    file: File,
    dir: PathBuf,
    places: HashMap<(u32, Projection, Format), Place>,
    end: u64,
}

impl PackStore {
    /// An empty store with a file in `dir`.
    ///
    /// # Errors
    /// The file cannot be made.
    pub fn new(dir: &Path) -> Result<Self> {
        let file = tempfile::tempfile_in(dir).with_context(|| {
            format!("cannot make a temporary file in {}: give --out another path", dir.display())
        })?;
        Ok(Self { file, dir: dir.to_owned(), places: HashMap::new(), end: 0 })
    }

    /// Adds a matrix, in place of an earlier one.
    ///
    /// # Errors
    /// The disk is full.
    pub fn put(&mut self, block: u32, projection: Projection, matrix: &PackedHost) -> Result<()> {
        let (offset, words) = (self.end, [matrix.values.len(), matrix.scales.len()]);
        let mut write = || {
            self.file.seek(SeekFrom::Start(offset))?;
            self.file.write_all(bytemuck::cast_slice(&matrix.values))?;
            self.file.write_all(bytemuck::cast_slice(&matrix.scales))
        };
        write().with_context(|| {
            format!("cannot write compressed candidates in {}: free space", self.dir.display())
        })?;
        self.end += 4 * (words[0] + words[1]) as u64;
        let place = Place { offset, rows: matrix.rows, cols: matrix.cols, words };
        self.places.insert((block, projection, matrix.format), place);
        Ok(())
    }

    /// A matrix, if it was added.
    ///
    /// # Errors
    /// The file cannot be read.
    pub fn get(
        &mut self,
        block: u32,
        projection: Projection,
        format: Format,
    ) -> Result<Option<PackedHost>> {
        let Some(place) = self.places.get(&(block, projection, format)) else { return Ok(None) };
        let [mut values, mut scales] = place.words.map(|words| vec![0u32; words]);
        let mut read = || {
            self.file.seek(SeekFrom::Start(place.offset))?;
            self.file.read_exact(bytemuck::cast_slice_mut(&mut values))?;
            self.file.read_exact(bytemuck::cast_slice_mut(&mut scales))
        };
        read().with_context(|| format!("cannot read back from {}", self.dir.display()))?;
        Ok(Some(PackedHost { format, rows: place.rows, cols: place.cols, values, scales }))
    }
}

#[cfg(test)]
mod tests {
    use edge_kernels::pack::pack;

    use super::*;

    #[test]
    fn matrices_come_back_as_they_were() {
        let dir = tempfile::tempdir().expect("a folder");
        let mut store = PackStore::new(dir.path()).expect("a store");
        let data: Vec<f32> = (0..7 * 33).map(|i| (i as f32).sin()).collect();
        let formats = [Format::Q4, Format::Bf16, Format::two_four(3)];
        let of = |format, sign: f32| {
            let data: Vec<f32> = data.iter().map(|x| sign * x).collect();
            pack(format, 7, 33, &data)
        };
        for format in formats {
            store.put(2, Projection::Up, &of(format, 1.0)).expect("written");
            store.put(3, Projection::Up, &of(format, -1.0)).expect("written");
        }
        for format in formats {
            let mut get = |block| store.get(block, Projection::Up, format).expect("read");
            assert_eq!(get(2), Some(of(format, 1.0)));
            assert_eq!(get(3), Some(of(format, -1.0)));
            assert_eq!(get(4), None);
        }
        store.put(2, Projection::Up, &of(Format::Q4, 2.0)).expect("written");
        let got = store.get(2, Projection::Up, Format::Q4).expect("read");
        assert_eq!(got, Some(of(Format::Q4, 2.0)));
        assert_eq!(store.get(2, Projection::Down, Format::Q4).expect("read"), None);
        assert_eq!(std::fs::read_dir(dir.path()).expect("a folder").count(), 0);
    }
}
