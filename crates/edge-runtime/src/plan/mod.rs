//! From a run's options and a device to a schedule: what tasks take, how fast weights come, and
//! what `edge_scheduler::search` makes of it.
//!
//! * [`price`] — tasks as lists of dispatches, and what these take.
//! * [`facts`] — what was measured of a device, and its file.
//! * [`measure`] — measuring it.
//! * [`choose`] — the schedule of a run.

pub mod choose;
pub mod facts;
pub mod measure;
pub mod price;
