//! Normalisation.

pub mod residual_rms_norm;
pub mod rms_norm_backward;
pub mod rms_norm_forward;
pub mod rms_norm_grad;

use crate::lanes::by_four;
use crate::op::Variant;
use crate::ops::loss::reduce_variants;

/// Variants of an op that reduces rows of `cols` elements in `lib/scalar.wgsl`'s `Element`.
fn row_variants(cols: u32) -> Vec<Variant> {
    let instead = if by_four(&[cols]) { "lib/vec4.wgsl" } else { "lib/scalar.wgsl" };
    let variants = reduce_variants(cols).into_iter();
    variants.map(|variant| variant.fragment("lib/scalar.wgsl", instead)).collect()
}
