//! The targets. Each calls what the commands call, down to tokens where the file is a part of a
//! model: weights and words are computed with, not only read.

use std::path::Path;

use anyhow::{Context, Result, ensure};
use edge_runtime::choices::Choices;
use edge_runtime::cli::args::TuneFlags;
use edge_runtime::compare::entry::{load_config, parse_entries};
use edge_runtime::compress::policy_file;
use edge_runtime::config::ModelConfig;
use edge_runtime::data::{Columns, DataSpec, Dataset, load_eval};
use edge_runtime::session::{Source, Tuned, run_options};
use edge_runtime::tokenizer::Tokenizer;
use edge_runtime::{Inference, gguf, report};
use edge_tests::folders::{self, TEXT};
use serde_json::Value;

use crate::Target;

/// All targets.
pub const TARGETS: &[Target] = &[
    target("safetensors", folders::model, "model/model.safetensors", model),
    target("index", folders::sharded, "model/model.safetensors.index.json", model),
    target("config", folders::model, "model/config.json", config),
    target("tokenizer", folders::data, "model/tokenizer.json", tokenizer),
    target("tokenizer_config", folders::data, "model/tokenizer_config.json", tokenizer),
    target("template", folders::data, "model/chat_template.jinja", jsonl),
    target("data_text", folders::data, "a.txt", text),
    target("data_jsonl", folders::data, "a.jsonl", jsonl),
    target("data_json", folders::data, "a.json", json),
    target("choices", folders::data, "choices.jsonl", choices),
    target("policy", folders::packed, "packed/policy.json", policy),
    Target { mend: mend_packed, ..target("packed", folders::packed, PACKED, packed) },
    target("gguf", folders::gguf_file, "model.gguf", gguf),
    target("adapter_config", folders::run, "run/adapter_config.json", adapter),
    target("adapter", folders::run, "run/adapter_model.safetensors", adapter),
    target("exits", folders::run, "run/exits.json", run),
    target("exits_norms", folders::run, "run/exits.safetensors", run),
    target("run_options", folders::run, "run/config.resolved.yaml", resolved),
    target("options", folders::run, "run/config.resolved.yaml", options),
    target("methods", folders::run, "run/config.resolved.yaml", methods),
    target("metrics", folders::run, "run/metrics.jsonl", page),
    target("events", folders::run, "run/events.jsonl", page),
    target("header", folders::run, "run/header.json", page),
];

const PACKED: &str = "packed/compressed.safetensors";

const fn target(
    name: &'static str,
    prepare: fn(&Path) -> Result<()>,
    file: &'static str,
    run: fn(&Path) -> Result<()>,
) -> Target {
    Target { name, prepare, file, mend: |_| (), run }
}

/// Some tokens from a model.
fn tokens(model: &Path, adapter: Option<&Path>) -> Result<()> {
    Inference::open(model, adapter, "cpu")?.generate("the cat", 3).map(|_| ())
}

fn model(root: &Path) -> Result<()> {
    tokens(&root.join("model"), None)
}

/// A configuration alone may state any size, and plans are made of it before weights are there.
fn config(root: &Path) -> Result<()> {
    let dir = root.join("model");
    let config = ModelConfig::load(&dir)?;
    let shape = config.shape();
    for layer in 0..config.num_hidden_layers {
        for projection in edge_scheduler::Projection::ALL {
            ensure!(!config.weight_place(layer, projection).rows.is_empty(), "no rows");
            let (rows, cols) = shape.projection(projection);
            ensure!(rows.checked_mul(cols).is_some() || rows > 1 << 8, "sizes are bounded");
        }
    }
    Source::open(&dir)?;
    model(root)
}

fn tokenizer(root: &Path) -> Result<()> {
    let dir = root.join("model");
    let tokenizer = Tokenizer::load(&dir)?;
    for text in [TEXT, "", "a", "caf\u{e9} \u{1f600}\u{0}\t 123", &"ab ".repeat(500)] {
        let ids = tokenizer.encode(text, true)?;
        let (spanned, spans) = tokenizer.encode_spans(text)?;
        ensure!(spanned.len() == spans.len(), "a span for each id");
        tokenizer.decode(&ids)?;
        tokenizer.decode_all(&ids)?;
        let mut stream = tokenizer.stream(&ids)?;
        for id in ids.iter().take(20) {
            stream.push(*id)?;
        }
        stream.finish()?;
    }
    tokenizer.check_vocab(1 << 20)?;
    dataset(root, "a.txt", None)?;
    dataset(root, "a.jsonl", None)
}

fn dataset(root: &Path, file: &str, columns: Option<Columns>) -> Result<()> {
    let tokenizer = Tokenizer::load(&root.join("model"))?;
    let spec = DataSpec {
        data: vec![root.join(file)],
        val_fraction: 0.3,
        columns,
        quiet: true,
        ..DataSpec::default()
    };
    Dataset::load(&spec, &tokenizer)?;
    load_eval(&spec, &tokenizer).map(|_| ())
}

