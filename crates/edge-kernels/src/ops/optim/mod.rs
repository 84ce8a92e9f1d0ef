//! The optimizer: AdamW, and the norm of the gradient for clipping.

pub mod adamw;
pub mod grad_norm_scale;
pub mod sum_squares;
