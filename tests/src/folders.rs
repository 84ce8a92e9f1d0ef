//! Folders of valid files, small, as the program itself writes them.

use std::path::Path;

use anyhow::{Context, Result};
use edge_gpu::{Device, Options};
use edge_kernels::pack::pack;
use edge_kernels::{Format, Packing, Sparsity};
use edge_runtime::checkpoint::Dtype;
use edge_runtime::compress::header::About;
use edge_runtime::compress::write::Writer;
use edge_runtime::family::names::weight_name;
use edge_runtime::gguf::types::Type;
use edge_runtime::session::{Source, Tuned};
use edge_runtime::{Tuner, gguf};
use edge_scheduler::{BlockPolicy, Policy, Projection};
use serde_json::{Map, Value, json};

use crate::tiny;

/// A text in the letters of `tokenizer`.
pub const TEXT: &str = "the cat sat on the mat\nthe dog and the hat\n\na rat sat on that cat\n";

/// A tokenizer of bytes with a few merges, in the manner of GPT-2.
fn tokenizer() -> Value {
    let mut vocab = Map::new();
    let mut add = |token: &str| {
        let id = vocab.len();
        vocab.insert(token.to_owned(), json!(id));
    };
    ["<s>", "</s>"].into_iter().for_each(&mut add);
    // A space and a line break as bytes are written there.
    for letter in ('a'..='z').chain(['\u{120}', '\u{10A}', '.', '{', '}', '"', ':', '<', '>']) {
        add(&letter.to_string());
    }
    ["th", "the", "at"].into_iter().for_each(&mut add);
    let special = |id: usize, content: &str| {
        json!({"id": id, "content": content, "special": true, "single_word": false,
               "lstrip": false, "rstrip": false, "normalized": false})
    };
    json!({
        "version": "1.0", "truncation": null, "padding": null,
        "added_tokens": [special(0, "<s>"), special(1, "</s>")],
        "normalizer": null,
        "pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true,
                          "use_regex": true},
        "post_processor": null,
        "decoder": {"type": "ByteLevel", "add_prefix_space": true, "trim_offsets": true,
                    "use_regex": true},
        "model": {"type": "BPE", "dropout": null, "unk_token": null, "fuse_unk": false,
                  "byte_fallback": false, "continuing_subword_prefix": null,
                  "end_of_word_suffix": null, "ignore_merges": false,
                  "vocab": vocab, "merges": [["t", "h"], ["th", "e"], ["a", "t"]]},
    })
}

/// A chat template that uses what templates use.
pub const TEMPLATE: &str = "{{ bos_token }}{% set ns = namespace(seen=0) %}\
    {% if tools %}{{ tools | tojson(indent=2) }}{% endif %}\
    {% for m in messages %}{% if m.role == 'user' and loop.first %}\
    {% set ns.seen = ns.seen + 1 %}{% endif %}\
    {{ '<' ~ m['role'] + '>' + m.content | trim + eos_token }}\n{% endfor %}\
    {% if add_generation_prompt %}<assistant>{% endif %}";

/// `model/`: a Llama of two blocks with its tokenizer.
///
/// # Errors
/// The folder cannot be written.
pub fn model(root: &Path) -> Result<()> {
    model_of(root, 8, 12)
}

fn model_of(root: &Path, hidden: usize, intermediate: usize) -> Result<()> {
    let dir = root.join("model");
    std::fs::create_dir_all(&dir)?;
    let mut config = tiny::config();
    let mut set = |key: &str, value: Value| config[key] = value;
    set("vocab_size", json!(48));
    set("hidden_size", json!(hidden));
    set("intermediate_size", json!(intermediate));
    set("num_hidden_layers", json!(2));
    set("num_attention_heads", json!(2));
    set("num_key_value_heads", json!(1));
    set("head_dim", json!(hidden / 2));
    set("tie_word_embeddings", json!(true));
    tiny::write_config(&dir, &config, 1)?;
    std::fs::write(dir.join("tokenizer.json"), tokenizer().to_string())?;
    let settings = json!({"bos_token": "<s>", "eos_token": "</s>", "add_bos_token": true,
                          "chat_template": TEMPLATE});
    std::fs::write(dir.join("tokenizer_config.json"), settings.to_string())?;
    Ok(())
}

/// `model/` with an index instead of one file: `a.safetensors` and the list of its tensors.
///
/// # Errors
/// The folder cannot be written.
pub fn sharded(root: &Path) -> Result<()> {
    model(root)?;
    let dir = root.join("model");
    let names: Map<String, Value> = source(root)?
        .checkpoint
        .names()
        .map(|name| (name.into(), json!("a.safetensors")))
        .collect();
    std::fs::rename(dir.join("model.safetensors"), dir.join("a.safetensors"))?;
    let index = json!({"metadata": {"total_size": 1}, "weight_map": names});
    std::fs::write(dir.join("model.safetensors.index.json"), index.to_string())?;
    Ok(())
}