fn text(root: &Path) -> Result<()> {
    dataset(root, "a.txt", None)
}

fn jsonl(root: &Path) -> Result<()> {
    // Columns change what is there, and may all be absent.
    let columns = "prompt=completion,completion=prompt".parse().map_err(anyhow::Error::msg)?;
    let _ = dataset(root, "a.jsonl", Some(columns));
    dataset(root, "a.jsonl", None)
}

fn json(root: &Path) -> Result<()> {
    dataset(root, "a.json", None)
}

fn choices(root: &Path) -> Result<()> {
    let tokenizer = Tokenizer::load(&root.join("model"))?;
    let read = Choices::load(&root.join("choices.jsonl"), &tokenizer, 16, None)?;
    let scores = vec![0.0; read.stream.examples.len()];
    ensure!((0.0..=1.0).contains(&read.accuracy(&scores)), "a share");
    Ok(())
}

fn policy(root: &Path) -> Result<()> {
    let policy = policy_file::read(&root.join("packed/policy.json"), 2)?;
    let text = policy_file::to_json(&policy, true)?;
    ensure!(policy_file::parse(&text, "again", 2)? == policy, "a policy is read as it is written");
    Ok(())
}

fn packed(root: &Path) -> Result<()> {
    let dir = root.join("packed");
    // As written by the mended file itself, or a contradiction.
    let policy = dir.join("policy.json");
    if policy.exists() {
        std::fs::remove_file(policy)?;
    }
    tokens(&dir, None)
}

/// Recomputes the checksums of data and header, which an attacker would as well.
fn mend_packed(bytes: &mut [u8]) {
    let Some(len) = bytes.first_chunk().map(|len| u64::from_le_bytes(*len) as usize) else {
        return;
    };
    let Some(data) = bytes.get(8..).and_then(|rest| rest.get(len..)).map(<[u8]>::to_vec) else {
        return;
    };
    let text = String::from_utf8_lossy(&bytes[8..8 + len]).into_owned();
    let Ok(header) = serde_json::from_str::<Value>(&text) else { return };
    let end = |name: &str| header[name]["data_offsets"][1].as_u64().map(|end| end as usize);
    let ends = [end("padding.0"), end("padding.1"), Some(data.len())];
    let mut start = 0;
    let mut sums = Vec::new();
    for end in ends.into_iter().flatten() {
        let Some(section) = data.get(start..end) else { return };
        sums.push(format!("{:08x}", crc32fast::hash(section)));
        start = end;
    }
    for (key, value) in [("data_crc32", sums.join(" ")), ("header_crc32", "00000000".into())] {
        put(bytes, len, key, &value);
    }
    let own = format!("{:08x}", crc32fast::hash(&bytes[8..8 + len]));
    put(bytes, len, "header_crc32", &own);
}

/// Replaces the text under a key of the header by one of the same length.
fn put(bytes: &mut [u8], len: usize, key: &str, value: &str) {
    let key = format!("\"{key}\":\"");
    let header = &mut bytes[8..8 + len];
    let at = header.windows(key.len()).position(|part| part == key.as_bytes());
    let place = at.and_then(|at| header.get_mut(at + key.len()..)?.get_mut(..value.len()));
    if let Some(place) = place {
        place.copy_from_slice(value.as_bytes());
    }
}

fn gguf(root: &Path) -> Result<()> {
    let path = root.join("model.gguf");
    gguf::folder::companions(&path)?;
    tokens(&path, None)
}

fn adapter(root: &Path) -> Result<()> {
    tokens(&root.join("model"), Some(&root.join("run")))
}

fn run(root: &Path) -> Result<()> {
    let run = root.join("run");
    let source = Source::open(&root.join("model"))?;
    let tuned = Tuned::run(&run, &source.config)?;
    Inference::new(folders::device()?, source, tuned).generate("the cat", 3).map(|_| ())
}

fn resolved(root: &Path) -> Result<()> {
    run_options(&root.join("run")).map(|_| ())
}

fn options(root: &Path) -> Result<()> {
    TuneFlags::load(&root.join("run/config.resolved.yaml"))?.resolve().map(|_| ())
}

fn methods(root: &Path) -> Result<()> {
    let (flags, mut overrides) = load_config(&root.join("run/config.resolved.yaml"))?;
    overrides.set("edge.lr=3e-3")?;
    let entries = parse_entries(&["edge".to_owned(), "lora".to_owned()])?;
    overrides.check(&entries)?;
    for entry in &entries {
        overrides.of(entry)?.or(flags.clone()).resolve()?;
    }
    Ok(())
}

fn page(root: &Path) -> Result<()> {
    let run = root.join("run");
    report::write(&run)?;
    let page = std::fs::read_to_string(run.join(report::FILE)).context("the page")?;
    ensure!(page.ends_with("</html>\n"), "the page is whole");
    Ok(())
}
