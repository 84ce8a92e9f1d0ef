//! A model and its adapter as one checkpoint: `W + (alpha / r) · B·A` (LoRA, Hu et al. 2021,
//! section 4.1), the last exit's norm in place of the final one, and its low-rank term in the head,
//! which then is no longer tied to the embedding.

use std::borrow::Cow;
use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::fs;
use std::ops::Range;
use std::path::Path;

use anyhow::{Context, Result, ensure};
use half::{bf16, f16};
use safetensors::View;
use safetensors::tensor::Dtype as Kind;

use crate::adapter::AdapterConfig;
use crate::checkpoint::TensorView;
use crate::checkpoint::{Checkpoint, Dtype};
use crate::exits::{Exits, HeadTerm};
use crate::family::names::{EMBEDDING, HEAD, NORM};
use crate::gguf::dequant::dequantize;
use crate::gguf::types::Type;
use crate::run_dir::{write_atomically, write_tensors_atomically};
use crate::session::{Source, Tuned};

/// File name of the weights.
const WEIGHTS: &str = "model.safetensors";

/// Weights that a number format could not hold as they were.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Rounding {
    /// Weights that differ from what was to be written.
    pub moved: u64,
    /// All weights.
    pub weights: u64,
}

impl Rounding {
    /// Counts in what was written, blocks of `kind`, for `wanted`.
    pub(crate) fn count(&mut self, wanted: &[f32], kind: Type, written: &[u8]) {
        let mut got = vec![0.0; wanted.len()];
        dequantize(kind, written, &mut got);
        self.moved += wanted.iter().zip(&got).filter(|(wanted, got)| wanted != got).count() as u64;
        self.weights += wanted.len() as u64;
    }
}

/// The tensors of a model at its last exit, base and adapter in one.
pub struct Merging<'a> {
    /// The base.
    pub checkpoint: &'a Checkpoint,
    changes: BTreeMap<String, Change<'a>>,
    /// Whether the head was tied to the embedding and differs from it now.
    unties: bool,
}

/// What becomes of a tensor.
enum Change<'a> {
    /// Products `B·A` for some rows each.
    Lora {
        config: &'a AdapterConfig,
        parts: Vec<(Range<usize>, &'a [f32], &'a [f32])>,
    },
    Values(Vec<f32>),
    Head(HeadTerm<'a>),
}

impl<'a> Merging<'a> {
    /// Of a run with isolated windows it takes the top window's adapters, which the last exit alone
    /// has.
    ///
    /// # Errors
    /// The base is compressed, or a weight that changes has another shape than `config.json` says.
    pub fn new(source: &'a Source, tuned: &'a Tuned) -> Result<Self> {
        ensure!(
            source.checkpoint.compressed().is_none(),
            "{} is compressed: give --format compressed, or --model the original checkpoint",
            source.dir.display()
        );
        let exits = tuned.exits.as_ref();
        // The last exit of isolated windows stands on the base and the top window's adapters.
        let first_layer = exits.map_or(0, Exits::first_adapted);
        let mut changes: BTreeMap<String, Change<'a>> = BTreeMap::new();
        if let Some((config, tensors)) = &tuned.adapter {
            for ((layer, projection), (a, b)) in tensors {
                if *layer < first_layer {
                    continue;
                }
                let place = source.config.weight_place(*layer, *projection);
                source.checkpoint.weight(&source.config, *layer, *projection)?;
                let change = changes.entry(place.name);
                let change = change.or_insert_with(|| Change::Lora { config, parts: Vec::new() });
                if let Change::Lora { parts, .. } = change {
                    parts.push((place.rows, a, b));
                }
            }
        }
        if let Some(norm) = exits.and_then(|exits| exits.gammas.last()) {
            source.checkpoint.expect(NORM, &[norm.len()])?;
            changes.insert(NORM.into(), Change::Values(source.config.stored_norm(norm)));
        }
        let term = exits.and_then(Exits::head_term);
        if let Some(term) = term {
            changes.insert(HEAD.into(), Change::Head(term));
        }
        let unties = term.is_some() && source.config.tie_word_embeddings;
        Ok(Self { checkpoint: &source.checkpoint, changes, unties })
    }

