//! Mistral: Llama, with an optional sliding window in all blocks.

use edge_scheduler::Extras;

use super::{Activation, Defaults, Family, Windows};

/// `MistralForCausalLM`; absent keys as in transformers' `MistralConfig`.
pub(super) static MISTRAL: Family = Family {
    name: "Mistral",
    architecture: "MistralForCausalLM",
    defaults: Defaults {
        head_dim: None,
        num_key_value_heads: Some(8),
        max_position_embeddings: 131_072,
        rms_norm_eps: 1e-6,
        rope_theta: 1e4,
        sliding_window: Some(4096),
        tie_word_embeddings: false,
        query_pre_attn_scalar: None,
        bos_token_id: Some(1),
        eos_token_id: Some(2),
    },
    extras: Extras::NONE,
    windows: Windows::All,
    activation: Activation::Silu,
    mlp_norm: "post_attention_layernorm",
    norm_offset: 0.0,
    scaled_embedding: false,
    fused: &[],
};
