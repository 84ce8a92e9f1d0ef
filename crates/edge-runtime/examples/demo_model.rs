//! Writes what the demo model is made from: `demo_model OUT_DIR`.
//!
//! `OUT_DIR/start` is a model folder with random weights and a tokenizer trained on the texts;
//! `OUT_DIR/pretrain.txt`, `adapt_train.txt` and `adapt_valid.txt` are the texts. `cargo xtask
//! demo-model` calls this and then pre-trains the model with this project's own `full` method.

mod checkpoint;

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context, Result, anyhow, ensure};
use clap::Parser;
use edge_runtime::demo::grammar::{Style, text};
use serde_json::{Value, json};
use tokenizers::models::TrainerWrapper;
use tokenizers::models::bpe::{BPE, BpeTrainer};
use tokenizers::pre_tokenizers::byte_level::ByteLevel;
use tokenizers::{AddedToken, Tokenizer};

use checkpoint::{Element, Shape};

/// Ends a document; the one special token, id 0.
const END: &str = "<|endoftext|>";
const VOCABULARY: usize = 512;
const POSITIONS: usize = 512;

/// Texts: file, style, seed, bytes.
const TEXTS: [(&str, Style, u64, usize); 3] = [
    ("pretrain.txt", Style::Story, 1, 600_000),
    ("adapt_train.txt", Style::Log, 2, 60_000),
    ("adapt_valid.txt", Style::Log, 3, 8_000),
];

/// The start of the demo model, and its texts.
#[derive(Parser)]
struct Args {
    /// Folder to write, made if missing.
    out_dir: PathBuf,
}

fn main() -> ExitCode {
    checkpoint::exit_code(make(&Args::parse().out_dir))
}

fn make(out: &Path) -> Result<()> {
    let start = out.join("start");
    std::fs::create_dir_all(&start)
        .with_context(|| format!("cannot make {}: give a folder", start.display()))?;
    let texts = TEXTS.map(|(name, style, seed, bytes)| (name, text(style, seed, bytes)));
    for (name, text) in &texts {
        write(&out.join(name), text.as_bytes())?;
    }
    // As much of one style as of the other, so that the one to adapt to is not spelt in single
    // letters; nothing of the validation text.
    let tokenizer = train_tokenizer(&[&text(Style::Story, 1, texts[1].1.len()), &texts[1].1])?;
    let path = start.join("tokenizer.json");
    tokenizer.save(&path, true).map_err(|error| anyhow!("{}: {error}", path.display()))?;
    write_json(&start.join("tokenizer_config.json"), &tokenizer_config())?;
    let config = config();
    write_json(&start.join("config.json"), &config)?;
    let path = start.join("model.safetensors");
    let shape = Shape::interpret(&config, &start.join("config.json"))?;
    let parameters = shape.write(&path, Element::Bf16, 1)?;
    eprintln!("{}: {parameters} parameters", path.display());
    Ok(())
}

/// Byte-level BPE of exactly [`VOCABULARY`] tokens.
fn train_tokenizer(texts: &[&str]) -> Result<Tokenizer> {
    let mut tokenizer = Tokenizer::new(BPE::default());
    let byte_level = ByteLevel::default().add_prefix_space(false);
    tokenizer.with_pre_tokenizer(Some(byte_level));
    tokenizer.with_decoder(Some(byte_level));
    let trainer = BpeTrainer::builder()
        .vocab_size(VOCABULARY)
        .show_progress(false)
        .special_tokens(vec![AddedToken::from(END, true)])
        .initial_alphabet(ByteLevel::alphabet().into_iter().collect())
        .build();
    tokenizer
        .train(&mut TrainerWrapper::from(trainer), texts.iter().flat_map(|text| text.lines()))
        .map_err(|error| anyhow!("training the tokenizer: {error}"))?;
    let size = tokenizer.get_vocab_size(true);
    ensure!(size == VOCABULARY, "the tokenizer has {size} tokens instead of {VOCABULARY}");
    ensure!(tokenizer.token_to_id(END) == Some(0), "{END} is not token 0");
    Ok(tokenizer)
}

fn tokenizer_config() -> Value {
    json!({
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": END,
        "eos_token": END,
        "model_max_length": POSITIONS,
        "clean_up_tokenization_spaces": false,
        "added_tokens_decoder": {
            "0": {
                "content": END,
                "lstrip": false,
                "normalized": false,
                "rstrip": false,
                "single_word": false,
                "special": true
            }
        }
    })
}

fn config() -> Value {
    json!({
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_size": 128,
        "intermediate_size": 352,
        "num_hidden_layers": 6,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 32,
        "hidden_act": "silu",
        "vocab_size": VOCABULARY,
        "max_position_embeddings": POSITIONS,
        "rope_theta": 10000.0,
        "rope_scaling": null,
        "rms_norm_eps": 1e-5,
        "tie_word_embeddings": true,
        "attention_bias": false,
        "attention_dropout": 0.0,
        "mlp_bias": false,
        "initializer_range": 0.02,
        "bos_token_id": 0,
        "eos_token_id": 0,
        "torch_dtype": "bfloat16",
        "use_cache": true
    })
}

fn write_json(path: &Path, value: &Value) -> Result<()> {
    let mut text = serde_json::to_string_pretty(value)?;
    text.push('\n');
    write(path, text.as_bytes())
}

fn write(path: &Path, contents: &[u8]) -> Result<()> {
    std::fs::write(path, contents)
        .with_context(|| format!("cannot write {}: check space and rights", path.display()))
}
