//! Model families as GGUF files name them. A further one is a row, where the runtime computes it.

/// What differs between families.
#[derive(Debug)]
pub struct Family {
    /// `general.architecture`, and the first part of the keys of its sizes.
    pub gguf: &'static str,
    /// `architectures` of `config.json`; the first is what a file is read as.
    pub huggingface: &'static [&'static str],
    /// `model_type` of `config.json`.
    pub model_type: &'static str,
    /// Whether rows of query and key are interleaved (`LLAMA_ROPE_TYPE_NORM`).
    pub interleaved: bool,
    /// Tensors of a block beside [`BLOCK`](super::names::BLOCK), by both names.
    pub extra: &'static [(&'static str, &'static str)],
}

/// Those that are read and written. Whether the runtime computes one, `config.rs` says. Not here
/// are those whose tensors are changed by more than name and order of rows: gemma3 (norms plus
/// one) and phi3 (fused projections).
pub static FAMILIES: [Family; 3] = [
    Family {
        gguf: "llama",
        huggingface: &["LlamaForCausalLM", "MistralForCausalLM"],
        model_type: "llama",
        interleaved: true,
        extra: &[],
    },
    Family {
        gguf: "qwen2",
        huggingface: &["Qwen2ForCausalLM"],
        model_type: "qwen2",
        interleaved: false,
        extra: &[
            ("attn_q.bias", "self_attn.q_proj.bias"),
            ("attn_k.bias", "self_attn.k_proj.bias"),
            ("attn_v.bias", "self_attn.v_proj.bias"),
        ],
    },
    Family {
        gguf: "qwen3",
        huggingface: &["Qwen3ForCausalLM"],
        model_type: "qwen3",
        interleaved: false,
        extra: &[
            ("attn_q_norm.weight", "self_attn.q_norm.weight"),
            ("attn_k_norm.weight", "self_attn.k_norm.weight"),
        ],
    },
];

impl Family {
    /// By `general.architecture`.
    pub fn of_gguf(name: &str) -> Option<&'static Self> {
        FAMILIES.iter().find(|family| family.gguf == name)
    }

    /// By an entry of `architectures`.
    pub fn of_huggingface(name: &str) -> Option<&'static Self> {
        FAMILIES.iter().find(|family| family.huggingface.contains(&name))
    }

    /// A key of this family.
    pub fn key(&self, name: &str) -> String {
        format!("{}.{name}", self.gguf)
    }
}
