//! Gemma 3, text: norms before and behind attention and MLP and of each head of q and k, all with
//! weights that are stored less 1; GeGLU; scaled embeddings; a sliding window with rotary angles of
//! its own in all blocks but every sixth.

use edge_scheduler::Extras;

use super::{Activation, Defaults, Family, Windows};

/// `Gemma3ForCausalLM`; absent keys as in transformers' `Gemma3TextConfig`.
pub(super) static GEMMA3: Family = Family {
    name: "Gemma 3",
    architecture: "Gemma3ForCausalLM",
    defaults: Defaults {
        head_dim: Some(256),
        num_key_value_heads: Some(4),
        max_position_embeddings: 131_072,
        rms_norm_eps: 1e-6,
        rope_theta: 1e6,
        sliding_window: Some(4096),
        tie_word_embeddings: true,
        query_pre_attn_scalar: Some(256.0),
        bos_token_id: Some(2),
        eos_token_id: Some(1),
    },
    extras: Extras { head_norms: true, branch_norms: true, local_rope: true, ..Extras::NONE },
    windows: Windows::Pattern,
    activation: Activation::GeluTanh,
    mlp_norm: "pre_feedforward_layernorm",
    norm_offset: 1.0,
    scaled_embedding: true,
    fused: &[],
};
