//! Weights of a Hugging Face folder: `model.safetensors`, or the shards that
//! `model.safetensors.index.json` lists; or those of a GGUF file, by the same names. Headers are
//! read when a file is opened, rows when they are asked for.

use std::collections::{BTreeMap, HashMap};
use std::ops::Range;
use std::path::{Component, Path, PathBuf};
use std::sync::Arc;

use anyhow::{Context, Result, bail, ensure};
use safetensors::tensor::{Dtype as FileDtype, Metadata, TensorInfo};
use serde::Deserialize;

use crate::compress::read::Compressed;
use crate::gguf::coding::Coding;
use crate::gguf::types::Type;
use crate::merge::encode;
use crate::weight_file::WeightFile;
use crate::whole_file::{self, SETTINGS};

/// Number format of a tensor in a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Dtype {
    /// IEEE single.
    F32,
    /// IEEE half.
    F16,
    /// Upper half of a single.
    BF16,
}

impl Dtype {
    /// Bytes of an element.
    pub fn bytes(self) -> usize {
        match self {
            Self::F32 => 4,
            Self::F16 | Self::BF16 => 2,
        }
    }
}

/// A tensor of a file.
#[derive(Clone, Debug)]
pub struct TensorView<'a> {
    /// Number format: the file's, or f16 for what the file has in fewer bits.
    pub dtype: Dtype,
    /// Sizes, slowest first; empty for a scalar.
    pub shape: Vec<usize>,
    file: &'a WeightFile,
    /// Its first byte in the file.
    start: u64,
    coding: Coding,
}

impl TensorView<'_> {
    /// Some rows as a tensor of their own; whole heads, where a file has rows in another order.
    ///
    /// # Panics
    /// When `rows` exceeds the tensor.
    #[must_use]
    pub fn take_rows(mut self, rows: Range<usize>) -> Self {
        self.start = self.places(&rows).start;
        if let Some(first) = self.shape.first_mut() {
            *first = rows.len();
        }
        self
    }

    /// Rows: the first size (1 for a scalar).
    pub fn rows(&self) -> usize {
        self.shape.first().copied().unwrap_or(1)
    }

    /// Elements of a row: the product of all sizes but the first.
    pub fn cols(&self) -> usize {
        self.shape.iter().skip(1).product()
    }

    /// The bytes of some rows in the file.
    fn places(&self, rows: &Range<usize>) -> Range<u64> {
        assert!(rows.start <= rows.end && rows.end <= self.rows(), "rows of the tensor");
        let stride = self.coding.kind.row_bytes(self.cols()) as u64;
        self.start + rows.start as u64 * stride..self.start + rows.end as u64 * stride
    }

    /// Whether the file has little-endian elements of `dtype`, row-major; else rows have to be
    /// converted or brought into order first.
    pub fn is_plain(&self) -> bool {
        self.coding.is_plain()
    }

    /// The bytes of some rows as the file has them; see [`TensorView::is_plain`].
    ///
    /// # Errors
    /// The file was changed since it was opened, or cannot be read.
    ///
    /// # Panics
    /// When `rows` exceeds the tensor.
    pub fn bytes(&self, rows: Range<usize>) -> Result<Vec<u8>> {
        self.file.read(self.places(&rows))
    }

    /// All elements as f32, exactly.
    ///
    /// # Errors
    /// As [`TensorView::bytes`].
    pub fn to_f32(&self) -> Result<Vec<f32>> {
        self.rows_f32(0..self.rows())
    }

    /// The elements of some rows as f32: one shard of a tensor.
    ///
    /// # Errors
    /// As [`TensorView::bytes`].
    ///
    /// # Panics
    /// When `rows` exceeds the tensor.
    pub fn rows_f32(&self, rows: Range<usize>) -> Result<Vec<f32>> {
        let stored = self.coding.stored_rows(&rows, self.rows());
        let bytes = self.bytes(stored.clone())?;
        let rows = rows.start - stored.start..rows.end - stored.start;
        Ok(self.coding.rows_f32(&bytes, self.cols(), rows))
    }

    /// Some rows in `dtype`, four bytes a word, little-endian; the last word is filled up with
    /// zero bytes.
    ///
    /// # Errors
    /// As [`TensorView::bytes`].
    ///
    /// # Panics
    /// When `rows` exceeds the tensor.
    pub fn words(&self, rows: Range<usize>) -> Result<Vec<u32>> {
        if self.is_plain() {
            let places = self.places(&rows);
            let mut words = vec![0; (places.end - places.start).div_ceil(4) as usize];
            self.file.read_words(places, &mut words)?;
            return Ok(words);
        }
        let bytes = encode(&self.rows_f32(rows)?, self.dtype);
        let (words, rest) = bytes.as_chunks::<4>();
        let mut out: Vec<u32> = words.iter().map(|word| u32::from_le_bytes(*word)).collect();
        if !rest.is_empty() {
            let mut last = [0; 4];
            last[..rest.len()].copy_from_slice(rest);
            out.push(u32::from_le_bytes(last));
        }
        Ok(out)
    }

    /// Its bytes in the file.
    pub(crate) fn byte_len(&self) -> u64 {
        let all = self.places(&(0..self.rows()));
        all.end - all.start
    }

    /// Some of them, as the file has them.
    ///
    /// # Errors
    /// As [`TensorView::bytes`].
    pub(crate) fn piece(&self, bytes: Range<u64>) -> Result<Vec<u8>> {
        self.file.read(self.start + bytes.start..self.start + bytes.end)
    }
}

