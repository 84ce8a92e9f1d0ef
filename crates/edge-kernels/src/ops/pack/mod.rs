//! Weights made ready on the device: pruned and packed there instead of on the host.

pub mod gather_2_4;
pub mod prune_2_4;
pub mod quantize_pack;