    /// Whether the head, tied to the embedding before, has become a tensor of its own.
    pub fn unties(&self) -> bool {
        self.unties
    }

    /// The names of the tensors.
    pub fn names(&self) -> Vec<&'a str> {
        // Old folders have a copy of a tied head.
        let own = self.checkpoint.names().filter(|name| !self.unties || *name != HEAD);
        own.chain(self.unties.then_some(HEAD)).collect()
    }

    /// A tensor as it is in the base.
    ///
    /// # Errors
    /// There is none of this name.
    pub fn base(&self, name: &str) -> Result<TensorView<'a>> {
        self.checkpoint.tensor(if self.unties && name == HEAD { EMBEDDING } else { name })
    }

    /// Some rows of a tensor, merged.
    ///
    /// # Errors
    /// There is no tensor of this name.
    ///
    /// # Panics
    /// When `rows` exceeds it.
    pub fn rows_f32(&self, name: &str, rows: Range<usize>) -> Result<Vec<f32>> {
        let tensor = self.base(name)?;
        let mut values = tensor.rows_f32(rows.clone())?;
        match self.changes.get(name) {
            None => {}
            Some(Change::Head(term)) => term.add(rows, &mut values),
            Some(Change::Values(new)) => values.copy_from_slice(&new[rows]),
            Some(Change::Lora { config, parts }) => {
                let (cols, rank) = (tensor.cols(), config.r);
                for (own, a, b) in parts {
                    let both = own.start.max(rows.start)..own.end.min(rows.end);
                    if both.is_empty() {
                        continue;
                    }
                    let b = &b[(both.start - own.start) * rank..(both.end - own.start) * rank];
                    let at = (both.start - rows.start) * cols..(both.end - rows.start) * cols;
                    add_product(&mut values[at], (a, b), rank, config.scale());
                }
            }
        }
        Ok(values)
    }
}

/// Writes the model at its last exit, merged, into `out`, a model folder for any program: tensor by
/// tensor, so that one weight is in memory at a time; the weights last, atomically. How many
/// weights the number format moved.
///
/// # Errors
/// The base is compressed, or a file cannot be written.
pub fn merge(
    source: &Source,
    tuned: &Tuned,
    out: &Path,
    dtype: Option<Dtype>,
    progress: &dyn Fn(),
) -> Result<Rounding> {
    let merging = Merging::new(source, tuned)?;
    fs::create_dir_all(out)
        .with_context(|| format!("cannot make {}: give another --out", out.display()))?;
    for (name, mut bytes) in source.companions()? {
        if let (Some(dtype), "config.json") = (dtype, name) {
            bytes = with_dtype(&bytes, dtype)?;
        }
        if merging.unties() && name == "config.json" {
            bytes = untied(&bytes)?;
        }
        write_atomically(&out.join(name), &bytes)?;
    }
    let names = merging.names();
    let rounding = Cell::new(Rounding::default());
    let failed = RefCell::new(None);
    let mut views = Vec::with_capacity(names.len());
    for &name in &names {
        let tensor = merging.base(name)?;
        views.push((
            name,
            Merged {
                merging: &merging,
                name,
                shape: tensor.shape.to_vec(),
                dtype: dtype.unwrap_or(tensor.dtype),
                rounding: &rounding,
                failed: &failed,
                progress,
            },
        ));
    }
    let check = || failed.borrow_mut().take().map_or(Ok(()), Err);
    write_tensors_atomically(&out.join(WEIGHTS), views, check)?;
    Ok(rounding.get())
}

/// A `config.json` that says that the head is a tensor of its own.
pub(crate) fn untied(config: &[u8]) -> Result<Vec<u8>> {
    let mut config: serde_json::Value =
        serde_json::from_slice(config).context("config.json is no JSON: download it again")?;
    if let Some(keys) = config.as_object_mut() {
        keys.insert("tie_word_embeddings".to_owned(), false.into());
    }
    serde_json::to_vec_pretty(&config).context("laying out config.json")
}

