//! Calibration: a model run on text, block by block, with some of its weights compressed.
//!
//! * [`text`] — which windows of a text, and their hash.
//! * [`states`] — hidden states of all windows, in memory or in a temporary file.
//! * [`runner`] — the model: as many blocks on the device as fit, weights put in place of others.
//! * [`forward`] — hidden states through blocks, second moments of what linear layers read.
//! * [`divergence`] — how far the distribution of the next token moves.
//! * [`sensitivity`] — what each block loses in each format, measured once and kept in a file.
//! * [`hash`] — what a measurement belongs to.

pub mod divergence;
pub mod forward;
pub mod hash;
pub mod runner;
pub mod sensitivity;
pub mod states;
pub mod text;

pub use divergence::Divergence;
pub use runner::{Runner, RunnerOptions};
pub use sensitivity::{Granularity, Measure, Mode, Sensitivity};
pub use states::{HostMeter, Spill, States};
pub use text::CalibrationSet;
