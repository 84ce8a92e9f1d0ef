//! Activation functions, biases and the residual sum.

pub mod bias_add;
pub mod bias_grad;
pub mod geglu_backward;
pub mod geglu_forward;
pub mod residual_add;
pub mod swiglu_backward;
pub mod swiglu_forward;
