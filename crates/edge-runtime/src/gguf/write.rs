//! Lays out a GGUF file: header, metadata, then tensors made one by one when they are written.

use std::fs::{self, File};
use std::io::{BufWriter, Write};
use std::path::Path;

use anyhow::{Result, ensure};
use gguf_rs_lib::format::header::{GGUFHeader, TensorInfo};
use gguf_rs_lib::format::metadata::{Metadata, MetadataValue};

use super::types::Type;
use crate::run_dir::sync_dir;

/// Tensors begin at multiples of this, bytes (`GGUF_DEFAULT_ALIGNMENT`).
const ALIGNMENT: u64 = 32;

/// A tensor to be written.
#[derive(Clone, Debug)]
pub struct Planned {
    /// Its name in the file.
    pub name: String,
    /// How it is stored.
    pub kind: Type,
    /// Sizes, slowest first, whole blocks a row.
    pub shape: Vec<usize>,
}

impl Planned {
    /// Bytes of its data.
    pub fn bytes(&self) -> u64 {
        let (cols, rows) = self.shape.split_last().unwrap_or((&1, &[]));
        (rows.iter().product::<usize>() * self.kind.row_bytes(*cols)) as u64
    }
}

/// Writes a file so that at any moment it is whole or not there. `fill` writes the data of a
/// tensor, by its place in `tensors`.
///
/// # Errors
/// The disk is full, a name is too long for the format, or `fill` fails.
///
/// # Panics
/// When `fill` writes another number of bytes than the tensor has.
pub fn write_atomically(
    path: &Path,
    metadata: Vec<(String, MetadataValue)>,
    tensors: &[Planned],
    fill: &mut dyn FnMut(usize, &mut dyn Write) -> Result<()>,
) -> Result<()> {
    let mut name = path.file_name().unwrap_or_default().to_owned();
    name.push(".tmp");
    let temporary = path.with_file_name(name);
    let written = write(&temporary, metadata, tensors, fill).and_then(|()| {
        fs::rename(&temporary, path)?;
        Ok(sync_dir(path.parent().unwrap_or(Path::new(".")))?)
    });
    written.map_err(|error| {
        // Nothing more can be done about a neighbour that cannot be removed either.
        let _ = fs::remove_file(&temporary);
        error.context(format!("cannot write {}", path.display()))
    })
}

fn write(
    path: &Path,
    metadata: Vec<(String, MetadataValue)>,
    tensors: &[Planned],
    fill: &mut dyn FnMut(usize, &mut dyn Write) -> Result<()>,
) -> Result<()> {
    let lib = |error: gguf_rs_lib::error::GGUFError| anyhow::anyhow!("{error}");
    let mut all = Metadata::new();
    metadata.into_iter().for_each(|(key, value)| all.insert(key, value));
    let mut file = Counted { inner: BufWriter::with_capacity(1 << 20, File::create(path)?), at: 0 };
    let header = GGUFHeader::new(tensors.len() as u64, all.len() as u64);
    header.write_to(&mut file).map_err(lib)?;
    all.write_to(&mut file).map_err(lib)?;
    let mut offset = 0;
    for tensor in tensors {
        // llama.cpp's names are shorter than 64 bytes, its terminating zero included.
        ensure!(tensor.name.len() < 64, "{} is too long for a tensor's name", tensor.name);
        let dimensions: Vec<u64> = tensor.shape.iter().rev().map(|size| *size as u64).collect();
        let info = TensorInfo {
            name: tensor.name.clone(),
            n_dimensions: dimensions.len() as u32,
            dimensions,
            tensor_type: tensor.kind.code() as u32,
            offset,
        };
        info.write_to(&mut file).map_err(lib)?;
        offset = (offset + tensor.bytes()).next_multiple_of(ALIGNMENT);
    }
    for (index, tensor) in tensors.iter().enumerate() {
        file.align()?;
        let start = file.at;
        fill(index, &mut file)?;
        assert_eq!(file.at - start, tensor.bytes(), "bytes of {}", tensor.name);
    }
    // llama.cpp wants the padding of the last one too.
    file.align()?;
    file.inner.flush()?;
    Ok(file.inner.get_ref().sync_all()?)
}

/// A file that knows where it is.
struct Counted {
    inner: BufWriter<File>,
    at: u64,
}

impl Counted {
    fn align(&mut self) -> std::io::Result<()> {
        let gap = self.at.next_multiple_of(ALIGNMENT) - self.at;
        self.write_all(&[0; ALIGNMENT as usize][..gap as usize])
    }
}

impl Write for Counted {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        let count = self.inner.write(bytes)?;
        self.at += count as u64;
        Ok(count)
    }

    fn flush(&mut self) -> std::io::Result<()> {
        self.inner.flush()
    }
}
