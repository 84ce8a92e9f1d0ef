//! Normalisation.

pub mod residual_rms_norm;
pub mod rms_norm_backward;
pub mod rms_norm_forward;
pub mod rms_norm_grad;

use crate::op::Variant;
use crate::ops::loss::{by_lanes, reduce_variants};

/// Variants of an op that reduces rows of `cols` elements in `lib/scalar.wgsl`'s `Element`.
fn row_variants(cols: u32) -> Vec<Variant> {
    by_lanes(reduce_variants(cols), &[cols])
}
