//! Adapts large language models on the device that holds the data.
//!
//! The program is [`cli`]; this crate is what it is made of, for applications that tune and use
//! models themselves. [`Tuner`] tunes, [`Inference`] generates and evaluates:
//!
//! ```no_run
//! use edge_runtime::{Control, Inference, TuneEvent, Tuner};
//!
//! # fn main() -> anyhow::Result<()> {
//! let report = Tuner::builder()
//!     .model("models/SmolLM2-135M") // a Hugging Face folder, or a .gguf file
//!     .data("notes.txt")
//!     .steps(200)
//!     .on_event(|event| match event {
//!         TuneEvent::Step(row) if row.loss.is_nan() => Control::Stop,
//!         _ => Control::Continue,
//!     })
//!     .build()?
//!     .run()?;
//! let mut tuned = Inference::of_run(report.run_dir.as_ref(), "auto")?;
//! println!("{}", tuned.generate("Once upon a time", 60)?);
//! # Ok(())
//! # }
//! ```
//!
//! `examples/embed.rs` is a whole program.
//!
//! # Modules
//!
//! Input and output: [`config`], [`checkpoint`] and [`tokenizer`] read a Hugging Face folder,
//! [`gguf`] reads and writes llama.cpp's files, [`family`] has what models of different families
//! differ in, [`data`] reads texts and [`batch`] cuts them into windows, [`packing`] puts several
//! examples into a sequence, [`adapter`] and [`exits`] read and write what tuning makes,
//! [`compress`] reads and writes compressed models. [`run_dir`] is the one place that a run writes
//! to.
//!
//! Work: [`model`] is a model on a device as recorded dispatches, [`tune`] trains it, [`evaluate`]
//! and [`generate`] use it, [`session`] opens what they need, [`selftest`] tests and [`autotune`]
//! measures the kernels of a device, [`plan`] prices runs and chooses their schedules,
//! [`compress`] makes packed weights, [`compare`] tunes by several methods. [`tuner`] and
//! [`inference`] put these together. [`cli`] holds flags, commands and reports, [`demo`] makes the
//! bundled texts.

pub mod adapter;
pub mod autotune;
pub mod batch;
pub mod chart;
mod chat;
pub mod checkpoint;
pub mod choices;
pub mod cli;
pub mod compare;
pub mod compress;
pub mod config;
pub mod data;
pub mod demo;
pub mod draft;
pub mod evaluate;
mod example;
pub mod exits;
pub mod family;
pub mod generate;
pub mod gguf;
mod guard;
pub mod inference;
pub mod interrupt;
pub mod merge;
pub mod metrics;
pub mod model;
pub mod packing;
pub mod plan;
pub mod profile;
mod readahead;
pub mod report;
pub mod run_dir;
pub mod schedule;
pub mod selftest;
pub mod session;
pub mod tokenizer;
pub mod tune;
pub mod tuner;
pub mod vote;
mod weight_file;
mod whole_file;

pub use self::cli::args::{Bits, Method};
pub use self::cli::options::TuneOptions;
pub use self::cli::report::TuneReport;
pub use self::inference::Inference;
pub use self::tune::event::{Control, TuneEvent};
pub use self::tuner::{Tuner, TunerBuilder};

#[cfg(test)]
mod testing;
