//! `inspect`: what is in a checkpoint, a compressed model, an adapter or a run directory.

use std::collections::BTreeMap;
use std::path::Path;

use anyhow::{Context, Result, bail, ensure};
use edge_kernels::Format;
use edge_scheduler::policy::{bits, matrix_bytes};
use edge_scheduler::{Layer, Projection};
use serde_json::{Map, Value, json};

use super::args::InspectArgs;
use super::report::print_json;
use crate::adapter;
use crate::checkpoint::Checkpoint;
use crate::compress::policy_file::sparsity_name;
use crate::compress::read::{Compressed, is_compressed};
use crate::config::ModelConfig;
use crate::family::{self, Fused};
use crate::gguf::{self, Gguf};
use crate::session::{mebibytes, run_options};
use crate::tune::session::RESULT;
use crate::whole_file::{self, SETTINGS};

/// What is printed about a path: lines for people, an object for programs.
struct Found {
    lines: Vec<String>,
    value: Value,
}

pub(super) fn run(args: &InspectArgs) -> Result<()> {
    let found = inspect(&args.path)?;
    for line in &found.lines {
        eprintln!("{line}");
    }
    if args.json {
        print_json(&found.value)?;
    }
    Ok(())
}

fn inspect(path: &Path) -> Result<Found> {
    let shown = path.display();
    ensure!(path.exists(), "{shown} does not exist: give a folder or a GGUF file");
    if let Some(file) = gguf::locate(path)?.filter(|_| path.is_file()) {
        return gguf_file(&file);
    }
    ensure!(path.is_dir(), "{shown} is no folder: give the folder that it lies in");
    if path.join("config.resolved.yaml").exists() {
        return run_dir(path);
    }
    if path.join(adapter::CONFIG_FILE).exists() {
        return adapter_folder(path);
    }
    if path.join("config.json").exists() {
        return if is_compressed(path) { compressed(path) } else { checkpoint(path) };
    }
    if let Some(file) = gguf::locate(path)? {
        return gguf_file(&file);
    }
    bail!(
        "{shown} holds no model (config.json), adapter ({}) or run (config.resolved.yaml): give \
         another folder",
        adapter::CONFIG_FILE
    )
}

/// Sizes of a model.
fn dimensions(config: &ModelConfig) -> (String, Map<String, Value>) {
    let line = format!(
        "{}: {} blocks, hidden size {}, intermediate size {}, {} heads over {} of {}, \
         vocabulary {}{}, context {}",
        config.family.name,
        config.num_hidden_layers,
        config.hidden_size,
        config.intermediate_size,
        config.num_attention_heads,
        config.num_key_value_heads,
        config.head_dim,
        config.vocab_size,
        if config.tie_word_embeddings { " (tied)" } else { "" },
        config.max_position_embeddings
    );
    let value = json!({
        "architecture": config.family.name,
        "num_hidden_layers": config.num_hidden_layers,
        "hidden_size": config.hidden_size,
        "intermediate_size": config.intermediate_size,
        "num_attention_heads": config.num_attention_heads,
        "num_key_value_heads": config.num_key_value_heads,
        "head_dim": config.head_dim,
        "vocab_size": config.vocab_size,
        "tie_word_embeddings": config.tie_word_embeddings,
        "max_position_embeddings": config.max_position_embeddings,
    });
    (line, into_map(value))
}

fn into_map(value: Value) -> Map<String, Value> {
    match value {
        Value::Object(map) => map,
        _ => Map::new(),
    }
}

/// What the tensors of a checkpoint come to.
struct Totals {
    parameters: u64,
    bytes: u64,
    tensors: usize,
    /// Tensors by number format.
    dtypes: BTreeMap<String, u64>,
}

fn totals(checkpoint: &Checkpoint) -> Totals {
    let mut totals = Totals { parameters: 0, bytes: 0, tensors: 0, dtypes: BTreeMap::new() };
    for info in checkpoint.shards.iter().flat_map(|shard| shard.tensors.values()) {
        totals.parameters += info.shape.iter().map(|size| *size as u64).product::<u64>();
        totals.bytes += (info.data_offsets.1 - info.data_offsets.0) as u64;
        totals.tensors += 1;
        *totals.dtypes.entry(info.dtype.to_string()).or_default() += 1;
    }
    totals
}

fn checkpoint(path: &Path) -> Result<Found> {
    let config = ModelConfig::load(path)?;
    Ok(weights("checkpoint", path, &config, &Checkpoint::open(path)?))
}

