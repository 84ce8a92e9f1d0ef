//! Layer-wise compression (Edge-LLM, DAC 2024, section on layer-wise unified compression).
//!
//! * [`calibrate`] — a model run block by block on calibration text: inputs, errors, sensitivity.

pub mod calibrate;
