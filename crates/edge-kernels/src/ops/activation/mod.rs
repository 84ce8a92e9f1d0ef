//! Activation functions and the residual sum.

pub mod residual_add;
pub mod swiglu_backward;
pub mod swiglu_forward;
