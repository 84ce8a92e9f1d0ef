//! The operations, one file each, and the registry that tests, benches and checks loop over.

pub mod loss;
pub mod matmul;
pub mod norm;
pub mod optim;

use crate::op::Op;

/// Every op of the project. Adding one here is the only edit outside its own two files.
pub static OPS: &[&dyn Op] = &[
    &matmul::matmul_nn::MatmulNn,
    &matmul::matmul_nt::MatmulNt,
    &matmul::matmul_tn::MatmulTn,
    &matmul::sum_partials::SumPartials,
    &norm::rms_norm_forward::RmsNormForward,
    &loss::cross_entropy_forward::CrossEntropyForward,
    &loss::cross_entropy_backward::CrossEntropyBackward,
    &loss::cross_entropy_loss::CrossEntropyLoss,
    &loss::vote_combine::VoteCombine,
    &loss::vote_reduce::VoteReduce,
    &optim::sum_squares::SumSquares,
    &optim::grad_norm_scale::GradNormScale,
    &optim::adamw::Adamw,
];

/// The op of this name.
pub fn find(name: &str) -> Option<&'static dyn Op> {
    OPS.iter().copied().find(|op| op.name() == name)
}
