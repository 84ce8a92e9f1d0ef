//! edge-runtime.

pub mod demo;
