//! Normalisation.

pub mod rms_norm_forward;
