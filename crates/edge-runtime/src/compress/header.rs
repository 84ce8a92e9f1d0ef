//! The header of `compressed.safetensors`: tensors, and what the file says of itself.
//!
//! `__metadata__` holds strings: `format`, `format_version`, `header_crc32`, `data_crc32` (one for
//! each section, separated by spaces), `policy` (as in `policy.json`), `embedding` and `head`
//! (formats), `model` (the sizes of [`ModelShape`]), `calibration_hash`, `source_hash`,
//! `program_version`. Checksums are CRC-32 in eight hexadecimal digits; that of the header is
//! computed with zeros in its own place.

use std::collections::HashMap;

use anyhow::{Context, Result, bail, ensure};
use edge_kernels::Format;
use edge_scheduler::{ModelShape, Policy};
use serde_json::{Map, Value, json};

use super::layout::{ALIGN, Layout, TABLE_FORMATS};
use super::policy_file;

/// What `format` says.
const FORMAT: &str = "edge-llm-compressed";

/// Version of the format: written, and the newest that is read.
const VERSION: u32 = 1;

/// What stands before the header's own checksum.
const OWN_KEY: &str = "\"header_crc32\":\"";

/// What a compressed checkpoint says of itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct About {
    /// Formats of the projections.
    pub policy: Policy,
    /// Format of the embedding table, one of [`TABLE_FORMATS`].
    pub embedding: Format,
    /// Format of an untied head, one of [`TABLE_FORMATS`].
    pub head: Format,
    /// Hash of the data that it was calibrated on, as whoever compressed it states.
    pub calibration_hash: String,
    /// Hash of the checkpoint that it was made of, likewise.
    pub source_hash: String,
    /// Version of the program that wrote it.
    pub program_version: String,
}

/// The bytes of the file before its data, the length included.
pub(super) fn encode(
    about: &About,
    shape: &ModelShape,
    layout: &Layout,
    checksums: &[u32],
) -> Result<Vec<u8>> {
    let sums: Vec<String> = checksums.iter().map(|sum| format!("{sum:08x}")).collect();
    let mut header = Map::new();
    header.insert(
        "__metadata__".to_owned(),
        json!({
            "format": FORMAT,
            "format_version": VERSION.to_string(),
            "header_crc32": "00000000",
            "data_crc32": sums.join(" "),
            "program_version": about.program_version,
            "source_hash": about.source_hash,
            "calibration_hash": about.calibration_hash,
            "model": sizes(shape).to_string(),
            "embedding": about.embedding.name(),
            "head": about.head.name(),
            "policy": policy_file::to_json(&about.policy, false)?,
        }),
    );
    for tensor in &layout.tensors {
        let entry = json!({
            "dtype": tensor.dtype.to_string(),
            "shape": tensor.shape,
            "data_offsets": [tensor.start, tensor.end],
        });
        header.insert(tensor.name.clone(), entry);
    }
    let mut text = Value::Object(header).to_string().into_bytes();
    let whole = (8 + text.len()).next_multiple_of(ALIGN as usize);
    text.resize(whole - 8, b' ');
    let at = own_place(&text).context("the header has a place for its checksum")?;
    let own = format!("{:08x}", crc32fast::hash(&text));
    text[at..at + 8].copy_from_slice(own.as_bytes());
    let mut bytes = (text.len() as u64).to_le_bytes().to_vec();
    bytes.extend(text);
    Ok(bytes)
}

fn own_place(header: &[u8]) -> Option<usize> {
    let start = header.windows(OWN_KEY.len()).position(|part| part == OWN_KEY.as_bytes())?;
    let at = start + OWN_KEY.len();
    (header.len() >= at + 8).then_some(at)
}

/// Reads what a file says of itself, and the checksums of its sections.
pub(super) fn decode(
    shown: &str,
    header: &[u8],
    notes: &HashMap<String, String>,
    shape: &ModelShape,
) -> Result<(About, Vec<u32>)> {
    let note = |key: &str| {
        let value = notes.get(key).map(String::as_str);
        value.with_context(|| format!("{shown} lacks the entry {key:?}: compress the model again"))
    };
    ensure!(
        notes.get("format").is_some_and(|format| format == FORMAT),
        "{shown} is no compressed model of this program: compress the original model again"
    );
    let version = note("format_version")?;
    match version.parse::<u32>() {
        Ok(VERSION) => {}
        Ok(newer) if newer > VERSION => bail!(
            "{shown} has format version {newer} and this program reads up to {VERSION}: use a \
             newer program"
        ),
        _ => bail!("{shown} has format version {version:?}: compress the model again"),
    }
    ensure!(
        intact(header),
        "the header of {shown} is damaged (its checksum differs): copy or compress it again"
    );
    check_sizes(shown, note("model")?, shape)?;
    let table = |key: &str| {
        let name = note(key)?;
        let format = Format::from_name(name).filter(|format| TABLE_FORMATS.contains(format));
        format.with_context(|| format!("{shown} has a table in {name:?}: compress it again"))
    };
    let within = format!("the policy in {shown}");
    let about = About {
        policy: policy_file::parse(note("policy")?, &within, shape.num_blocks as usize)?,
        embedding: table("embedding")?,
        head: table("head")?,
        calibration_hash: note("calibration_hash")?.to_owned(),
        source_hash: note("source_hash")?.to_owned(),
        program_version: note("program_version")?.to_owned(),
    };
    let sums = note("data_crc32")?.split(' ').map(|digits| u32::from_str_radix(digits, 16));
    let sums = sums.collect::<Result<Vec<_>, _>>();
    let sums = sums.ok().filter(|sums| sums.len() == shape.num_blocks as usize + 1);
    let sums = sums.with_context(|| {
        format!("{shown} lacks checksums of its tensors: compress the model again")
    })?;
    Ok((about, sums))
}

fn intact(header: &[u8]) -> bool {
    let Some(at) = own_place(header) else { return false };
    let mut plain = header.to_vec();
    plain[at..at + 8].fill(b'0');
    let own = format!("{:08x}", crc32fast::hash(&plain));
    header[at..at + 8] == *own.as_bytes()
}

/// The sizes of a model by the names that they have in `config.json`.
fn sizes(shape: &ModelShape) -> Value {
    json!({
        "vocab_size": shape.vocab_size,
        "hidden_size": shape.hidden_size,
        "intermediate_size": shape.intermediate_size,
        "num_hidden_layers": shape.num_blocks,
        "num_attention_heads": shape.num_heads,
        "num_key_value_heads": shape.num_kv_heads,
        "head_dim": shape.head_dim,
        "tie_word_embeddings": shape.tied_head,
    })
}

fn check_sizes(shown: &str, stated: &str, shape: &ModelShape) -> Result<()> {
    let stated: Value = serde_json::from_str(stated).unwrap_or_default();
    let Value::Object(wanted) = sizes(shape) else { return Ok(()) };
    for (key, want) in wanted {
        let got = &stated[&key];
        ensure!(
            *got == want,
            "{shown} holds a model with {key} {got} and config.json beside it says {want}: use \
             files of the same model"
        );
    }
    Ok(())
}