/// A file of llama.cpp: a model, or an adapter.
fn gguf_file(path: &Path) -> Result<Found> {
    let gguf = Gguf::open(path)?;
    if gguf.text("general.type")? == Some("adapter") {
        let (alpha, tensors) = (gguf.real("adapter.lora.alpha")?, gguf.tensors.len());
        let family = gguf.text("general.architecture")?.unwrap_or_default().to_owned();
        let shown = path.display();
        let line = format!("adapter of a {family} model: alpha {alpha:?}, {tensors} tensors");
        let value = json!({"architecture": family, "lora_alpha": alpha, "tensors": tensors});
        let value = with_kind("gguf-adapter", path, into_map(value));
        return Ok(Found { lines: vec![format!("GGUF file {shown}"), line], value });
    }
    let (_, config) = gguf.config()?;
    Ok(weights("gguf", path, &config, &gguf.into_checkpoint(&config)?))
}

/// Weights that are not compressed here.
fn weights(kind: &str, path: &Path, config: &ModelConfig, checkpoint: &Checkpoint) -> Found {
    let (line, mut value) = dimensions(config);
    let totals = totals(checkpoint);
    let dtypes = totals.dtypes.iter().map(|(dtype, count)| format!("{count} in {dtype}"));
    let dtypes: Vec<String> = dtypes.collect();
    let lines = vec![
        format!("{} {}", if kind == "gguf" { "GGUF file" } else { kind }, path.display()),
        line,
        format!(
            "{:.2} M parameters in {} tensors ({}), {}",
            totals.parameters as f64 / 1e6,
            totals.tensors,
            dtypes.join(", "),
            mebibytes(totals.bytes)
        ),
    ];
    value.extend(into_map(json!({
        "parameters": totals.parameters,
        "tensors": totals.tensors,
        "dtypes": totals.dtypes,
        "bytes": totals.bytes,
    })));
    Found { lines, value: with_kind(kind, path, value) }
}

fn with_kind(kind: &str, path: &Path, value: Map<String, Value>) -> Value {
    let mut whole = into_map(json!({ "kind": kind, "path": path }));
    whole.extend(value);
    Value::Object(whole)
}

fn compressed(path: &Path) -> Result<Found> {
    let config = ModelConfig::load(path)?;
    let checkpoint = Checkpoint::open_compressed(path, &config)?;
    let compressed = checkpoint.compressed().context("an open compressed checkpoint")?;
    for section in 0..compressed.layout.sections.len() {
        checkpoint.verify(section)?;
    }
    let (about, shape) = (&compressed.about, config.shape());
    let averages = about.policy.averages(&shape);
    let weights: u64 = Projection::ALL
        .into_iter()
        .map(|projection| {
            let (n, k) = shape.projection(projection);
            u64::from(n) * u64::from(k) * u64::from(shape.num_blocks)
        })
        .sum();
    let per_weight = 8.0 * averages.bytes as f64 / weights.max(1) as f64;
    let (line, mut value) = dimensions(&config);
    let head = if shape.tied_head { "tied".to_owned() } else { about.head.name().to_owned() };
    let mut lines = vec![format!("compressed model {}", path.display()), line];
    let (table, layers) = layers(compressed, &config);
    lines.extend(table);
    lines.push(format!(
        "policy {}: {:.3} bits a value, {:.1} % left out; {per_weight:.3} bits a weight with \
         scales and positions",
        about.policy.name,
        averages.bits,
        100.0 * averages.sparsity
    ));
    lines.push(format!(
        "{} in all: projections {}, tables (embedding {}, head {head}) and norms the rest",
        mebibytes(compressed.bytes),
        mebibytes(averages.bytes),
        about.embedding.name()
    ));
    lines.push(format!(
        "checksums are right; calibration data {}, source {}, written by version {}",
        about.calibration_hash, about.source_hash, about.program_version
    ));
    value.extend(into_map(json!({
        "policy": about.policy.name,
        "layers": layers,
        "average_bits": averages.bits,
        "average_sparsity": averages.sparsity,
        "bits_per_weight": per_weight,
        "projection_bytes": averages.bytes,
        "embedding": about.embedding.name(),
        "head": head,
        "bytes": compressed.bytes,
        "calibration_hash": about.calibration_hash,
        "source_hash": about.source_hash,
        "program_version": about.program_version,
    })));
    Ok(Found { lines, value: with_kind("compressed", path, value) })
}

