//! Models and adapters in llama.cpp's GGUF files, read and written.
//!
//! The header is read and written by gguf-rs-lib, which is kept up, has few dependencies and holds
//! hostile lengths, counts, offsets and overlaps within bounds; it does not dequantise, and the
//! crates that do (candle-core, ggml's bindings) bring a tensor library or a C++ build along, so
//! [`dequant`] and [`quant`] are written here.
//!
//! A file is taken as the model folder that it was made of: [`config`] makes `config.json` of its
//! metadata and [`tokenizer`] makes `tokenizer.json`, so that everything behind them is the same
//! code for both; [`names`] says which tensor is which, and `coding` what has to be done to its
//! rows. [`vocab`] is the way back, [`mod@write`] lays out files, [`export`] makes them of a model.

use std::fs::File;
use std::io::BufReader;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::{Context, Result, bail, ensure};
use gguf_rs_lib::error::GGUFError;
use gguf_rs_lib::format::metadata::{Metadata, MetadataValue};
use gguf_rs_lib::reader::GGUFFileReader;
use serde_json::Value;

pub(crate) mod coding;
pub mod config;
pub mod dequant;
pub mod export;
pub mod families;
pub mod folder;
pub mod names;
pub mod pre;
pub mod quant;
pub mod rope;
pub mod tokenizer;
pub mod types;
pub mod vocab;
pub mod write;

use self::families::Family;
use self::types::{NAMES, Type};
use crate::checkpoint::{Checkpoint, Entry, Kind, Shard};
use crate::config::ModelConfig;
use crate::weight_file::WeightFile;

/// A tensor of a file, by its own name.
#[derive(Clone, Debug)]
pub struct Stored {
    /// As in the file.
    pub name: String,
    /// How its rows are stored.
    pub kind: Type,
    /// Sizes, slowest first: the file has them the other way round.
    pub shape: Vec<usize>,
    /// Its bytes in the file.
    pub bytes: Range<usize>,
}

/// An open file, its header checked.
pub struct Gguf {
    /// Where it is.
    pub path: PathBuf,
    file: WeightFile,
    /// What it says of itself.
    pub metadata: Metadata,
    /// All tensors.
    pub tensors: Vec<Stored>,
}

/// The GGUF file that a path stands for: itself, or the only one of a folder without `config.json`.
///
/// # Errors
/// The folder has several of them and nothing that says which.
pub fn locate(path: &Path) -> Result<Option<PathBuf>> {
    let named = |path: &Path| path.extension().is_some_and(|end| end.eq_ignore_ascii_case("gguf"));
    if path.is_file() {
        return Ok(Some(path.to_path_buf()).filter(|path| named(path) || has_magic(path)));
    }
    if path.join("config.json").exists() {
        return Ok(None);
    }
    let files = std::fs::read_dir(path).into_iter().flatten().flatten().map(|file| file.path());
    let mut found: Vec<PathBuf> = files.filter(|path| named(path)).collect();
    ensure!(
        found.len() < 2,
        "{} has {} GGUF files: give --model one of them",
        path.display(),
        found.len()
    );
    Ok(found.pop())
}

fn has_magic(path: &Path) -> bool {
    use std::io::Read;
    let mut magic = [0; 4];
    File::open(path).is_ok_and(|mut file| file.read_exact(&mut magic).is_ok()) && &magic == b"GGUF"
}

