//! Adapts large language models on the device that holds the data.
//!
//! Input and output: [`config`], [`checkpoint`] and [`tokenizer`] read a Hugging Face folder,
//! [`data`] reads texts and [`batch`] cuts them into windows, [`adapter`] and [`exits`] read and
//! write what tuning makes, [`run_dir`] is the one place that is written to. [`cli`] holds flags
//! and reports.

pub mod adapter;
pub mod batch;
pub mod checkpoint;
pub mod cli;
pub mod config;
pub mod data;
pub mod exits;
pub mod interrupt;
pub mod run_dir;
pub mod schedule;
pub mod tokenizer;

#[cfg(test)]
mod testing;
