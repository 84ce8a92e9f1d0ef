//! Filling and copying buffers.

pub mod copy;
pub mod fill;