impl Gguf {
    /// Opens a file and reads its header.
    ///
    /// # Errors
    /// It is absent, cut off, damaged, of another version, a part of a model, or has a tensor of a
    /// type that is not computed here.
    pub fn open(path: &Path) -> Result<Self> {
        let shown = path.display();
        let file = WeightFile::open(path.to_path_buf(), "download it again")?;
        ensure!(
            file.bytes() >= 4,
            "{shown} is no whole GGUF file (it is cut off): download it again"
        );
        let reader = GGUFFileReader::new(BufReader::new(file.file())).map_err(|error| {
            let cause = describe(&error);
            anyhow::anyhow!("{shown} is no whole GGUF file ({cause}): download it again")
        })?;
        let first = reader.tensor_data_offset();
        let mut tensors = Vec::with_capacity(reader.tensor_infos().len());
        for info in reader.tensor_infos() {
            let (name, code) = (info.name(), info.tensor_type());
            let kind = Type::of(code).with_context(|| {
                format!(
                    "tensor {name} in {shown} is {}, and supported are {NAMES}: use a file in one \
                     of these",
                    code.name()
                )
            })?;
            let mut shape = Vec::with_capacity(info.shape().ndim());
            for size in info.shape().dims() {
                shape.push(usize::try_from(*size).context("a size above the address space")?);
            }
            shape.reverse();
            // One that is no matrix would be blocks across rows of one element.
            let blocks = !matches!(kind, Type::Plain(_)) && shape.len() != 2;
            ensure!(
                !blocks && shape.iter().all(|size| *size > 0),
                "tensor {name} in {shown} is {kind} of shape {shape:?}, which no model has: \
                 convert the model again"
            );
            let start = first + info.data_offset();
            let end = start + info.expected_data_size();
            ensure!(end <= file.bytes(), "{shown} ends within tensor {name}: download it again");
            let bytes = start as usize..end as usize;
            tensors.push(Stored { name: name.to_owned(), kind, shape, bytes });
        }
        let metadata = reader.metadata().clone();
        let gguf = Self { path: path.to_path_buf(), file, metadata, tensors };
        let parts = gguf.number("split.count")?.unwrap_or(1);
        ensure!(
            parts <= 1,
            "{shown} is one of {parts} parts: join them with llama-gguf-split --merge"
        );
        Ok(gguf)
    }

    /// A whole number, at least 0.
    ///
    /// # Errors
    /// There is something else under this key.
    pub fn number(&self, key: &str) -> Result<Option<u64>> {
        let Some(value) = self.metadata.get(key) else { return Ok(None) };
        let signed = value.as_i64().and_then(|number| u64::try_from(number).ok());
        let number = value.as_u64().or(signed);
        Ok(Some(number.with_context(|| self.wrong(key, "a whole number"))?))
    }

    /// A real number; the shortest decimal of an f32, as a person would have written it.
    ///
    /// # Errors
    /// As [`Gguf::number`].
    pub fn real(&self, key: &str) -> Result<Option<f64>> {
        let Some(value) = self.metadata.get(key) else { return Ok(None) };
        let number = match value {
            MetadataValue::F32(single) => single.to_string().parse().ok(),
            other => other.as_f64(),
        };
        let number = number.filter(|number: &f64| number.is_finite());
        Ok(Some(number.with_context(|| self.wrong(key, "a number"))?))
    }

    /// A text.
    ///
    /// # Errors
    /// As [`Gguf::number`].
    pub fn text(&self, key: &str) -> Result<Option<&str>> {
        let Some(value) = self.metadata.get(key) else { return Ok(None) };
        Ok(Some(value.as_str().with_context(|| self.wrong(key, "a text"))?))
    }

    /// Yes or no.
    ///
    /// # Errors
    /// As [`Gguf::number`].
    pub fn flag(&self, key: &str) -> Result<Option<bool>> {
        let Some(value) = self.metadata.get(key) else { return Ok(None) };
        Ok(Some(value.as_bool().with_context(|| self.wrong(key, "true or false"))?))
    }

    /// A list.
    ///
    /// # Errors
    /// As [`Gguf::number`].
    pub fn list(&self, key: &str) -> Result<Option<&[MetadataValue]>> {
        match self.metadata.get(key) {
            None => Ok(None),
            Some(MetadataValue::Array(array)) => Ok(Some(&array.values)),
            Some(_) => bail!(self.wrong(key, "a list")),
        }
    }

    fn wrong(&self, key: &str, wanted: &str) -> String {
        format!("{key} in {} is not {wanted}: convert the model again", self.path.display())
    }

    /// A tensor by its name in the file.
    pub fn stored(&self, name: &str) -> Option<&Stored> {
        self.tensors.iter().find(|tensor| tensor.name == name)
    }

