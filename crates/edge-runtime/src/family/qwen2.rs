//! Qwen2 and Qwen2.5: Llama, with biases of q, k and v.

use edge_scheduler::Extras;

use super::{Activation, Defaults, Family, Windows};

/// `Qwen2ForCausalLM`; absent keys as in transformers' `Qwen2Config`.
pub(super) static QWEN2: Family = Family {
    name: "Qwen2",
    architecture: "Qwen2ForCausalLM",
    defaults: Defaults {
        head_dim: None,
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
    extras: Extras { qkv_bias: true, ..Extras::NONE },
    windows: Windows::ByFlag,
    activation: Activation::Silu,
    mlp_norm: "post_attention_layernorm",
    norm_offset: 0.0,
    scaled_embedding: false,
    fused: &[],
};
