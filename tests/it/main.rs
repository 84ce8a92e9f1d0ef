//! The one integration test binary: each further one would link everything again.

mod calibrate;
mod commands;
mod device;
mod formats;
mod golden;
mod model;
mod ops;
