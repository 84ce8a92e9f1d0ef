//! Plans as data: everything that a run will allocate is known before it starts.
//!
//! No GPU API, no IO, no clock: what a device can do comes in as an argument, and a plan is a
//! value that can be printed, compared and property-tested without a device.
//!
//! * [`shape`] — the shapes of a model, its projections, windows and exits.
//! * [`params`] — where trained parameters live: groups, arenas, offsets.
//! * [`calibrate`] — what calibration needs beside a forward pass.
//! * [`job`] — what is to be run.
//! * [`logits`] — how large a chunk of logits is and where it lies.
//! * [`plan`] — every buffer of a run by name, category and size.
//! * [`stream`] — blocks that come and go through transfer slots.
//! * [`rates`] — what a dispatch takes, from measurements of others.
//! * [`step`] — a step as a list of tasks: what a run executes and the simulator prices.
//! * [`simulate`] — when each task and each transfer runs, and what waits for what.
//! * [`search`] — the fastest schedule within a memory budget.
//! * [`trace`] — a timeline as a Chrome trace.
//! * [`policy`] — the format of each layer, and policies by name.
//! * [`mod@allocate`] — the candidates with the least error within a budget.
//! * [`mod@luc`] — the policy of measured errors within bits, bytes or time.
//! * [`mod@refine`] — an allocation improved by errors measured with all layers compressed.
//! * [`profiles`] — facts of devices that are not at hand, each number with its source.
//! * [`mod@paper`] — the paper's speed-up on the paper's memory hierarchy, simulated.

#![forbid(unsafe_code)]

pub mod allocate;
pub mod calibrate;
pub mod job;
pub mod logits;
pub mod luc;
pub mod paper;
pub mod params;
pub mod plan;
pub mod policy;
pub mod profiles;
pub mod rates;
pub mod refine;
pub mod search;
pub mod shape;
pub mod simulate;
pub mod step;
pub mod stream;
pub mod trace;

pub use calibrate::{Calibration, MomentPart};
pub use job::{Job, Optimizer, Trained};
pub use params::{Entry, Group, Owner};
pub use plan::{DeviceFacts, Plan, PlannedBuffer};
pub use policy::{BlockPolicy, Layer, Policy};
pub use shape::{
    BlockFormats, BlockVector, Extras, LinearInput, ModelShape, Projection, Shard, Window,
};
pub use step::{Path, StepShape, Task};
pub use stream::Streaming;
