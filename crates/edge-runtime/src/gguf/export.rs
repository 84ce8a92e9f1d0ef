//! A model or an adapter as a GGUF file: what llama.cpp's `convert_hf_to_gguf.py` and
//! `convert_lora_to_gguf.py` would make of the folders.

use std::ops::Range;
use std::path::Path;

use anyhow::{Context, Result, ensure};
use gguf_rs_lib::format::metadata::MetadataValue;
use serde_json::Value;

use super::coding::stored_row;
use super::families::Family;
use super::names::{self, ROPE_FREQS};
use super::quant::quantize;
use super::types::Type;
use super::vocab::{self, Specials};
use super::write::{Planned, write_atomically};
use super::{config, rope};
use crate::adapter::Projection;
use crate::checkpoint::Dtype;
use crate::exits::Exits;
use crate::family::names::{HEAD, weight_name};
use crate::merge::{Merging, Rounding};
use crate::session::{Source, Tuned};

/// Values that are converted at once, about.
const CHUNK: usize = 1 << 20;

/// What a written model came to.
#[derive(Clone, Debug, Default)]
pub struct Written {
    /// Weights that the type moved.
    pub rounding: Rounding,
    /// Tensors that are in f16, since their rows are no whole blocks.
    pub in_f16: Vec<String>,
}

/// Where a tensor's values come from.
enum Content {
    /// The checkpoint, by the folder's name.
    Tensor(String),
    Values(Vec<f32>),
}

/// The family of a model.
///
/// # Errors
/// It has no form in GGUF that is written here.
fn family(source: &Source, files: &[(&str, Vec<u8>)]) -> Result<&'static Family> {
    let file = files.iter().find(|(name, _)| *name == "config.json");
    let config: Value =
        file.and_then(|(_, text)| serde_json::from_slice(text).ok()).with_context(|| {
            format!("{} has no config.json: download it again", source.dir.display())
        })?;
    let name = config["architectures"][0].as_str().unwrap_or_default();
    Family::of_huggingface(name).with_context(|| {
        format!("{name} is not written to GGUF here: use --format safetensors, or peft")
    })
}

/// Name of a model for people: that of its folder or file.
fn title(path: &Path) -> String {
    let whole = std::path::absolute(path).unwrap_or_else(|_| path.to_owned());
    // What is behind a dot of a folder's name is a part of it: Qwen2.5-0.5B.
    let name = if whole.is_file() { whole.file_stem() } else { whole.file_name() };
    name.unwrap_or_default().to_string_lossy().into_owned()
}

fn text(value: &str) -> MetadataValue {
    MetadataValue::String(value.to_owned())
}

/// `general.file_type` (`llama_ftype`).
fn file_type(kind: Type) -> u32 {
    match kind {
        Type::Plain(Dtype::F32) => 0,
        Type::Plain(Dtype::F16) => 1,
        Type::Plain(Dtype::BF16) => 32,
        Type::Q4_0 => 2,
        Type::Q8_0 => 7,
        other => unreachable!("{other} is not written"),
    }
}

fn metadata(
    source: &Source,
    family: &Family,
    files: &[(&str, Vec<u8>)],
    kind: Type,
) -> Result<Vec<(String, MetadataValue)>> {
    let mut out = vec![
        ("general.architecture".to_owned(), text(family.gguf)),
        ("general.type".to_owned(), text("model")),
        ("general.name".to_owned(), text(&title(&source.dir))),
        ("general.file_type".to_owned(), MetadataValue::U32(file_type(kind))),
    ];
    if !matches!(kind, Type::Plain(_)) {
        // GGML_QNT_VERSION
        out.push(("general.quantization_version".to_owned(), MetadataValue::U32(2)));
    }
    out.extend(config::metadata(&source.config, family)?);
    let shown = source.dir.join("tokenizer.json").display().to_string();
    let file = files.iter().find(|(name, _)| *name == "tokenizer.json");
    let tokenizer: Value = file
        .and_then(|(_, text)| serde_json::from_slice(text).ok())
        .with_context(|| format!("cannot read {shown}: put the model's tokenizer there"))?;
    let own = &source.tokenizer;
    let specials = Specials {
        bos: own.bos_id(),
        eos: own.eos_id(),
        adds_bos: own.adds_bos(),
        adds_eos: own.adds_eos(),
        template: own.chat_source().map(str::to_owned),
    };
    let vocab_size = source.config.vocab_size;
    out.extend(vocab::metadata(&tokenizer, &specials, vocab_size, &shown)?);
    let ends = &source.config.eos_token_ids;
    let further = |id: &&u32| Some(**id) != own.eos_id() && (**id as usize) < vocab_size;
    if let Some(id) = ends.iter().find(further) {
        out.push(("tokenizer.ggml.eot_token_id".to_owned(), MetadataValue::U32(*id)));
    }
    Ok(out)
}

