//! The bundled demonstration: a small language that a small model can learn.

pub mod grammar;
