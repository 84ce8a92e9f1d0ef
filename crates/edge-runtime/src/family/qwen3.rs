//! Qwen3: Llama, with a norm of each head of q and k before the rotation.

use edge_scheduler::Extras;

use super::{Activation, Defaults, Family, Windows};

/// `Qwen3ForCausalLM`; absent keys as in transformers' `Qwen3Config`.
pub(super) static QWEN3: Family = Family {
    name: "Qwen3",
    architecture: "Qwen3ForCausalLM",
    defaults: Defaults {
        head_dim: Some(128),
        num_key_value_heads: Some(32),
        max_position_embeddings: 32_768,
        rms_norm_eps: 1e-6,
        rope_theta: 1e4,
        sliding_window: Some(4096),
        tie_word_embeddings: false,
        query_pre_attn_scalar: None,
        bos_token_id: None,
        eos_token_id: None,
    },
    extras: Extras { head_norms: true, ..Extras::NONE },
    windows: Windows::ByFlag,
    activation: Activation::Silu,
    mlp_norm: "post_attention_layernorm",
    norm_offset: 0.0,
    scaled_embedding: false,
    fused: &[],
};