/// What goes into the file of a model, in the order of its own names.
fn plan(
    source: &Source,
    merging: &Merging<'_>,
    family: &Family,
    kind: Type,
) -> Result<(Vec<Planned>, Vec<Content>, Vec<String>)> {
    let config = &source.config;
    let (mut planned, mut contents, mut in_f16) = (Vec::new(), Vec::new(), Vec::new());
    if let Some(llama3) = rope::of_config(config) {
        let values = llama3.divisors(config.rope_theta, config.head_dim);
        let (name, kind) = (ROPE_FREQS.to_owned(), Type::Plain(Dtype::F32));
        planned.push(Planned { name, kind, shape: vec![values.len()] });
        contents.push(Content::Values(values));
    }
    for name in merging.names() {
        // Old folders have what follows from config.json, and a copy of a tied head.
        let tied = config.tie_word_embeddings && !merging.unties();
        let follows = name.ends_with(".inv_freq") || name == HEAD && tied;
        if follows {
            continue;
        }
        let shape = merging.base(name)?.shape;
        let stored = names::to_gguf(family, name).with_context(|| {
            format!(
                "tensor {name} has no name in a GGUF file of {}: use --format safetensors",
                family.gguf
            )
        })?;
        let blocks = shape.last().is_some_and(|cols| cols.is_multiple_of(kind.block().0));
        let kind = match shape.len() {
            0 | 1 => Type::Plain(Dtype::F32),
            _ if blocks => kind,
            _ => {
                in_f16.push(stored.clone());
                Type::Plain(Dtype::F16)
            }
        };
        planned.push(Planned { name: stored, kind, shape });
        contents.push(Content::Tensor(name.to_owned()));
    }
    Ok((planned, contents, in_f16))
}

/// Writes the model at its last exit, merged, with its tokenizer.
///
/// # Errors
/// The model or its tokenizer has no form in GGUF, a weight exceeds the type, or the file cannot be
/// written.
pub fn model(
    source: &Source,
    tuned: &Tuned,
    path: &Path,
    kind: Type,
    progress: &dyn Fn(),
) -> Result<Written> {
    let merging = Merging::new(source, tuned)?;
    let files = source.companions()?;
    let family = family(source, &files)?;
    let metadata = metadata(source, family, &files, kind)?;
    let (planned, contents, in_f16) = plan(source, &merging, family, kind)?;
    let mut rounding = Rounding::default();
    write_atomically(path, metadata, &planned, &mut |index, out| {
        progress();
        let Planned { name, kind, shape } = &planned[index];
        let folder = match &contents[index] {
            Content::Values(values) => {
                return Ok(out.write_all(&encoded(*kind, name, values)?)?);
            }
            Content::Tensor(folder) => folder,
        };
        let rows = shape.first().copied().unwrap_or(1);
        let cols: usize = shape.iter().skip(1).product();
        let rotated = names::is_interleaved(family, folder);
        let head_dim = if rotated { source.config.head_dim } else { 1 };
        // Whole heads at a time, whose rows change places among themselves.
        let step = (CHUNK / cols.max(1)).max(1).next_multiple_of(head_dim);
        for first in (0..rows).step_by(step) {
            let range = first..rows.min(first + step);
            let mut values = merging.rows_f32(folder, range.clone())?;
            if rotated {
                values = interleave(&values, cols, range, head_dim);
            }
            let bytes = encoded(*kind, name, &values)?;
            rounding.count(&values, *kind, &bytes);
            out.write_all(&bytes)?;
        }
        Ok(())
    })?;
    Ok(Written { rounding, in_f16 })
}

