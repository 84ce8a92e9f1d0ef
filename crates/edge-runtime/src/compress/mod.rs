//! Layer-wise compression: from a checkpoint to packed weights.
//!
//! * [`calibrate`] — a model run block by block on calibration text: inputs, errors, sensitivity.
//! * [`policy_file`] — a policy as JSON that a person can edit.
//! * [`header`] — what a compressed checkpoint says of itself.
//! * [`layout`] — what is where in a compressed checkpoint.
//! * [`mod@write`] — a compressed model folder, block by block.
//! * [`read`] — the same, mapped and checked.
//! * [`solve`] — a weight matrix, pruned and quantised together.

pub mod calibrate;
pub mod header;
pub mod layout;
pub mod policy_file;
pub mod read;
pub mod solve;
pub mod write;

#[cfg(test)]
mod tests;
