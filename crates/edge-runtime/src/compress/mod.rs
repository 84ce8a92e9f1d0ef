//! Layer-wise compression: from a checkpoint to packed weights.
//!
//! * [`calibrate`] — a model run block by block on calibration text: inputs, errors, sensitivity.
//! * [`solve`] — one weight matrix, pruned and quantised.

pub mod calibrate;
pub mod solve;
