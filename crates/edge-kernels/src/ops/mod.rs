//! The operations, one file each, and the registry that tests, benches and checks loop over.

pub mod activation;
pub mod attention;
pub mod embedding;
pub mod memory;
pub mod norm;

use crate::op::Op;

/// Every op of the project. Adding one here is the only edit outside its own two files.
pub static OPS: &[&dyn Op] = &[
    &activation::residual_add::ResidualAdd,
    &activation::swiglu_backward::SwigluBackward,
    &activation::swiglu_forward::SwigluForward,
    &attention::attention_backward_kv::AttentionBackwardKv,
    &attention::attention_backward_q::AttentionBackwardQ,
    &attention::attention_delta::AttentionDelta,
    &attention::attention_forward::AttentionForward,
    &attention::rope::Rope,
    &embedding::embedding_gather::EmbeddingGather,
    &embedding::embedding_scatter::EmbeddingScatter,
    &memory::copy::Copy,
    &memory::fill::Fill,
    &norm::rms_norm_backward::RmsNormBackward,
    &norm::rms_norm_forward::RmsNormForward,
    &norm::rms_norm_grad::RmsNormGrad,
];

/// The op of this name.
pub fn find(name: &str) -> Option<&'static dyn Op> {
    OPS.iter().copied().find(|op| op.name() == name)
}
