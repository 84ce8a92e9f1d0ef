//! Helpers of this crate's unit tests.

use std::path::PathBuf;

use anyhow::Result;
use serde_json::{Value, json};

use crate::config::ModelConfig;
use crate::tokenizer::Tokenizer;

/// The folder of real checkpoints and texts; `None`, with a line on stderr, where it is absent.
pub(crate) fn shared() -> Option<PathBuf> {
    let root = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../..");
    // A git worktree may lie one directory deeper than the checkout itself.
    for place in ["../shared", "../../shared"] {
        if root.join(place).join("assets").exists() {
            return Some(root.join(place));
        }
    }
    // Not by `eprintln!`, which nobody sees of a test that passes.
    use std::io::Write as _;
    let thread = std::thread::current();
    let _ = writeln!(std::io::stderr(), "skipped: {}: no ../shared", thread.name().unwrap_or(""));
    None
}

/// A `config.json` of a model of 2 blocks, hidden size 8, 4 heads over 2 key-value heads.
pub(crate) fn tiny_config_json() -> Value {
    json!({
        "architectures": ["LlamaForCausalLM"], "vocab_size": 32, "hidden_size": 8,
        "intermediate_size": 12, "num_hidden_layers": 2, "num_attention_heads": 4,
        "num_key_value_heads": 2, "max_position_embeddings": 64
    })
}

/// [`tiny_config_json`], parsed.
pub(crate) fn tiny_config() -> ModelConfig {
    ModelConfig::from_value(&tiny_config_json(), "config.json".as_ref()).unwrap()
}

/// The error of a result that must have failed, with its whole chain of causes.
pub(crate) fn message<T>(result: Result<T>) -> String {
    match result {
        Ok(_) => panic!("this had to be refused"),
        Err(error) => format!("{error:#}"),
    }
}

/// Bytes as single tokens, no merges, `<s>` before a text.
pub(crate) fn byte_tokenizer(settings: Option<Value>) -> (tempfile::TempDir, Result<Tokenizer>) {
    let dir = tempfile::tempdir().unwrap();
    let mut vocab = serde_json::Map::new();
    for token in ["<unk>", "<s>", "</s>"] {
        vocab.insert(token.to_owned(), json!(vocab.len()));
    }
    for byte in 0..256 {
        vocab.insert(format!("<0x{byte:02X}>"), json!(byte + 3));
    }
    let special = |id: u32, content: &str| {
        json!({"id": id, "content": content, "special": true, "single_word": false,
               "lstrip": false, "rstrip": false, "normalized": false})
    };
    let file = json!({
        "version": "1.0", "truncation": null, "padding": null,
        "added_tokens": [special(0, "<unk>"), special(1, "<s>"), special(2, "</s>")],
        "normalizer": null, "pre_tokenizer": null,
        "post_processor": {"type": "TemplateProcessing",
            "single": [{"SpecialToken": {"id": "<s>", "type_id": 0}},
                       {"Sequence": {"id": "A", "type_id": 0}}],
            "pair": [{"Sequence": {"id": "A", "type_id": 0}},
                     {"Sequence": {"id": "B", "type_id": 0}}],
            "special_tokens": {"<s>": {"id": "<s>", "ids": [1], "tokens": ["<s>"]}}},
        "decoder": {"type": "Sequence", "decoders": [{"type": "ByteFallback"}, {"type": "Fuse"}]},
        "model": {"type": "BPE", "unk_token": "<unk>", "byte_fallback": true, "fuse_unk": true,
                  "vocab": vocab, "merges": []}
    });
    std::fs::write(dir.path().join("tokenizer.json"), file.to_string()).unwrap();
    if let Some(settings) = settings {
        std::fs::write(dir.path().join("tokenizer_config.json"), settings.to_string()).unwrap();
    }
    let tokenizer = Tokenizer::load(dir.path());
    (dir, tokenizer)
}