/// How a file says what a tensor's numbers are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    Safetensors(FileDtype),
    Gguf(Type),
}

impl std::fmt::Display for Kind {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Safetensors(dtype) => dtype.fmt(f),
            Self::Gguf(kind) => kind.fmt(f),
        }
    }
}

/// What a file's header says of a tensor.
#[derive(Clone, Debug)]
pub(crate) struct Entry {
    pub(crate) dtype: Kind,
    pub(crate) shape: Vec<usize>,
    /// Bytes behind [`Shard::data`].
    pub(crate) data_offsets: (usize, usize),
    /// As [`Coding::interleaved`].
    pub(crate) interleaved: Option<usize>,
}

/// A file of tensors.
pub(crate) struct Shard {
    pub(crate) file: Arc<WeightFile>,
    /// Where the tensors' bytes start.
    pub(crate) data: u64,
    pub(crate) tensors: BTreeMap<String, Entry>,
    /// The strings of `__metadata__`.
    pub(crate) notes: HashMap<String, String>,
}

/// Bytes of the longest header that is read: the format's own bound.
const MOST_HEADER: u64 = 100_000_000;

impl Shard {
    /// Opens a file and reads its header; `remedy` is what helps where it is not whole.
    pub(crate) fn open(path: PathBuf, remedy: &str) -> Result<Self> {
        let file = WeightFile::open(path, remedy)?;
        let (shown, bytes) = (file.path().display(), file.bytes());
        ensure!(bytes >= 8, "{shown} is truncated ({bytes} bytes): {remedy}");
        let damaged = |cause: &dyn std::fmt::Display| {
            anyhow::anyhow!("{shown} is no whole safetensors file ({cause}): {remedy}")
        };
        let mut length = [0; 8];
        file.read_into(0, &mut length)?;
        let length = u64::from_le_bytes(length);
        if length > MOST_HEADER.min(bytes - 8) {
            return Err(damaged(&"its header is longer than the file or than 100 MB"));
        }
        let header = file.read(8..8 + length)?;
        // Checks sizes, and that the tensors lie behind each other without gaps.
        let metadata: Metadata =
            serde_json::from_slice(&header).map_err(|error| damaged(&error))?;
        if metadata.data_len() as u64 != bytes - 8 - length {
            return Err(damaged(&"its header describes more or fewer bytes than there are"));
        }
        let entry = |info: &TensorInfo| Entry {
            dtype: Kind::Safetensors(info.dtype),
            shape: info.shape.clone(),
            data_offsets: info.data_offsets,
            interleaved: None,
        };
        let tensors = metadata.tensors().into_iter().map(|(name, info)| (name, entry(info)));
        let tensors = tensors.collect();
        let notes = metadata.metadata().clone().unwrap_or_default();
        Ok(Self { file: Arc::new(file), data: 8 + length, tensors, notes })
    }

    pub(crate) fn path(&self) -> &Path {
        self.file.path()
    }

    /// Reads bytes behind [`Shard::data`].
    pub(crate) fn read(&self, (start, end): (usize, usize)) -> Result<Vec<u8>> {
        self.file.read(self.data + start as u64..self.data + end as u64)
    }

