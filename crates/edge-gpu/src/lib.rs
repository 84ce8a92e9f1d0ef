//! Devices: adapters, accounted buffers, pipelines, recording, timestamps, readback; and the
//! `cpu` device, which runs the definitions of the ops. The only crate that names wgpu.
//!
//! * [`Device`] — opened by name with [`Device::open`], cheap to clone.
//! * [`Buffer`], [`Slice`] — memory, charged to a category.
//! * [`Recorder`] — takes dispatches and submits them in pieces that no watchdog minds.
//! * [`Trial`] — one call with one variant, compared with the reference and timed.
//! * [`Error`] — what can go wrong.

mod adapter;
mod buffer;
mod chosen;
mod cpu;
mod device;
mod dry;
mod error;
mod fault;
mod gpu;
mod host;
mod ledger;
mod pipeline;
mod profile;
mod recorder;
mod sync;
mod transfer;
mod trial;
mod upload;

pub use adapter::{AdapterSummary, DeviceInfo, DeviceKind};
pub use buffer::{Buffer, Slice};
pub use device::{Device, Options};
pub use dry::Listed;
pub use error::Error;
pub use fault::FaultPlan;
pub use ledger::MemoryReport;
pub use profile::OpTime;
pub use recorder::Recorder;
pub use trial::Trial;
pub use upload::{Ticket, UploadSlot};
