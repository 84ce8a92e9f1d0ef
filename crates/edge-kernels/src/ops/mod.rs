//! The operations, one file each, and the registry that tests, benches and checks loop over.

pub mod matmul;
pub mod norm;

use crate::op::Op;

/// Every op of the project. Adding one here is the only edit outside its own two files.
pub static OPS: &[&dyn Op] = &[
    &matmul::matmul_nn::MatmulNn,
    &matmul::matmul_nt::MatmulNt,
    &matmul::matmul_tn::MatmulTn,
    &matmul::sum_partials::SumPartials,
    &norm::rms_norm_forward::RmsNormForward,
];

/// The op of this name.
pub fn find(name: &str) -> Option<&'static dyn Op> {
    OPS.iter().copied().find(|op| op.name() == name)
}