    fn tensor(&self, name: &str) -> Option<Result<TensorView<'_>>> {
        let info = self.tensors.get(name)?;
        let kind = match info.dtype {
            Kind::Gguf(kind) => kind,
            Kind::Safetensors(FileDtype::F32) => Type::Plain(Dtype::F32),
            Kind::Safetensors(FileDtype::F16) => Type::Plain(Dtype::F16),
            Kind::Safetensors(FileDtype::BF16) => Type::Plain(Dtype::BF16),
            other => {
                return Some(Err(anyhow::anyhow!(
                    "tensor {name} in {} is {other}, and supported are F32, F16 and BF16: use \
                     an unquantised checkpoint",
                    self.path().display()
                )));
            }
        };
        let (file, start) = (&*self.file, self.data + info.data_offsets.0 as u64);
        let coding = Coding { kind, interleaved: info.interleaved };
        Some(Ok(TensorView { dtype: kind.dtype(), shape: info.shape.clone(), file, start, coding }))
    }
}

/// The part of `model.safetensors.index.json` that is needed.
#[derive(Deserialize)]
struct Index {
    weight_map: BTreeMap<String, String>,
}

/// What helps where a downloaded file is not whole.
const DOWNLOAD: &str = "download it again";

/// An open set of weights.
pub struct Checkpoint {
    pub(crate) shards: Vec<Shard>,
    /// Tensor name to shard.
    places: BTreeMap<String, usize>,
    /// What is known of it, where it is compressed.
    pub(crate) compressed: Option<Compressed>,
}

impl std::fmt::Debug for Checkpoint {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let paths: Vec<_> = self.shards.iter().map(Shard::path).collect();
        f.debug_struct("Checkpoint").field("files", &paths).finish_non_exhaustive()
    }
}

impl Checkpoint {
    /// Opens the weights in a model folder.
    ///
    /// # Errors
    /// A file is absent, truncated or damaged, or the index names a file outside the folder or a
    /// tensor that its shard lacks.
    pub fn open(dir: &Path) -> Result<Self> {
        let single = dir.join("model.safetensors");
        let index = dir.join("model.safetensors.index.json");
        if single.exists() {
            return Self::open_file(&single);
        }
        ensure!(
            index.exists(),
            "{} has neither model.safetensors nor model.safetensors.index.json: give --model a \
             Hugging Face folder with safetensors weights",
            dir.display()
        );
        Self::open_sharded(dir, &index)
    }

    /// Opens one safetensors file.
    ///
    /// # Errors
    /// It is absent, truncated or damaged.
    pub fn open_file(path: &Path) -> Result<Self> {
        Ok(Self::from_shard(Shard::open(path.to_owned(), DOWNLOAD)?))
    }

    /// All tensors of one file.
    pub(crate) fn from_shard(shard: Shard) -> Self {
        let places = shard.tensors.keys().map(|name| (name.clone(), 0)).collect();
        Self { shards: vec![shard], places, compressed: None }
    }

    fn open_sharded(dir: &Path, index_path: &Path) -> Result<Self> {
        let shown = index_path.display();
        let text = whole_file::text(index_path, SETTINGS)
            .with_context(|| format!("cannot read {shown}: check its permissions"))?;
        let index: Index = serde_json::from_str(&text)
            .with_context(|| format!("{shown} is no safetensors index: download it again"))?;
        ensure!(!index.weight_map.is_empty(), "{shown} lists no tensor: download it again");
        let mut shards: Vec<Shard> = Vec::new();
        let mut opened = BTreeMap::new();
        let mut places = BTreeMap::new();
        for (name, file) in index.weight_map {
            let mut parts = Path::new(&file).components();
            let plain =
                matches!(parts.next(), Some(Component::Normal(_))) && parts.next().is_none();
            ensure!(
                plain && !file.contains('\\'),
                "{shown} places tensor {name} in {file:?}, which is no file of this folder: \
                 download it again"
            );
            let place = match opened.get(&file) {
                Some(place) => *place,
                None => {
                    shards.push(Shard::open(dir.join(&file), DOWNLOAD)?);
                    opened.insert(file.clone(), shards.len() - 1);
                    shards.len() - 1
                }
            };
            ensure!(
                shards[place].tensors.contains_key(&name),
                "{shown} places tensor {name} in {file}, which lacks it: download both again"
            );
            places.insert(name, place);
        }
        Ok(Self { shards, places, compressed: None })
    }

