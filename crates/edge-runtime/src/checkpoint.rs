//! Weights of a Hugging Face folder, memory-mapped: `model.safetensors`, or the shards that
//! `model.safetensors.index.json` lists; or those of a GGUF file, by the same names.

use std::collections::{BTreeMap, HashMap};
use std::fs::File;
use std::ops::Range;
use std::path::{Component, Path, PathBuf};

use anyhow::{Context, Result, bail, ensure};
use memmap2::Mmap;
use safetensors::SafeTensors;
use safetensors::tensor::{Dtype as FileDtype, SafeTensorError};
use serde::Deserialize;

use crate::compress::read::Compressed;
use crate::gguf::coding::Coding;
use crate::gguf::types::Type;
use crate::merge::encode;

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

/// A tensor whose bytes lie in the memory map.
#[derive(Clone, Debug)]
pub struct TensorView<'a> {
    /// Number format: the file's, or f16 for what the file has in fewer bits.
    pub dtype: Dtype,
    /// Sizes, slowest first; empty for a scalar.
    pub shape: Vec<usize>,
    /// What the file has, not necessarily aligned: see [`TensorView::plain`].
    pub bytes: &'a [u8],
    pub(crate) coding: Coding,
}

impl<'a> TensorView<'a> {
    /// Some rows as a tensor of their own; whole heads, where a file has rows in another order.
    ///
    /// # Panics
    /// When `rows` exceeds the tensor.
    #[must_use]
    pub fn take_rows(mut self, rows: Range<usize>) -> Self {
        let stride = self.coding.kind.row_bytes(self.cols());
        self.bytes = &self.bytes[rows.start * stride..rows.end * stride];
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

    /// The bytes, if they are little-endian elements of `dtype`, row-major; `None` where rows have
    /// to be converted or brought into order first.
    pub fn plain(&self) -> Option<&'a [u8]> {
        self.coding.is_plain().then_some(self.bytes)
    }

    /// All elements as f32, exactly.
    pub fn to_f32(&self) -> Vec<f32> {
        self.rows_f32(0..self.rows())
    }

    /// The elements of some rows as f32: one shard of a tensor.
    ///
    /// # Panics
    /// When `rows` exceeds the tensor.
    pub fn rows_f32(&self, rows: Range<usize>) -> Vec<f32> {
        self.coding.rows_f32(self.bytes, self.cols(), rows)
    }

    /// Some rows in `dtype`, four bytes a word, little-endian; the last word is filled up with
    /// zero bytes.
    ///
    /// # Panics
    /// When `rows` exceeds the tensor.
    pub fn words(&self, rows: Range<usize>) -> Vec<u32> {
        let stride = self.cols() * self.dtype.bytes();
        let converted;
        let bytes = match self.plain() {
            Some(bytes) => &bytes[rows.start * stride..rows.end * stride],
            None => {
                converted = encode(&self.rows_f32(rows), self.dtype);
                &converted
            }
        };
        let (words, rest) = bytes.as_chunks::<4>();
        let mut out: Vec<u32> = words.iter().map(|word| u32::from_le_bytes(*word)).collect();
        if !rest.is_empty() {
            let mut last = [0; 4];
            last[..rest.len()].copy_from_slice(rest);
            out.push(u32::from_le_bytes(last));
        }
        out
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

/// A file of tensors, mapped.
pub(crate) struct Shard {
    pub(crate) path: PathBuf,
    pub(crate) map: Mmap,
    /// Where the tensors' bytes start.
    pub(crate) data: usize,
    pub(crate) tensors: BTreeMap<String, Entry>,
    /// The strings of `__metadata__`.
    pub(crate) notes: HashMap<String, String>,
}

impl Shard {
    /// Maps a file; `remedy` is what helps where it is not whole.
    pub(crate) fn open(path: PathBuf, remedy: &str) -> Result<Self> {
        let shown = path.display().to_string();
        let file = File::open(&path)
            .with_context(|| format!("cannot open {shown}: check its permissions, or {remedy}"))?;
        let bytes = file.metadata().with_context(|| format!("cannot read {shown}"))?.len();
        ensure!(bytes >= 8, "{shown} is truncated ({bytes} bytes): {remedy}");
        // SAFETY: the map is only read. Its contents change under us if another process writes
        // the file meanwhile, which would be a wrong weight, never a wrong length or index: all
        // offsets come from the header copied out below and are checked against the map's length.
        // Truncation meanwhile ends the process (SIGBUS), which no reader of maps can avoid.
        let map = unsafe { Mmap::map(&file) }.with_context(|| format!("cannot map {shown}"))?;
        let (header, metadata) = SafeTensors::read_metadata(&map).map_err(|error| {
            let cause = describe(&error);
            anyhow::anyhow!("{shown} is no whole safetensors file ({cause}): {remedy}")
        })?;
        let entry = |info: &safetensors::tensor::TensorInfo| Entry {
            dtype: Kind::Safetensors(info.dtype),
            shape: info.shape.clone(),
            data_offsets: info.data_offsets,
            interleaved: None,
        };
        let tensors = metadata.tensors().into_iter().map(|(name, info)| (name, entry(info)));
        let tensors = tensors.collect();
        let notes = metadata.metadata().clone().unwrap_or_default();
        Ok(Self { path, map, data: 8 + header, tensors, notes })
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
                    self.path.display()
                )));
            }
        };
        let (start, end) = info.data_offsets;
        let bytes = &self.map[self.data + start..self.data + end];
        let coding = Coding { kind, interleaved: info.interleaved };
        Some(Ok(TensorView { dtype: kind.dtype(), shape: info.shape.clone(), bytes, coding }))
    }
}

