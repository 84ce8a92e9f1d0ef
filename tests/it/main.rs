//! The one integration test binary: each further one would link everything again.

mod bad_inputs;
mod block_f64;
mod browser;
mod calibrate;
mod choices;
mod commands;
mod compare;
mod compress;
mod compressed;
mod device;
mod draft;
mod embed;
mod examples;
mod families;
mod follow;
mod formats;
mod gguf;
mod golden;
mod model;
mod ops;
mod plan;
mod stream;
mod windows;
