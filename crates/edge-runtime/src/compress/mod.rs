//! Layer-wise compression: from a checkpoint to packed weights.

pub mod solve;