fn describe(error: &SafeTensorError) -> String {
    match error {
        SafeTensorError::InvalidHeaderLength => "its header is longer than the file".to_owned(),
        SafeTensorError::MetadataIncompleteBuffer => {
            "its header describes more or fewer bytes than there are".to_owned()
        }
        other => other.to_string(),
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
        let paths: Vec<_> = self.shards.iter().map(|shard| &shard.path).collect();
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
        let text = std::fs::read_to_string(index_path)
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
        let path = shard.path.display();
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
    pub(crate) fn place(&self, name: &str) -> Result<(&Path, u64)> {
        let found = self.places.get(name).map(|place| &self.shards[*place]);
        let found = found.and_then(|shard| Some((shard, shard.tensors.get(name)?)));
        let (shard, info) = found.with_context(|| {
            format!("tensor {name} is missing in {}: download the model again", self.location())
        })?;
        Ok((&shard.path, (shard.data + info.data_offsets.0) as u64))
    }

    fn location(&self) -> String {
        match self.shards.as_slice() {
            [only] => only.path.display().to_string(),
            shards => {
                let dir = shards.first().and_then(|shard| shard.path.parent());
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
mod tests {
    use half::{bf16, f16};
    use safetensors::tensor::TensorView as FileView;
    use serde_json::json;
    use tempfile::{TempDir, tempdir};

    use super::*;
    use crate::testing::message;

    const UP: &str = "model.layers.0.mlp.up_proj.weight";

    type Row<'a> = (&'a str, FileDtype, &'a [usize], &'a [u8]);

    fn file(tensors: &[Row<'_>]) -> Vec<u8> {
        let views = tensors.iter().map(|(name, dtype, shape, bytes)| {
            (*name, FileView::new(*dtype, shape.to_vec(), bytes).unwrap())
        });
        safetensors::serialize(views, None).unwrap()
    }

    fn values(numbers: &[f32]) -> Vec<u8> {
        numbers.iter().flat_map(|number| number.to_le_bytes()).collect()
    }

    fn folder(bytes: &[u8]) -> TempDir {
        let dir = tempdir().unwrap();
        std::fs::write(dir.path().join("model.safetensors"), bytes).unwrap();
        dir
    }

    fn sample() -> Vec<u8> {
        let halves = [1.5f32, -2.0, 0.25].map(|x| bf16::from_f32(x).to_le_bytes()).concat();
        let small = [6e-8f32, 65504.0, -0.5].map(|x| f16::from_f32(x).to_le_bytes()).concat();
        file(&[
            ("b", FileDtype::BF16, &[3, 1], &halves),
            ("h", FileDtype::F16, &[3], &small),
            (UP, FileDtype::F32, &[3, 2], &values(&[0.0, 1.0, 2.0, 3.0, 4.0, 5.0])),
            ("ids", FileDtype::I64, &[1], &[0; 8]),
        ])
    }

    #[test]
    fn tensors_are_read_in_each_dtype() {
        let dir = folder(&sample());
        let checkpoint = Checkpoint::open(dir.path()).unwrap();
        assert_eq!(checkpoint.names().collect::<Vec<_>>(), ["b", "h", "ids", UP]);
        let up = checkpoint.expect(UP, &[3, 2]).unwrap();
        assert_eq!(up.to_f32(), [0.0, 1.0, 2.0, 3.0, 4.0, 5.0]);
        assert_eq!(up.rows_f32(1..3), [2.0, 3.0, 4.0, 5.0]);
        assert_eq!(up.words(2..3), [4f32.to_bits(), 5f32.to_bits()]);
        let b = checkpoint.tensor("b").unwrap();
        assert_eq!((b.dtype, b.to_f32()), (Dtype::BF16, vec![1.5, -2.0, 0.25]));
        assert_eq!(b.words(0..3), [0xC000_3FC0, 0x0000_3E80]);
        let h = checkpoint.tensor("h").unwrap();
        assert_eq!(h.to_f32(), [5.960_464_5e-8, 65504.0, -0.5]);
        assert_eq!((h.rows(), h.cols(), h.rows_f32(1..2)), (3, 1, vec![65504.0]));
    }

    #[test]
    fn wrong_tensors_are_refused_by_name() {
        let dir = folder(&sample());
        let checkpoint = Checkpoint::open(dir.path()).unwrap();
        let error = message(checkpoint.tensor("ids"));
        assert!(error.contains("ids") && error.contains("I64"), "{error}");
        let error = message(checkpoint.tensor("absent.weight"));
        assert!(error.contains("absent.weight") && error.contains("model.safetensors"), "{error}");
        let error = message(checkpoint.expect(UP, &[4, 2]));
        assert!(error.contains("[3, 2] instead of [4, 2]"), "{error}");
        assert!(error.contains("contradicts intermediate_size in config"), "{error}");
        assert!(message(checkpoint.expect(UP, &[3, 2, 1])).contains("expected shape"));
    }

    #[test]
    fn a_file_cut_anywhere_is_refused() {
        let whole = sample();
        let dir = tempdir().unwrap();
        assert!(message(Checkpoint::open(dir.path())).contains("neither model.safetensors"));
        for len in 0..whole.len() {
            std::fs::write(dir.path().join("model.safetensors"), &whole[..len]).unwrap();
            let error = message(Checkpoint::open(dir.path()));
            assert!(error.contains("model.safetensors"), "{len}: {error}");
        }
        let mut longer = whole;
        longer.push(0);
        std::fs::write(dir.path().join("model.safetensors"), longer).unwrap();
        assert!(message(Checkpoint::open(dir.path())).contains("fewer bytes"));
    }

    #[test]
    fn a_damaged_header_is_refused() {
        let headers = [
            r#"{"a":{"dtype":"F32","shape":[2],"data_offsets":[0,4]}}"#,
            r#"{"a":{"dtype":"F32","shape":[1],"data_offsets":[4,0]}}"#,
            r#"{"a":{"dtype":"F32","shape":[18446744073709551615,2],"data_offsets":[0,4]}}"#,
            r#"{"a":{"dtype":"F99","shape":[1],"data_offsets":[0,4]}}"#,
            r#"{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}"#,
            "garbage",
        ];
        for header in headers {
            let mut bytes = (header.len() as u64).to_le_bytes().to_vec();
            bytes.extend_from_slice(header.as_bytes());
            bytes.extend_from_slice(&[0; 4]);
            let dir = folder(&bytes);
            let error = message(Checkpoint::open(dir.path()));
            assert!(error.contains("no whole safetensors file"), "{header}: {error}");
        }
        let dir = folder(&[0xFF; 64]);
        assert!(message(Checkpoint::open(dir.path())).contains("no whole safetensors file"));
    }

    #[test]
    fn shards_are_read_through_their_index() {
        let dir = tempdir().unwrap();
        let write =
            |name: &str, bytes: &[u8]| std::fs::write(dir.path().join(name), bytes).unwrap();
        write("m-1.safetensors", &file(&[("a", FileDtype::F32, &[1], &values(&[1.0]))]));
        write("m-2.safetensors", &file(&[("b", FileDtype::F32, &[1], &values(&[2.0]))]));
        let index = |a: &str, b: &str| {
            let text = json!({"metadata": {}, "weight_map": {"a": a, "b": b}}).to_string();
            write("model.safetensors.index.json", text.as_bytes());
            Checkpoint::open(dir.path())
        };
        let checkpoint = index("m-1.safetensors", "m-2.safetensors").unwrap();
        assert_eq!(checkpoint.tensor("a").unwrap().to_f32(), [1.0]);
        assert_eq!(checkpoint.tensor("b").unwrap().to_f32(), [2.0]);
        assert!(message(checkpoint.tensor("c")).contains("the 2 shards"));
        for path in ["../m-2.safetensors", "/m-2.safetensors", "x/m.safetensors", "..", "", "a\\b"]
        {
            assert!(message(index("m-1.safetensors", path)).contains("no file of this folder"));
        }
        assert!(message(index("m-1.safetensors", "m-3.safetensors")).contains("m-3.safetensors"));
        let error = message(index("m-1.safetensors", "m-1.safetensors"));
        assert!(error.contains("tensor b in m-1.safetensors, which lacks it"), "{error}");
        write("model.safetensors.index.json", b"{\"weight_map\": 3}");
        assert!(message(Checkpoint::open(dir.path())).contains("index.json"));
        write("model.safetensors.index.json", b"{\"weight_map\": {}}");
        assert!(message(Checkpoint::open(dir.path())).contains("lists no tensor"));
    }
}