    /// All values of a tensor.
    ///
    /// # Errors
    /// The file was changed since it was opened, or cannot be read.
    pub(crate) fn values(&self, tensor: &Stored) -> Result<Vec<f32>> {
        let mut out = vec![0.0; tensor.shape.iter().product()];
        let bytes = self.file.read(tensor.bytes.start as u64..tensor.bytes.end as u64)?;
        dequant::dequantize(tensor.kind, &bytes, &mut out);
        Ok(out)
    }

    /// Bytes of everything that comes before the tensors.
    ///
    /// # Errors
    /// As [`Gguf::values`].
    pub(crate) fn header(&self) -> Result<Vec<u8>> {
        let end = self.tensors.iter().map(|tensor| tensor.bytes.start as u64).min();
        self.file.read(0..end.unwrap_or(self.file.bytes()))
    }

    /// Its family.
    ///
    /// # Errors
    /// It is an adapter, or of a family that is not read from GGUF.
    pub fn family(&self) -> Result<&'static Family> {
        let shown = self.path.display();
        let kind = self.text("general.type")?.unwrap_or("model");
        ensure!(kind == "model", "{shown} is of type {kind}: give --model a file with a model");
        let name = self.text("general.architecture")?.with_context(|| {
            format!("{shown} has no general.architecture: convert the model again")
        })?;
        Family::of_gguf(name).with_context(|| {
            let known: Vec<&str> = families::FAMILIES.iter().map(|family| family.gguf).collect();
            format!(
                "general.architecture of {shown} is {name}, whose tensors are not mapped here \
                 (those of {} are): give --model the model's Hugging Face folder",
                known.join(", ")
            )
        })
    }

    /// The model folder that this file stands for: `config.json`, as a value and interpreted.
    ///
    /// # Errors
    /// The metadata are not those of a model that is computed here.
    pub fn config(&self) -> Result<(Value, ModelConfig)> {
        let value = config::config_json(self, self.family()?)?;
        let config = ModelConfig::from_value(&value, &self.path)?;
        Ok((value, config))
    }

    /// The tensors, by the names that they have in a Hugging Face folder.
    ///
    /// # Errors
    /// A tensor is none that this family has, so that leaving it out would be wrong.
    pub fn into_checkpoint(self, config: &ModelConfig) -> Result<Checkpoint> {
        let family = self.family()?;
        let mut tensors = std::collections::BTreeMap::new();
        for stored in &self.tensors {
            if names::CONSTANTS.contains(&stored.name.as_str()) {
                continue;
            }
            let name = names::from_gguf(family, &stored.name).with_context(|| {
                format!(
                    "tensor {} in {} belongs to no {} model that is computed here: use the \
                     model's Hugging Face folder",
                    stored.name,
                    self.path.display(),
                    family.gguf
                )
            })?;
            let interleaved = names::is_interleaved(family, &name).then_some(config.head_dim);
            ensure!(
                interleaved.is_none_or(|width| stored.shape[0].is_multiple_of(width)),
                "tensor {} in {} has {} rows, which are no heads of {}: convert the model again",
                stored.name,
                self.path.display(),
                stored.shape[0],
                config.head_dim
            );
            let entry = Entry {
                dtype: Kind::Gguf(stored.kind),
                shape: stored.shape.clone(),
                data_offsets: (stored.bytes.start, stored.bytes.end),
                interleaved,
            };
            tensors.insert(name, entry);
        }
        let notes = std::collections::HashMap::new();
        let shard = Shard { file: Arc::new(self.file), data: 0, tensors, notes };
        Ok(Checkpoint::from_shard(shard))
    }
}

fn describe(error: &GGUFError) -> String {
    match error {
        GGUFError::UnsupportedVersion(version) if version.swap_bytes() < 16 => {
            "it is big-endian".to_owned()
        }
        GGUFError::UnsupportedVersion(version) => {
            format!("it is of version {version}, and read is 3")
        }
        GGUFError::UnexpectedEof => "it is cut off".to_owned(),
        GGUFError::Io(error) if error.kind() == std::io::ErrorKind::UnexpectedEof => {
            "it is cut off".to_owned()
        }
        other => other.to_string(),
    }
}

#[cfg(test)]
mod tests;