/// A `config.json` that names the weights' number format, by which programs load them.
fn with_dtype(config: &[u8], dtype: Dtype) -> Result<Vec<u8>> {
    let mut config: serde_json::Value =
        serde_json::from_slice(config).context("config.json is no JSON: download it again")?;
    let name = match dtype {
        Dtype::F32 => "float32",
        Dtype::F16 => "float16",
        Dtype::BF16 => "bfloat16",
    };
    for key in ["torch_dtype", "dtype"] {
        if let Some(value) = config.get_mut(key) {
            *value = name.into();
        }
    }
    serde_json::to_vec_pretty(&config).context("laying out config.json")
}

/// A tensor that is computed when it is written.
struct Merged<'a> {
    merging: &'a Merging<'a>,
    name: &'a str,
    shape: Vec<usize>,
    dtype: Dtype,
    rounding: &'a Cell<Rounding>,
    failed: &'a RefCell<Option<anyhow::Error>>,
    progress: &'a dyn Fn(),
}

impl Merged<'_> {
    fn bytes(&self) -> Result<Vec<u8>> {
        (self.progress)();
        let tensor = self.merging.base(self.name)?;
        let mut rounding = self.rounding.get();
        let own = tensor.is_plain() && tensor.dtype == self.dtype;
        if own && !self.merging.changes.contains_key(self.name) {
            let bytes = tensor.bytes(0..tensor.rows())?;
            rounding.weights += (bytes.len() / self.dtype.bytes()) as u64;
            self.rounding.set(rounding);
            return Ok(bytes);
        }
        let values = self.merging.rows_f32(self.name, 0..tensor.rows())?;
        let bytes = encode(&values, self.dtype);
        rounding.count(&values, Type::Plain(self.dtype), &bytes);
        self.rounding.set(rounding);
        Ok(bytes)
    }
}

impl View for Merged<'_> {
    fn dtype(&self) -> Kind {
        match self.dtype {
            Dtype::F32 => Kind::F32,
            Dtype::F16 => Kind::F16,
            Dtype::BF16 => Kind::BF16,
        }
    }

    fn shape(&self) -> &[usize] {
        &self.shape
    }

    fn data(&self) -> Cow<'_, [u8]> {
        Cow::Owned(self.bytes().unwrap_or_else(|error| {
            self.failed.borrow_mut().get_or_insert(error);
            vec![0; self.data_len()]
        }))
    }

    fn data_len(&self) -> usize {
        self.shape.iter().product::<usize>() * self.dtype.bytes()
    }
}

/// `W += scale · B·A`; W \[n, k\], A \[r, k\], B \[n, r\].
pub(crate) fn add_product(w: &mut [f32], (a, b): (&[f32], &[f32]), rank: usize, scale: f32) {
    let k = a.len() / rank;
    for (w, b) in w.chunks_exact_mut(k).zip(b.chunks_exact(rank)) {
        for (a, b) in a.chunks_exact(k).zip(b) {
            w.iter_mut().zip(a).for_each(|(w, a)| *w += scale * b * a);
        }
    }
}

/// Little-endian bytes in a number format.
pub(crate) fn encode(values: &[f32], dtype: Dtype) -> Vec<u8> {
    match dtype {
        Dtype::F32 => bytemuck::cast_slice(values).to_vec(),
        Dtype::F16 => values.iter().flat_map(|&v| f16::from_f32(v).to_le_bytes()).collect(),
        Dtype::BF16 => values.iter().flat_map(|&v| bf16::from_f32(v).to_le_bytes()).collect(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_product_is_added_scaled() {
        let mut w = vec![1.0; 6];
        // A [2, 3], B [2, 2].
        let (a, b) = ([1.0, 2.0, 3.0, 0.0, 1.0, 0.0], [1.0, 2.0, 0.0, -1.0]);
        add_product(&mut w, (&a, &b), 2, 0.5);
        assert_eq!(w, [1.5, 3.0, 2.5, 1.0, 0.5, 1.0]);
        assert_eq!(encode(&[1.0], Dtype::BF16), [0x80, 0x3F]);
        assert_eq!(encode(&[1.0], Dtype::F16), [0x00, 0x3C]);
    }
}
