//! edge-gpu.
