//! Phi-3: Llama, whose checkpoints hold q, k and v in one matrix, and gate and up in another. An
//! adapter on one of these has one `A` for all of its parts.

use edge_scheduler::{Extras, Projection};

use super::{Activation, Defaults, Family, Fused, Windows};

/// `Phi3ForCausalLM`; absent keys as in transformers' `Phi3Config`.
pub(super) static PHI3: Family = Family {
    name: "Phi-3",
    architecture: "Phi3ForCausalLM",
    defaults: Defaults {
        head_dim: None,
        num_key_value_heads: None,
        max_position_embeddings: 4096,
        rms_norm_eps: 1e-5,
        rope_theta: 1e4,
        sliding_window: None,
        tie_word_embeddings: false,
        query_pre_attn_scalar: None,
        bos_token_id: Some(1),
        eos_token_id: Some(32_000),
    },
    extras: Extras { fused: true, ..Extras::NONE },
    windows: Windows::All,
    activation: Activation::Silu,
    mlp_norm: "post_attention_layernorm",
    norm_offset: 0.0,
    scaled_embedding: false,
    fused: &[
        Fused { path: "self_attn.qkv_proj", parts: &[Projection::Q, Projection::K, Projection::V] },
        Fused { path: "mlp.gate_up_proj", parts: &[Projection::Gate, Projection::Up] },
    ],
};
