//! What a dispatch takes, from measurements of others of its kind.
//!
//! A sample is a call of an op in a format at some sizes, and the seconds that it took. A call of
//! other sizes takes the time of the roofline, `max(flops / F, bytes / B)`, times a factor that the
//! nearest samples have: the mean of their logarithms, weighted by the inverse square of the
//! distance between the logarithms of the sizes (Shepard 1968). Below a floor, which is what
//! starting a dispatch costs, nothing is faster.

use std::collections::BTreeMap;

/// Scale of flops in the roofline: only its ratio to [`BYTES_PER_S`] matters.
const FLOPS_PER_S: f64 = 1e10;
/// Scale of bytes in the roofline.
const BYTES_PER_S: f64 = 1e10;

/// A call as far as its time goes.
#[derive(Clone, Debug, PartialEq)]
pub struct Cost {
    /// Name of the op and of its format.
    pub kind: (String, String),
    /// Sizes whose logarithms say how alike two calls are: `[m, n, k]` of a product, else flops and
    /// bytes.
    pub sizes: Vec<f64>,
    /// Floating-point operations.
    pub flops: f64,
    /// Bytes that must be read and written.
    pub bytes: f64,
}

impl Cost {
    fn roofline_s(&self) -> f64 {
        (self.flops / FLOPS_PER_S).max(self.bytes / BYTES_PER_S).max(1e-9)
    }

    fn distance(&self, sizes: &[f64]) -> f64 {
        let logarithm = |size: f64| size.max(1.0).ln();
        let pairs = self.sizes.iter().zip(sizes);
        pairs.map(|(&a, &b)| (logarithm(a) - logarithm(b)).powi(2)).sum()
    }
}

/// A measured call.
#[derive(Clone, Debug, PartialEq)]
struct Sample {
    sizes: Vec<f64>,
    factor: f64,
}

/// Measured calls by kind.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Rates {
    samples: BTreeMap<(String, String), Vec<Sample>>,
    floor_s: f64,
}

impl Rates {
    /// Nothing measured but what starting a dispatch costs, seconds.
    pub fn new(floor_s: f64) -> Self {
        Self { samples: BTreeMap::new(), floor_s }
    }

    /// Adds a measurement. One that took hardly longer than starting it says nothing of sizes.
    pub fn add(&mut self, cost: &Cost, seconds: f64) {
        if seconds < 1.5 * self.floor_s {
            return;
        }
        let factor = (seconds - self.floor_s).max(0.05 * seconds) / cost.roofline_s();
        let sample = Sample { sizes: cost.sizes.clone(), factor };
        self.samples.entry(cost.kind.clone()).or_default().push(sample);
    }

    /// Whether anything of a kind was measured.
    pub fn knows(&self, kind: &(String, String)) -> bool {
        self.samples.contains_key(kind)
    }

    /// Seconds of a call. Of a kind that was never measured: as the op in other formats, or as the
    /// median of everything.
    pub fn seconds(&self, cost: &Cost) -> f64 {
        let own = self.samples.get(&cost.kind).into_iter().flatten();
        let mut samples: Vec<&Sample> = own.collect();
        if samples.is_empty() {
            let alike = self.samples.iter().filter(|(kind, _)| kind.0 == cost.kind.0);
            samples = alike.flat_map(|(_, samples)| samples).collect();
        }
        if samples.is_empty() {
            let mut factors: Vec<f64> =
                self.samples.values().flatten().map(|sample| sample.factor).collect();
            factors.sort_by(f64::total_cmp);
            let factor = factors.get(factors.len() / 2).copied().unwrap_or(1.0);
            return self.floor_s + factor * cost.roofline_s();
        }
        let (mut sum, mut weights) = (0.0, 0.0);
        for sample in samples {
            let weight = 1.0 / (cost.distance(&sample.sizes) + 1e-3);
            let weight = weight * weight;
            sum += weight * sample.factor.ln();
            weights += weight;
        }
        self.floor_s + (sum / weights).exp() * cost.roofline_s()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn product(m: f64, n: f64, k: f64) -> Cost {
        let kind = ("matmul_nt".to_owned(), "q4".to_owned());
        Cost { kind, sizes: vec![m, n, k], flops: 2.0 * m * n * k, bytes: 4.0 * m * (n + k) }
    }

    #[test]
    fn what_was_measured_comes_back_and_what_lies_between_lies_between() {
        let mut rates = Rates::new(1e-5);
        rates.add(&product(64.0, 128.0, 128.0), 1e-3);
        rates.add(&product(256.0, 1024.0, 1024.0), 1e-1);
        let again = rates.seconds(&product(64.0, 128.0, 128.0));
        assert!((again / 1e-3 - 1.0).abs() < 0.01, "{again}");
        let speed = |m, n, k| {
            let cost = product(m, n, k);
            cost.flops / (rates.seconds(&cost) - rates.floor_s)
        };
        let (slow, fast) = (speed(64.0, 128.0, 128.0), speed(256.0, 1024.0, 1024.0));
        let between = speed(128.0, 384.0, 384.0);
        assert!(slow < between && between < fast, "{slow} {between} {fast}");
    }

    #[test]
    fn nothing_is_faster_than_starting_it() {
        let rates = Rates::new(2e-5);
        assert!(rates.seconds(&product(1.0, 1.0, 1.0)) >= 2e-5);
    }
}
