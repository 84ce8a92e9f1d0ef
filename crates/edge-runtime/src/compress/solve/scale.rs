//! The scale (and minimum) of a group whose squared errors are least.

use edge_kernels::Packing;
use edge_kernels::pack::Scale;

/// Values that are summed side by side, so that the compiler can use vector instructions.
const LANES: usize = 8;

/// Most values of a group.
const SIZE: usize = 64;

/// Steps of the factor in symmetric groups.
const STEPS: usize = 24;

/// Rounds of refinement, each only if the last one helped.
const ROUNDS: usize = 3;

/// A group's stored values with the weights of their squared errors.
struct Group {
    packing: Packing,
    values: [f32; SIZE],
    weights: [f32; SIZE],
    /// Values that count, padded to whole lanes with weights of 0.
    padded: usize,
    /// The highest level.
    top: f32,
}

/// The scale for at most 64 stored values whose squared errors count by `weights`.
///
/// A grid of scales from the one that just fits the largest value downwards is tried, of both
/// signs where levels lie unevenly about zero; with a zero point both ends of the range shrink.
/// The best one is refined by least squares for the levels that it gives.
pub(super) fn search(packing: Packing, values: &[f32], weights: &[f32]) -> Scale {
    let fits = Scale::of(packing, values.iter().copied());
    if values.iter().all(|x| *x == 0.0) {
        return fits;
    }
    let mut group = Group {
        packing,
        values: [0.0; SIZE],
        weights: [0.0; SIZE],
        padded: values.len().next_multiple_of(LANES),
        top: ((1 << packing.bits()) - 1) as f32,
    };
    group.values[..values.len()].copy_from_slice(values);
    group.weights[..values.len()].copy_from_slice(weights);
    let mut best = Best { scale: fits, error: group.error(fits) };
    if packing.has_zero_point() {
        group.shrink_range(fits, &mut best);
    } else {
        group.shrink_symmetric(values, &mut best);
    }
    for _ in 0..ROUNDS {
        let refined = group.least_squares(best.scale);
        if !refined.is_some_and(|scale| best.offer(scale, group.error(scale))) {
            break;
        }
    }
    best.scale
}

struct Best {
    scale: Scale,
    error: f32,
}

impl Best {
    /// Takes what is better; whether it was.
    fn offer(&mut self, scale: Scale, error: f32) -> bool {
        let better = error < self.error;
        if better {
            *self = Self { scale, error };
        }
        better
    }
}

/// The share of the range down to which scales are tried.
fn least_share(bits: u32) -> f32 {
    match bits {
        2 => 0.3,
        3 => 0.4,
        4 => 0.55,
        _ => 0.9,
    }
}

impl Group {
    /// Tries scales of a symmetric packing.
    fn shrink_symmetric(&self, values: &[f32], best: &mut Best) {
        let bits = self.packing.bits();
        let largest = values.iter().fold(0.0_f32, |m, x| if x.abs() > m.abs() { *x } else { m });
        // Units of the scale that the largest value may be: the lowest level is one further from
        // zero than the highest. In two bits they lie evenly.
        let (low, high) = match bits {
            2 => (None, 1.5),
            _ => (Some(-((1 << (bits - 1)) as f32)), ((1 << (bits - 1)) - 1) as f32),
        };
        for step in 0..STEPS {
            let shrunk = 1.0 - (1.0 - least_share(bits)) * step as f32 / (STEPS - 1) as f32;
            for units in low.into_iter().chain([high]) {
                let scale = Scale::rounded(largest * shrunk / units, 0.0);
                best.offer(scale, self.error(scale));
            }
        }
    }

    /// Tries smaller ranges of a packing with a zero point.
    fn shrink_range(&self, fits: Scale, best: &mut Best) {
        let low = fits.min.to_f32();
        let high = low + fits.factor.to_f32() * self.top;
        let (steps, least) = (6, least_share(self.packing.bits()));
        let share = |step: usize| 1.0 - (1.0 - least) * step as f32 / (steps - 1) as f32;
        for low in (0..steps).map(|step| low * share(step)) {
            for high in (0..steps).map(|step| high * share(step)) {
                let scale = Scale::rounded((high - low) / self.top, low);
                best.offer(scale, self.error(scale));
            }
        }
    }

    /// Level of a value, as a number. (`x + SHIFT - SHIFT` rounds, in two instructions.)
    fn level(&self, x: f32, zero: f32, inverse: f32) -> f32 {
        const SHIFT: f32 = 1.5 * (1 << 23) as f32;
        let level = ((x - zero) * inverse).max(0.0).min(self.top);
        (level + SHIFT) - SHIFT
    }

    /// The weighted sum of squared errors.
    fn error(&self, scale: Scale) -> f32 {
        let (factor, zero) = scale.affine(self.packing);
        let inverse = factor.recip();
        let mut sums = [0.0; LANES];
        let values = self.values[..self.padded].chunks_exact(LANES);
        for (values, weights) in values.zip(self.weights.chunks_exact(LANES)) {
            for lane in 0..LANES {
                let x = values[lane];
                let error = self.level(x, zero, inverse) * factor + zero - x;
                sums[lane] += error * error * weights[lane];
            }
        }
        sums.iter().sum()
    }

    /// The scale that is best for the levels that another one gives: a fit through the origin, or
    /// of a line where there is a minimum. None where the levels do not determine it.
    fn least_squares(&self, scale: Scale) -> Option<Scale> {
        let (factor, zero) = scale.affine(self.packing);
        let inverse = factor.recip();
        // Symmetric levels are counted from the weight 0, so that the line goes through it.
        let offset = if self.packing.has_zero_point() { 0.0 } else { -zero / factor };
        let [mut n, mut l, mut w, mut ll, mut lw] = [0.0_f64; 5];
        for (x, weight) in self.values.iter().zip(&self.weights).take(self.padded) {
            let level = f64::from(self.level(*x, zero, inverse) - offset);
            let (x, weight) = (f64::from(*x), f64::from(*weight));
            n += weight;
            l += weight * level;
            w += weight * x;
            ll += weight * level * level;
            lw += weight * level * x;
        }
        if !self.packing.has_zero_point() {
            let factor = lw / ll;
            return (factor.is_finite() && factor != 0.0)
                .then(|| Scale::rounded(factor as f32, 0.0));
        }
        let factor = (n * lw - l * w) / (n * ll - l * l);
        let min = (w - factor * l) / n;
        (factor.is_finite() && factor > 0.0).then(|| Scale::rounded(factor as f32, min as f32))
    }
}
