//! Attention: rotary position embedding, and fused causal attention with grouped queries.
//!
//! Nothing here keeps a matrix of scores: the forward pass keeps the log-sum-exp of each row, from
//! which the backward passes form the probabilities again (Dao 2023, "FlashAttention-2").

pub mod attention_backward_kv;
pub mod attention_backward_q;
pub mod attention_delta;
pub mod attention_forward;
pub mod rope;
pub mod rope_scaling;

mod bodies;
mod shape;
#[cfg(test)]
mod tests;

pub use rope_scaling::{RopeScaling, rope_table};
pub use shape::Params;
