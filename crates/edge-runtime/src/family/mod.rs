//! Model families: what an architecture's blocks have beyond those of Llama, as data.
//!
//! One file states one architecture; the forward and backward pass, plans, files and adapters read
//! the fields. What a checkpoint calls its tensors is in [`names`].

mod gemma3;
mod llama;
mod mistral;
pub mod names;
mod phi3;
mod qwen2;
mod qwen3;

use edge_scheduler::{Extras, Projection};

pub use self::llama::LLAMA;

/// The families whose models can be run and tuned.
pub static ALL: &[&Family] =
    &[&llama::LLAMA, &mistral::MISTRAL, &qwen2::QWEN2, &qwen3::QWEN3, &phi3::PHI3, &gemma3::GEMMA3];

/// What the gate of an MLP goes through.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Activation {
    /// `silu`: SwiGLU.
    Silu,
    /// `gelu_pytorch_tanh`: GeGLU, GELU in its tanh approximation.
    GeluTanh,
}

impl Activation {
    /// As in `config.json`.
    pub fn name(self) -> &'static str {
        match self {
            Self::Silu => "silu",
            Self::GeluTanh => "gelu_pytorch_tanh",
        }
    }
}

/// Which blocks see a sliding window, where `layer_types` does not say it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Windows {
    /// None.
    Never,
    /// All, if `sliding_window` is set.
    All,
    /// With `use_sliding_window`, those from `max_window_layers` on.
    ByFlag,
    /// All but every `sliding_window_pattern`-th.
    Pattern,
}

/// Values of keys that `config.json` leaves out: transformers does not write what is a default.
#[derive(Clone, Debug, PartialEq)]
pub struct Defaults {
    /// `None`: hidden size over query heads.
    pub head_dim: Option<usize>,
    /// `None`: one key-value head for each query head.
    pub num_key_value_heads: Option<usize>,
    /// `max_position_embeddings`.
    pub max_position_embeddings: usize,
    /// `rms_norm_eps`.
    pub rms_norm_eps: f64,
    /// `rope_theta`.
    pub rope_theta: f64,
    /// `sliding_window`.
    pub sliding_window: Option<usize>,
    /// `tie_word_embeddings`.
    pub tie_word_embeddings: bool,
    /// `query_pre_attn_scalar`, for families that have it.
    pub query_pre_attn_scalar: Option<f64>,
    /// `bos_token_id`.
    pub bos_token_id: Option<u32>,
    /// `eos_token_id`.
    pub eos_token_id: Option<u32>,
}

/// A layer of the checkpoint whose rows are several projections, one below the other.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fused {
    /// The module path inside a block.
    pub path: &'static str,
    /// Its parts in the order of their rows.
    pub parts: &'static [Projection],
}

/// An architecture.
#[derive(Clone, Debug, PartialEq)]
pub struct Family {
    /// For people.
    pub name: &'static str,
    /// As in `architectures`.
    pub architecture: &'static str,
    /// Values of absent keys.
    pub defaults: Defaults,
    /// What decides sizes.
    pub extras: Extras,
    /// Which blocks see a window.
    pub windows: Windows,
    /// What the gate goes through.
    pub activation: Activation,
    /// The module that normalises what the MLP reads.
    pub mlp_norm: &'static str,
    /// Norms multiply by this and the stored weight; checkpoints hold the weight without it.
    pub norm_offset: f32,
    /// Embeddings are multiplied by the root of the hidden size.
    pub scaled_embedding: bool,
    /// Projections that are parts of one layer.
    pub fused: &'static [Fused],
}

/// The projections as layers of their own.
static SINGLE: [Projection; 7] = Projection::ALL;

impl Family {
    /// The family of this name in `architectures`.
    pub fn of(architecture: &str) -> Option<&'static Self> {
        ALL.iter().copied().find(|family| family.architecture == architecture)
    }

    /// The layer of the checkpoint that a projection is, or is a part of: its path inside a block
    /// and its parts.
    pub fn layer(&self, projection: Projection) -> Fused {
        let fused = self.fused.iter().copied().find(|fused| fused.parts.contains(&projection));
        fused.unwrap_or(Fused {
            path: projection.path(),
            parts: &SINGLE[projection.index()..=projection.index()],
        })
    }

    /// The linear layers of a block as the checkpoint has them.
    pub fn layers(&self) -> Vec<Fused> {
        let all = Projection::ALL.into_iter().map(|projection| self.layer(projection));
        let mut layers: Vec<Fused> = all.collect();
        layers.dedup();
        layers
    }
}

impl Fused {
    /// The last part of the path, as in PEFT's `target_modules`.
    pub fn name(&self) -> &'static str {
        self.path.rsplit('.').next().unwrap_or(self.path)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn layers_have_all_projections_once() {
        for family in ALL {
            let parts = family.layers().into_iter().flat_map(|layer| layer.parts.iter().copied());
            assert_eq!(parts.collect::<Vec<_>>(), Projection::ALL, "{}", family.name);
            assert_eq!(family.extras.fused, !family.fused.is_empty(), "{}", family.name);
            assert_eq!(Family::of(family.architecture), Some(*family));
        }
        assert_eq!(LLAMA.layer(Projection::Up).name(), "up_proj");
    }
}