/// Rows of whole heads in the order of the file.
fn interleave(values: &[f32], cols: usize, rows: Range<usize>, head_dim: usize) -> Vec<f32> {
    let mut out = vec![0.0; values.len()];
    for row in rows.clone() {
        let (from, to) = (row - rows.start, stored_row(row, head_dim) - rows.start);
        out[to * cols..(to + 1) * cols].copy_from_slice(&values[from * cols..(from + 1) * cols]);
    }
    out
}

fn encoded(kind: Type, name: &str, values: &[f32]) -> Result<Vec<u8>> {
    // Scales of blocks are f16 as well, of a share of the largest value.
    let limit = match kind {
        Type::Plain(Dtype::F32 | Dtype::BF16) => f32::MAX,
        Type::Q8_0 => 127.0 * 65504.0,
        Type::Q4_0 => 8.0 * 65504.0,
        _ => 65504.0,
    };
    ensure!(
        values.iter().all(|value| value.abs() <= limit),
        "tensor {name} has values that {kind} cannot hold: use another --gguf-type, or --format \
         safetensors"
    );
    let mut bytes = Vec::new();
    quantize(kind, values, &mut bytes);
    Ok(bytes)
}

/// Writes the adapter, in f32 as it was trained; how many layers it has.
///
/// # Errors
/// There is no adapter, the model has no form in GGUF, or the file cannot be written.
pub fn adapter(source: &Source, tuned: &Tuned, path: &Path, progress: &dyn Fn()) -> Result<usize> {
    let (adapter, tensors) = tuned.adapter.as_ref().context("an adapter to write")?;
    let family = family(source, &source.companions()?)?;
    let first_layer = tuned.exits.as_ref().map_or(0, Exits::first_adapted);
    let metadata = vec![
        ("general.architecture".to_owned(), text(family.gguf)),
        ("general.type".to_owned(), text("adapter")),
        ("general.name".to_owned(), text(&format!("adapter of {}", title(&source.dir)))),
        ("general.file_type".to_owned(), MetadataValue::U32(0)),
        ("adapter.type".to_owned(), text("lora")),
        ("adapter.lora.alpha".to_owned(), MetadataValue::F32(adapter.lora_alpha as f32)),
    ];
    let kind = Type::Plain(Dtype::F32);
    let mut planned = Vec::new();
    let mut values: Vec<Vec<f32>> = Vec::new();
    for ((layer, projection), (a, b)) in tensors.iter().filter(|((at, _), _)| *at >= first_layer) {
        let name = weight_name(*layer, *projection);
        let stored = names::to_gguf(family, &name).context("a projection's name")?;
        let (n, k) = shape(source, *projection);
        planned.push(Planned { name: format!("{stored}.lora_a"), kind, shape: vec![adapter.r, k] });
        planned.push(Planned { name: format!("{stored}.lora_b"), kind, shape: vec![n, adapter.r] });
        let b = match names::is_interleaved(family, &name) {
            true => interleave(b, adapter.r, 0..n, source.config.head_dim),
            false => b.clone(),
        };
        values.extend([a.clone(), b]);
    }
    write_atomically(path, metadata, &planned, &mut |index, out| {
        progress();
        Ok(out.write_all(&encoded(kind, &planned[index].name, &values[index])?)?)
    })?;
    Ok(planned.len() / 2)
}

fn shape(source: &Source, projection: Projection) -> (usize, usize) {
    let (n, k) = source.config.shape().projection(projection);
    (n as usize, k as usize)
}
