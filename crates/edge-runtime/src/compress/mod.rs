//! Layer-wise compression: from a checkpoint to packed weights.
//!
//! * [`run`] — a compression from beginning to end.
//! * [`options`] — what it is asked to do.
//! * [`choose`] — which policy: by name, from a file, or by measured errors.
//! * [`method`] — how a layer is compressed.
//! * [`calibrate`] — a model run block by block on calibration text: inputs, errors, sensitivity.
//! * [`packs`] — candidates that are measured in many combinations.
//! * [`time`] — what a step costs in each format.
//! * [`policy_file`] — a policy as JSON that a person can edit.
//! * [`header`] — what a compressed checkpoint says of itself.
//! * [`layout`] — what is where in a compressed checkpoint.
//! * [`mod@write`] — a compressed model folder, block by block.
//! * [`read`] — the same, opened and checked.
//! * [`mod@merge`] — the same with an adapter merged into it.
//! * [`solve`] — a weight matrix, pruned and quantised together.

pub mod calibrate;
pub mod choose;
pub mod header;
pub mod layout;
pub mod merge;
pub mod method;
pub mod options;
pub mod packs;
pub mod policy_file;
pub mod read;
pub mod run;
pub mod solve;
pub mod time;
pub mod write;

#[cfg(test)]
mod tests;
