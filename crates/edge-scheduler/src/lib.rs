//! Plans as data: everything that a run will allocate is known before it starts.
//!
//! No GPU API, no IO, no clock: what a device can do comes in as an argument, and a plan is a
//! value that can be printed, compared and property-tested without a device.
//!
//! * [`shape`] — the shapes of a model, its projections, windows and exits.
//! * [`params`] — where trained parameters live: groups, arenas, offsets.
//! * [`calibrate`] — what calibration needs beside a forward pass.
//! * [`plan`] — every buffer of a run by name, category and size.

pub mod calibrate;
pub mod params;
pub mod plan;
pub mod shape;

pub use calibrate::{Calibration, MomentPart};
pub use params::{Entry, Group, Owner};
pub use plan::{DeviceFacts, Job, Optimizer, Plan, PlannedBuffer, Trained};
pub use shape::{BlockFormats, LinearInput, ModelShape, Projection, Shard, Window};
