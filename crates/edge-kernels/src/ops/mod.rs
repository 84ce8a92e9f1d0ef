//! The operations, one file each, and the registry that tests, benches and checks loop over.

pub mod activation;
pub mod attention;
pub mod embedding;
pub mod loss;
pub mod matmul;
pub mod memory;
pub mod norm;
pub mod optim;
pub mod pack;
pub mod probe;
pub(crate) mod product;

use crate::op::Op;

/// Every op of the project. Adding one here is the only edit outside its own two files.
pub static OPS: &[&dyn Op] = &[
    &matmul::matmul_nn::MatmulNn,
    &matmul::matmul_nt::MatmulNt,
    &matmul::matmul_nt_lora::MatmulNtLora,
    &matmul::matmul_nt_swiglu::MatmulNtSwiglu,
    &matmul::matmul_tn::MatmulTn,
    &matmul::sum_partials::SumPartials,
    &norm::rms_norm_forward::RmsNormForward,
    &norm::residual_rms_norm::ResidualRmsNorm,
    &norm::rms_norm_backward::RmsNormBackward,
    &norm::rms_norm_grad::RmsNormGrad,
    &activation::residual_add::ResidualAdd,
    &activation::bias_add::BiasAdd,
    &activation::bias_grad::BiasGrad,
    &activation::geglu_forward::GegluForward,
    &activation::geglu_backward::GegluBackward,
    &activation::swiglu_forward::SwigluForward,
    &activation::swiglu_backward::SwigluBackward,
    &attention::rope::Rope,
    &attention::attention_forward::AttentionForward,
    &attention::attention_delta::AttentionDelta,
    &attention::attention_backward_q::AttentionBackwardQ,
    &attention::attention_backward_kv::AttentionBackwardKv,
    &embedding::embedding_gather::EmbeddingGather,
    &embedding::embedding_scatter::EmbeddingScatter,
    &memory::copy::Copy,
    &memory::fill::Fill,
    &loss::cross_entropy_forward::CrossEntropyForward,
    &loss::cross_entropy_backward::CrossEntropyBackward,
    &loss::cross_entropy_loss::CrossEntropyLoss,
    &loss::kl_divergence::KlDivergence,
    &loss::vote_combine::VoteCombine,
    &loss::vote_reduce::VoteReduce,
    &optim::sum_squares::SumSquares,
    &optim::grad_norm_scale::GradNormScale,
    &optim::adamw::Adamw,
    &optim::adamw_8bit::Adamw8bit,
    &pack::gather_2_4::Gather24,
    &pack::prune_2_4::Prune24,
    &pack::quantize_pack::QuantizePack,
    &probe::fma_rate::FmaRate,
];

/// The op of this name.
pub fn find(name: &str) -> Option<&'static dyn Op> {
    OPS.iter().copied().find(|op| op.name() == name)
}
