//! From weights to levels and back: scales, minima, rounding.

use half::f16;

use crate::packing::Packing;

/// Scale and minimum of a group, as they are stored. The minimum is 0 without a zero point.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Scale {
    /// What a level is multiplied by; it may be negative.
    pub factor: f16,
    /// What is added, with a zero point.
    pub min: f16,
}

/// Which levels are used.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Levels {
    /// As many below zero as above it: without the lowest one of 3, 4 and 8 symmetric bits.
    Balanced,
    /// All that there are bits for.
    All,
}

/// A magnitude as f16 that is never subnormal and never infinite.
fn normal(magnitude: f32) -> f16 {
    f16::from_f32(magnitude.clamp(f16::MIN_POSITIVE.to_f32(), f16::MAX.to_f32()))
}

impl Scale {
    /// These numbers in f16, of the same sign, never subnormal and never infinite; a minimum of
    /// less than half the least normal number is 0.
    pub fn rounded(factor: f32, min: f32) -> Self {
        let signed = |x: f32| if x < 0.0 { -normal(-x) } else { normal(x) };
        let zero = min.abs() < f16::MIN_POSITIVE.to_f32() / 2.0;
        Self { factor: signed(factor), min: if zero { f16::ZERO } else { signed(min) } }
    }

    /// The scale that [`pack`](super::pack) gives a group with these stored values: the largest
    /// one just fits. Padding must be 0, and there is nothing to scale in 16 bits.
    pub fn of(packing: Packing, values: impl Iterator<Item = f32>) -> Self {
        let (low, high) =
            values.fold((0.0_f32, 0.0_f32), |(low, high), x| (low.min(x), high.max(x)));
        if packing.has_zero_point() {
            let min = Self::rounded(0.0, low).min;
            let levels = ((1 << packing.bits()) - 1) as f32;
            return Self { factor: normal((high - min.to_f32()) / levels), min };
        }
        let largest = high.max(-low);
        // Without a level of 0, a group of zeros needs a scale of 0.
        let zero = largest == 0.0 && packing.bits() == 2;
        let factor = if zero { f16::ZERO } else { normal(largest / limit(packing)) };
        Self { factor, min: f16::ZERO }
    }

    /// `(factor, zero)` in f32 with which level `l`, from 0 to `2^bits - 1`, stands for the weight
    /// `l * factor + zero`, exactly as kernels read it. For fewer than 16 bits.
    pub fn affine(self, packing: Packing) -> (f32, f32) {
        let factor = self.factor.to_f32();
        // Products of small integers and an f16 are exact, and so is their sum.
        let zero =
            if packing.has_zero_point() { self.min.to_f32() } else { -offset(packing) * factor };
        (factor, zero)
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
pub(super) fn level(packing: Packing, x: f32, scale: Scale, levels: Levels) -> u32 {
    let (limit, factor) = (limit(packing), scale.factor.to_f32());
    // `as` makes 0 of NaN, of a weight or of 0 / 0 in a group of zeros.
    match packing.bits() {
        16 => u32::from(super::narrow_f16(x)),
        bits if packing.has_zero_point() => {
            let levels = ((1 << bits) - 1) as f32;
            ((x - scale.min.to_f32()) / factor).round().clamp(0.0, levels) as u32
        }
        2 => ((x / factor).floor().clamp(-2.0, 1.0) as i32 + 2) as u32,
        bits => {
            let lowest = if levels == Levels::All { -offset(packing) } else { -limit };
            ((x / factor).round().clamp(lowest, limit) as i32 + (1 << (bits - 1))) as u32
        }
    }
}
