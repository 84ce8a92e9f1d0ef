//! Helpers of this crate's unit tests.

use std::path::PathBuf;

use serde_json::json;

use crate::config::ModelConfig;

/// The folder of real checkpoints and texts; `None`, with a line on stderr, where it is absent.
pub(crate) fn shared() -> Option<PathBuf> {
    let root = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../..");
    // A git worktree may lie one directory deeper than the checkout itself.
    for place in ["../shared", "../../shared"] {
        if root.join(place).join("assets").exists() {
            return Some(root.join(place));
        }
    }
    eprintln!("skipped: no ../shared");
    None
}

/// A `config.json` of a model of 2 blocks, hidden size 8, 4 heads over 2 key-value heads.
pub(crate) fn tiny_config_json() -> serde_json::Value {
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
pub(crate) fn message<T>(result: anyhow::Result<T>) -> String {
    match result {
        Ok(_) => panic!("this had to be refused"),
        Err(error) => format!("{error:#}"),
    }
}
