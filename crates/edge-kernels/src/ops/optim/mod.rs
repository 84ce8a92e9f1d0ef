//! The optimizer: AdamW with moments in 32 or 8 bits, and the norm of the gradient for clipping.

pub mod adamw;
pub mod adamw_8bit;
pub mod grad_norm_scale;
pub mod sum_squares;
