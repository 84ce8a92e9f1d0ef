//! The one integration test binary: each further one would link everything again.

mod block_f64;
mod calibrate;
mod choices;
mod commands;
mod compare;
mod compress;
mod compressed;
mod device;
mod draft;
mod examples;
mod families;
mod formats;
mod golden;
mod model;
mod ops;
mod plan;
mod stream;
mod windows;
