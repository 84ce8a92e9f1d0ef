//! Throughput of the registered kernels: which calls are timed ([`subject`], [`select`]), how an
//! answer is checked before it is timed ([`runner`]), what the device could do at most ([`roof`]),
//! the rows ([`row`]), their records on disk and how two of them compare ([`record`],
//! [`compare`]), and what the ratios ought to be ([`targets`], [`peers`]).
//!
//! Records also have what tuning and the repository weigh ([`measure`], [`tuning`], [`size`]).
//! All of them are the [`history`], by which changes are judged ([`fence`]): of a run on a busy
//! machine ([`calibration`], [`check`]), and of two records ([`series`], [`judge`], [`report`]).
//! The page of all is [`dashboard`].
//!
//! The table (`src/main.rs`) and the criterion benches (`benches/ops.rs`) push the same
//! [`edge_kernels::Dispatch`] that production pushes.

pub mod args;
pub mod calibration;
pub mod check;
pub mod compare;
pub mod csv;
pub mod dashboard;
pub mod fence;
pub mod gpu_targets;
pub mod history;
pub mod judge;
pub mod machine;
pub mod measure;
pub mod peers;
pub mod record;
pub mod report;
pub mod roof;
pub mod row;
pub mod runner;
pub mod select;
pub mod series;
pub mod session;
pub mod size;
pub mod subject;
pub mod targets;
pub mod tuning;

pub use subject::Subject;