/// `model/`, and data of each form: `a.txt`, `a.jsonl`, `a.json`, `choices.jsonl`.
///
/// # Errors
/// The folder cannot be written.
pub fn data(root: &Path) -> Result<()> {
    model(root)?;
    let talk = json!({"messages": [
        {"role": "system", "content": "be a cat"},
        {"role": "user", "content": "what sat"},
        {"role": "assistant", "content": "the cat", "tool_calls": [
            {"function": {"name": "f", "arguments": "{\"a\": [1]}"}}]},
        {"role": "tool", "content": "a mat"},
        {"role": "assistant", "content": "the mat"}], "tools": [{"type": "function"}]});
    let items = [
        talk,
        json!({"conversations": [{"from": "human", "value": "a"}, {"from": "gpt", "value": "b"}]}),
        json!({"prompt": "the", "completion": " cat"}),
        json!({"question": "what", "answer": "that"}),
        json!({"instruction": "sit", "input": "here", "output": "no"}),
        json!({"instruction": "sit", "output": "no"}),
    ];
    let lines: Vec<String> = items.iter().map(Value::to_string).collect();
    std::fs::write(root.join("a.jsonl"), lines.join("\n"))?;
    std::fs::write(root.join("a.json"), json!(items).to_string())?;
    std::fs::write(root.join("a.txt"), TEXT)?;
    std::fs::write(root.join("model/chat_template.jinja"), TEMPLATE)?;
    let choices = [
        json!({"question": "what sat", "choices": ["the cat", "the mat"], "answer": 0}),
        json!({"question": "what sat", "choices": ["the cat", "the mat"], "answer": "B"}),
        json!({"input": "what?\nA. cat\nB. mat", "output": "A"}),
    ];
    let lines: Vec<String> = choices.iter().map(Value::to_string).collect();
    std::fs::write(root.join("choices.jsonl"), lines.join("\n"))?;
    Ok(())
}

/// `model/`, and `run/` as two steps of tuning leave it.
///
/// # Errors
/// The run fails.
pub fn run(root: &Path) -> Result<()> {
    data(root)?;
    let tuner = Tuner::builder()
        .model(root.join("model"))
        .data(root.join("a.txt"))
        .val_fraction(0.3)
        .device("cpu")
        .steps(2)
        .seq_len(8)
        .batch_size(1)
        .windows(2)
        .rank(2)
        .options(|options| options.exit_rank = 2)
        .out(root.join("run"));
    tuner.build()?.run()?;
    Ok(())
}

/// `model/`, and `packed/` in several formats.
///
/// # Errors
/// The folder cannot be written.
pub fn packed(root: &Path) -> Result<()> {
    model_of(root, 32, 32)?;
    let source = source(root)?;
    let grouped = Packing::new(4).sparsity(Sparsity::RowGrouped);
    let formats = [Format::two_four(3), grouped.format()];
    let mut blocks: Vec<_> = formats.map(BlockPolicy::uniform).into();
    blocks[0].overrides[Projection::Down.index()] = Some(Format::row_grouped(16));
    blocks[0].overrides[Projection::Up.index()] = Some(Format::Q2);
    blocks[1].overrides[Projection::Q.index()] = Some(Format::Q8);
    blocks[1].overrides[Projection::K.index()] = Some(Format::Bf16);
    let policy = Policy { name: "own".into(), blocks };
    let about = About {
        policy: policy.clone(),
        embedding: Format::F16,
        head: Format::F16,
        calibration_hash: "0".into(),
        source_hash: "0".into(),
        program_version: "0".into(),
    };
    let dir = root.join("packed");
    let mut writer = Writer::create(&dir, &source, about)?;
    for (block, rule) in policy.blocks.iter().enumerate() {
        let matrix = |projection| -> Result<_> {
            let (n, k) = source.config.shape().projection(projection);
            let tensor = source.checkpoint.tensor(&weight_name(block, projection))?;
            Ok(pack(rule.get(projection), n, k, &tensor.to_f32()?))
        };
        let matrices = Projection::ALL.into_iter().map(matrix).collect::<Result<Vec<_>>>()?;
        writer.block(&matrices)?;
    }
    writer.finish()?;
    Ok(())
}

/// `model/`, and `model.gguf` made of it.
///
/// # Errors
/// The file cannot be written.
pub fn gguf_file(root: &Path) -> Result<()> {
    model(root)?;
    let path = root.join("model.gguf");
    let kind = Type::Plain(Dtype::F16);
    gguf::export::model(&source(root)?, &Tuned::default(), &path, kind, &|| ())?;
    Ok(())
}

fn source(root: &Path) -> Result<Source> {
    Source::open(&root.join("model"))
}

/// The device that everything runs on.
///
/// # Errors
/// It does not open.
pub fn device() -> Result<Device> {
    Device::open("cpu", &Options::default()).context("the device cpu")
}
