//! Values and moments of what is trained, bit for bit: the arenas of each window's group as they
//! lie on the device.

use std::borrow::Cow;
use std::cell::RefCell;
use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use edge_gpu::Slice;
use safetensors::View;
use safetensors::tensor::{Dtype, Metadata};

use super::super::trainer::Trainer;
use crate::model::Model;
use crate::run_dir::write_tensors_atomically;

/// An arena of a group, by the name that it has in the file.
struct Part {
    name: String,
    window: usize,
    slice: Slice,
}

/// What a checkpoint keeps of a model that is trained: the values of all windows, and moments: with
/// windows in phases, which share them, those of the window that is trained.
fn parts(model: &Model, window: usize) -> Vec<Part> {
    let mut parts = Vec::new();
    for (index, group) in model.groups.iter().enumerate() {
        let mut add = |what: &str, arenas: &[Slice]| {
            parts.extend(arenas.iter().enumerate().map(|(arena, slice)| Part {
                name: format!("window.{index}.{what}.{arena}"),
                window: index,
                slice: slice.clone(),
            }));
        };
        add("values", &group.values);
        if !model.job.phases || index == window {
            add("m", &group.m);
            add("v", &group.v);
            add("largest", &group.largest);
        }
    }
    parts
}

/// Bytes of a checkpoint's tensors.
pub(in super::super) fn bytes(model: &Model) -> u64 {
    // Windows in phases share their moments: the largest window's are the most.
    let windows = 0..model.groups.len();
    let of = |window| parts(model, window).iter().map(|part| 4 * part.slice.words()).sum();
    windows.map(of).max().unwrap_or(0)
}

/// A part that is read when it is written.
struct Written<'a> {
    model: &'a Model,
    part: Part,
    shape: [usize; 1],
    failed: &'a RefCell<Option<anyhow::Error>>,
}

impl View for Written<'_> {
    fn dtype(&self) -> Dtype {
        // Words: moments in 8 bits are no f32.
        Dtype::U32
    }

    fn shape(&self) -> &[usize] {
        &self.shape
    }

    fn data(&self) -> Cow<'_, [u8]> {
        let read = self.model.bring(self.part.window).and_then(|()| {
            let words = self.model.device.read(&self.part.slice)?;
            Ok(bytemuck::cast_slice(&words).to_vec())
        });
        Cow::Owned(read.unwrap_or_else(|error| {
            self.failed.borrow_mut().get_or_insert(error);
            vec![0; self.data_len()]
        }))
    }

    fn data_len(&self) -> usize {
        4 * self.shape[0]
    }
}

/// Writes values and moments into a checkpoint's folder; `window` was trained last.
///
/// # Errors
/// The device fails, or the disk is full.
pub(in super::super) fn save(dir: &Path, model: &Model, window: usize) -> Result<()> {
    let failed = RefCell::new(None);
    let written = |part: Part| {
        let shape = [part.slice.words() as usize];
        (part.name.clone(), Written { model, part, shape, failed: &failed })
    };
    let tensors = parts(model, window).into_iter().map(written).collect();
    let check = || failed.borrow_mut().take().map_or(Ok(()), Err);
    write_tensors_atomically(&dir.join(super::TENSORS), tensors, check)
}

/// Puts a checkpoint's values and moments into a model; `window` was trained last.
///
/// # Errors
/// The file lacks a tensor or has it in another size, or the device fails.
pub(in super::super) fn restore(path: &Path, trainer: &mut Trainer, window: usize) -> Result<()> {
    let shown = path.display();
    let mut file = Tensors::open(path)?;
    let model = &trainer.model;
    for part in parts(model, window) {
        let name = &part.name;
        let words = file
            .read(name)?
            .with_context(|| format!("tensor {name} is missing in {shown}: start again"))?;
        ensure!(
            words.len() as u64 == part.slice.words(),
            "tensor {name} in {shown} has {} words and the run on {} has {}: resume on the \
             device that the run began on",
            words.len(),
            model.device.info().name,
            part.slice.words()
        );
        model.bring(part.window)?;
        model.device.write(&part.slice, &words)?;
        if name.contains(".values.") {
            model.adapters_changed();
        }
    }
    Ok(())
}

/// A file whose tensors are read one at a time: with method `full` it is three times the model.
struct Tensors {
    file: File,
    path: PathBuf,
    /// First byte behind the header.
    first: u64,
    metadata: Metadata,
}

impl Tensors {
    fn open(path: &Path) -> Result<Self> {
        let shown = path.display();
        let mut file = File::open(path).with_context(|| format!("cannot read {shown}"))?;
        let mut header = vec![0; 8];
        let len = file.metadata().map_or(0, |metadata| metadata.len());
        let read = file.read_exact(&mut header);
        read.with_context(|| format!("{shown} ends in its header: resume from another"))?;
        let words = header.as_chunks::<8>().0[0];
        let bytes = u64::from_le_bytes(words).min(len);
        let taken = (&mut file).take(bytes).read_to_end(&mut header);
        taken.with_context(|| format!("cannot read {shown}"))?;
        let metadata = serde_json::from_slice(&header[8..])
            .with_context(|| format!("{shown} is no safetensors file: resume from another"))?;
        Ok(Self { file, path: path.to_owned(), first: header.len() as u64, metadata })
    }

    /// The words of a tensor; `None` where there is none of this name.
    fn read(&mut self, name: &str) -> Result<Option<Vec<u32>>> {
        let Some(info) = self.metadata.info(name) else { return Ok(None) };
        let (from, to) = info.data_offsets;
        let mut bytes = Vec::new();
        let mut read = || -> std::io::Result<()> {
            self.file.seek(SeekFrom::Start(self.first + from as u64))?;
            (&mut self.file).take((to - from) as u64).read_to_end(&mut bytes)?;
            Ok(())
        };
        read().with_context(|| format!("cannot read {}", self.path.display()))?;
        let words = bytes.as_chunks::<4>().0.iter().map(|bytes| u32::from_le_bytes(*bytes));
        Ok(Some(words.collect()))
    }
}
