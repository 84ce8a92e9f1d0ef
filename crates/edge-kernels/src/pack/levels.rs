//! From weights to levels and back: scales, minima, rounding.

use half::f16;

use crate::packing::Packing;

/// Scale and minimum of a group, as they are stored. The minimum is 0 without a zero point.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(super) struct Scale {
    pub factor: f16,
    pub min: f16,
}

/// A magnitude as f16 that is never subnormal and never infinite.
fn normal(magnitude: f32) -> f16 {
    f16::from_f32(magnitude.clamp(f16::MIN_POSITIVE.to_f32(), f16::MAX.to_f32()))
}

impl Scale {
    /// That of a group with these stored values. Padding must be 0.
    pub(super) fn of(packing: Packing, values: impl Iterator<Item = f32>) -> Self {
        let (low, high) =
            values.fold((0.0_f32, 0.0_f32), |(low, high), x| (low.min(x), high.max(x)));
        if packing.has_zero_point() {
            let smallest = f16::MIN_POSITIVE.to_f32();
            let min = if -low < smallest / 2.0 { f16::ZERO } else { -normal(-low) };
            let levels = ((1 << packing.bits()) - 1) as f32;
            return Self { factor: normal((high - min.to_f32()) / levels), min };
        }
        let largest = high.max(-low);
        // Without a level of 0, a group of zeros needs a scale of 0.
        let zero = largest == 0.0 && packing.bits() == 2;
        let factor = if zero { f16::ZERO } else { normal(largest / limit(packing)) };
        Self { factor, min: f16::ZERO }
    }
}

/// The largest magnitude in units of the scale, of symmetric levels.
fn limit(packing: Packing) -> f32 {
    match packing.bits() {
        2 => 1.5,
        bits => ((1 << (bits - 1)) - 1) as f32,
    }
}

/// What the shaders subtract from a symmetric level.
fn offset(packing: Packing) -> f32 {
    match packing.bits() {
        2 => 1.5,
        bits => (1 << (bits - 1)) as f32,
    }
}

/// The level of a weight: its bits, for 16 bits those of an f16.
pub(super) fn level(packing: Packing, x: f32, scale: Scale) -> u32 {
    let (limit, factor) = (limit(packing), scale.factor.to_f32());
    // `as` makes 0 of NaN, of a weight or of 0 / 0 in a group of zeros.
    match packing.bits() {
        16 => u32::from(super::narrow_f16(x)),
        bits if packing.has_zero_point() => {
            let levels = ((1 << bits) - 1) as f32;
            ((x - scale.min.to_f32()) / factor).round().clamp(0.0, levels) as u32
        }
        2 => ((x / factor).floor().clamp(-2.0, 1.0) as i32 + 2) as u32,
        bits => ((x / factor).round().clamp(-limit, limit) as i32 + (1 << (bits - 1))) as u32,
    }
}

/// Factor and summand that make a weight of a level of fewer than 16 bits, as in the shaders.
pub(super) fn affine(packing: Packing, scale: Scale) -> (f32, f32) {
    let factor = scale.factor.to_f32();
    // Products of small integers and an f16 are exact, and so is their sum.
    let zero =
        if packing.has_zero_point() { scale.min.to_f32() } else { -offset(packing) * factor };
    (factor, zero)
}
