//! Probes: what a device is able to do, for a bench to hold the other ops against.

pub mod fma_rate;