    /// Names of all tensors, sorted.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.places.keys().map(String::as_str)
    }

    /// Whether there is such a tensor.
    pub fn contains(&self, name: &str) -> bool {
        self.places.contains_key(name)
    }

    /// A tensor.
    ///
    /// # Errors
    /// There is none of that name, or its dtype is none of [`Dtype`].
    pub fn tensor(&self, name: &str) -> Result<TensorView<'_>> {
        let found = self.places.get(name).and_then(|place| self.shards[*place].tensor(name));
        found.unwrap_or_else(|| {
            bail!(
                "tensor {name} is missing in {}: the files do not fit config.json, download the \
                 model again",
                self.location()
            )
        })
    }

    /// A tensor that must have this shape.
    ///
    /// # Errors
    /// As [`Checkpoint::tensor`]; or the shape differs, and then the message says from which
    /// value of `config.json`.
    pub fn expect(&self, name: &str, shape: &[usize]) -> Result<TensorView<'_>> {
        let tensor = self.tensor(name)?;
        if tensor.shape == shape {
            return Ok(tensor);
        }
        let keys = shape_keys(name);
        let differing: Vec<&str> = (0..keys.len())
            .filter(|axis| tensor.shape.get(*axis) != shape.get(*axis))
            .map(|axis| keys[axis])
            .collect();
        let shard = &self.shards[self.places[name]];
        let said = match shard.tensors[name].dtype {
            Kind::Gguf(_) => "of its metadata",
            Kind::Safetensors(_) => "in config.json",
        };
        let cause = match differing.as_slice() {
            [] => "the expected shape".to_owned(),
            keys => format!("{} {said}", keys.join(" and ")),
        };
        let path = shard.path().display();
        bail!(
            "tensor {name} in {path} has shape {:?} instead of {shape:?}, which contradicts \
             {cause}: use files of the same model",
            tensor.shape
        )
    }

    /// Where the bytes of a tensor are: the file, and the first byte there.
    ///
    /// # Errors
    /// There is none of that name.
    pub(crate) fn place(&self, name: &str) -> Result<(Arc<WeightFile>, u64)> {
        let found = self.places.get(name).map(|place| &self.shards[*place]);
        let found = found.and_then(|shard| Some((shard, shard.tensors.get(name)?)));
        let (shard, info) = found.with_context(|| {
            format!("tensor {name} is missing in {}: download the model again", self.location())
        })?;
        Ok((Arc::clone(&shard.file), shard.data + info.data_offsets.0 as u64))
    }

    fn location(&self) -> String {
        match self.shards.as_slice() {
            [only] => only.path().display().to_string(),
            shards => {
                let dir = shards.first().and_then(|shard| shard.path().parent());
                let dir = dir.map(|dir| dir.display().to_string()).unwrap_or_default();
                format!("the {} shards in {dir}", shards.len())
            }
        }
    }
}

/// Which values of `config.json` a tensor's sizes come from, by the end of its name.
fn shape_keys(name: &str) -> &'static [&'static str] {
    const QUERY: &str = "num_attention_heads * head_dim";
    const KEY_VALUE: &str = "num_key_value_heads * head_dim";
    let stem = name.rsplit_once('.').map_or(name, |(stem, _)| stem);
    if name.ends_with(".bias") {
        let of_queries = stem.ends_with("q_proj");
        return if of_queries { &[QUERY] } else { &[KEY_VALUE] };
    }
    match stem.rsplit('.').next().unwrap_or(stem) {
        "embed_tokens" | "lm_head" => &["vocab_size", "hidden_size"],
        "q_proj" => &[QUERY, "hidden_size"],
        "k_proj" | "v_proj" => &[KEY_VALUE, "hidden_size"],
        "qkv_proj" => {
            &["(num_attention_heads + 2 * num_key_value_heads) * head_dim", "hidden_size"]
        }
        "o_proj" => &["hidden_size", QUERY],
        "gate_up_proj" => &["2 * intermediate_size", "hidden_size"],
        "gate_proj" | "up_proj" => &["intermediate_size", "hidden_size"],
        "down_proj" => &["hidden_size", "intermediate_size"],
        "q_norm" | "k_norm" => &["head_dim"],
        stem if stem == "norm" || stem.ends_with("layernorm") => &["hidden_size"],
        _ => &[],
    }
}

#[cfg(test)]
#[path = "checkpoint_tests.rs"]
mod tests;
