//! Llama 2 and 3.x, TinyLlama, SmolLM2: the blocks that all others are compared with.

use edge_scheduler::Extras;

use super::{Activation, Defaults, Family, Windows};

/// `LlamaForCausalLM`; absent keys as in transformers' `LlamaConfig`.
pub static LLAMA: Family = Family {
    name: "Llama",
    architecture: "LlamaForCausalLM",
    defaults: Defaults {
        head_dim: None,
        num_key_value_heads: None,
        max_position_embeddings: 2048,
        rms_norm_eps: 1e-6,
        rope_theta: 1e4,
        sliding_window: None,
        tie_word_embeddings: false,
        query_pre_attn_scalar: None,
        bos_token_id: Some(1),
        eos_token_id: Some(2),
    },
    extras: Extras::NONE,
    windows: Windows::Never,
    activation: Activation::Silu,
    mlp_norm: "post_attention_layernorm",
    norm_offset: 0.0,
    scaled_embedding: false,
    fused: &[],
};
