//! Normalisation.

pub mod residual_rms_norm;
pub mod rms_norm_backward;
pub mod rms_norm_forward;
pub mod rms_norm_grad;
