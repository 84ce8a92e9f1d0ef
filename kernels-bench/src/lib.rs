//! Throughput of the registered kernels: which calls are timed ([`subject`], [`select`]), how an
//! answer is checked before it is timed ([`runner`]), what the device could do at most ([`roof`]),
//! the rows ([`row`]), their records on disk and how two of them compare ([`record`],
//! [`compare`]), and what the ratios ought to be ([`targets`], [`peers`]).
//!
//! The table (`src/main.rs`) and the criterion benches (`benches/ops.rs`) push the same
//! [`edge_kernels::Dispatch`] that production pushes.

pub mod args;
pub mod compare;
pub mod csv;
pub mod gpu_targets;
pub mod machine;
pub mod peers;
pub mod record;
pub mod roof;
pub mod row;
pub mod runner;
pub mod select;
pub mod session;
pub mod subject;
pub mod targets;

pub use subject::Subject;