/// A row for each block and for each projection with a format of its own, whose bytes are then
/// none of the block's.
fn layers(compressed: &Compressed, config: &ModelConfig) -> (Vec<String>, Vec<Value>) {
    let shape = config.shape();
    let mut lines = vec![format!(
        "{:<36} {:>4}  {:<15} {:>5} {:>10}",
        "layer", "bits", "sparsity", "group", "bytes"
    )];
    let mut values = Vec::new();
    let mut row = |layer: Layer, format: Format, bytes: u64| {
        let zero_point = format.packing().is_some_and(|packing| packing.has_zero_point());
        let group = format.group().map_or("-".to_owned(), |group| group.to_string());
        let group = if zero_point { format!("{group}z") } else { group };
        let (name, bits, kept) = (layer.to_string(), bits(format), sparsity_name(format));
        lines.push(format!("{name:<36} {bits:>4}  {kept:<15} {group:>5} {bytes:>10}"));
        values.push(json!({
            "name": name, "bits": bits, "sparsity": kept, "group_size": format.group(),
            "zero_point": zero_point, "bytes": bytes,
        }));
    };
    for (block, rule) in (0..).zip(&compressed.about.policy.blocks) {
        let bytes = |projection: Projection| {
            let (n, k) = shape.projection(projection);
            matrix_bytes(n, k, rule.get(projection))
        };
        let own = |projection: &Projection| rule.overrides[projection.index()].is_some();
        let shared = Projection::ALL.into_iter().filter(|projection| !own(projection));
        row(Layer { block, projection: None }, rule.format, shared.map(bytes).sum());
        for projection in Projection::ALL.into_iter().filter(own) {
            let layer = Layer { block, projection: Some(projection) };
            row(layer, rule.get(projection), bytes(projection));
        }
    }
    (lines, values)
}

fn adapter_folder(path: &Path) -> Result<Found> {
    let config = adapter::load_config(path)?;
    let checkpoint = Checkpoint::open_file(&path.join(adapter::TENSORS_FILE))?;
    let totals = totals(&checkpoint);
    let used = |layer: &Fused| {
        checkpoint.names().any(|name| name.contains(&format!(".{}.lora_", layer.path)))
    };
    let mut targets: Vec<&str> = Vec::new();
    for layer in family::ALL.iter().flat_map(|family| family.layers()).filter(used) {
        if !targets.contains(&layer.name()) {
            targets.push(layer.name());
        }
    }
    let base = config.base_model_name_or_path.as_deref();
    let lines = vec![
        format!("adapter {} on {}", path.display(), base.unwrap_or("an unnamed model")),
        format!(
            "rank {}, alpha {}, {:.3} M parameters in {} tensors on {}",
            config.r,
            config.lora_alpha,
            totals.parameters as f64 / 1e6,
            totals.tensors,
            targets.join(", ")
        ),
    ];
    let value = into_map(json!({
        "base_model": base,
        "rank": config.r,
        "alpha": config.lora_alpha,
        "targets": targets,
        "parameters": totals.parameters,
        "tensors": totals.tensors,
        "bytes": totals.bytes,
    }));
    Ok(Found { lines, value: with_kind("adapter", path, value) })
}

fn run_dir(path: &Path) -> Result<Found> {
    let options = run_options(path)?;
    let model = options.model.as_ref().map_or("the demo model".into(), |m| m.display().to_string());
    let mut lines =
        vec![format!("run {}: method {} on {model}", path.display(), options.method.name())];
    let mut value = Map::new();
    value.insert("options".to_owned(), serde_json::to_value(&options)?);
    let result = json_file(&path.join(RESULT))?;
    match &result {
        Some(result) => lines.push(format!(
            "{} steps, validation loss {} -> {}, {} tokens/s",
            result["steps"],
            number(&result["val_loss_before"]),
            number(&result["val_loss"]),
            number(&result["tokens_per_second"])
        )),
        None => lines.push("the run has not ended: there is no result.json".to_owned()),
    }
    value.insert("result".to_owned(), result.unwrap_or_default());
    let exits = json_file(&path.join("exits.json"))?;
    if let Some(exits) = &exits {
        lines.push(format!("exits {exits}"));
    }
    value.insert("exits".to_owned(), exits.unwrap_or_default());
    for (key, file) in [("adapter", adapter::CONFIG_FILE), ("checkpoint", "model.safetensors")] {
        let part = match (path.join(file).exists(), key) {
            (true, "adapter") => Some(adapter_folder(path)?),
            (true, _) => Some(checkpoint(path)?),
            (false, _) => None,
        };
        let part = part.map(|found| {
            lines.extend(found.lines);
            found.value
        });
        value.insert(key.to_owned(), part.unwrap_or_default());
    }
    Ok(Found { lines, value: with_kind("run", path, value) })
}

fn number(value: &Value) -> String {
    value.as_f64().map_or("unknown".to_owned(), |number| format!("{number:.4}"))
}

/// A JSON file, where it exists.
fn json_file(path: &Path) -> Result<Option<Value>> {
    if !path.exists() {
        return Ok(None);
    }
    let shown = path.display();
    let text = whole_file::text(path, SETTINGS)
        .with_context(|| format!("cannot read {shown}: check its permissions"))?;
    let value = serde_json::from_str(&text)
        .map_err(|error| anyhow::anyhow!("{shown} is no JSON ({error}): run tune again"))?;
    Ok(Some(value))
}
