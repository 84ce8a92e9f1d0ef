//! A row of the throughput table.

use edge_kernels::op::Work;
use serde_json::json;

use crate::Subject;

/// One subject on one device with one variant.
#[derive(Clone, Debug, PartialEq)]
pub struct Row {
    /// Op name.
    pub op: &'static str,
    /// Weight format.
    pub format: &'static str,
    /// Name of the case.
    pub shape: String,
    /// Shader variant.
    pub variant: String,
    /// Device name.
    pub device: String,
    /// Median time of a dispatch, milliseconds.
    pub median_ms: f64,
    /// Median absolute deviation of the samples, milliseconds.
    pub spread_ms: f64,
    /// Least bytes of the definition over the median, 10⁹ bytes a second.
    pub gb_s: f64,
    /// Operations of the definition over the median, 10⁹ a second.
    pub gflop_s: f64,
}

impl Row {
    /// The row of these samples (milliseconds of a dispatch each; at least one).
    pub fn new(subject: &Subject, variant: String, device: String, samples_ms: &[f64]) -> Self {
        let (median_ms, spread_ms) = median_and_spread(samples_ms);
        let Work { bytes, flops } = subject.op.work(subject.call());
        let per_second = |count: u64| count as f64 / (median_ms * 1e6);
        Self {
            op: subject.op.name(),
            format: subject.call().format.name(),
            shape: subject.case.name.clone(),
            variant,
            device,
            median_ms,
            spread_ms,
            gb_s: per_second(bytes),
            gflop_s: per_second(flops),
        }
    }

    /// As one line of JSON.
    pub fn json(&self) -> String {
        json!({
            "op": self.op,
            "format": self.format,
            "shape": self.shape,
            "variant": self.variant,
            "median_ms": self.median_ms,
            "spread_ms": self.spread_ms,
            "gb_s": self.gb_s,
            "gflop_s": self.gflop_s,
            "device": self.device,
        })
        .to_string()
    }

    /// As one line of the table.
    pub fn line(&self) -> String {
        format!(
            "{:<26} {:<6} {:<24} {:<10} {:>10.4} {:>9.4} {:>8.2} {:>9.2}",
            self.op,
            self.format,
            self.shape,
            self.variant,
            self.median_ms,
            self.spread_ms,
            self.gb_s,
            self.gflop_s
        )
    }

    /// Titles over [`Row::line`].
    pub fn title() -> String {
        format!(
            "{:<26} {:<6} {:<24} {:<10} {:>10} {:>9} {:>8} {:>9}",
            "op", "format", "shape", "variant", "median_ms", "spread_ms", "gb_s", "gflop_s"
        )
    }
}

/// Median, and median distance from it.
fn median_and_spread(samples: &[f64]) -> (f64, f64) {
    let middle = median(samples.to_vec());
    (middle, median(samples.iter().map(|sample| (sample - middle).abs()).collect()))
}

fn median(mut samples: Vec<f64>) -> f64 {
    assert!(!samples.is_empty(), "a row has samples");
    samples.sort_by(f64::total_cmp);
    let half = samples.len() / 2;
    if samples.len() % 2 == 1 { samples[half] } else { (samples[half - 1] + samples[half]) / 2.0 }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_median_ignores_an_outlier() {
        assert_eq!(median_and_spread(&[2.0, 1.0, 3.0, 100.0, 2.0]), (2.0, 1.0));
        assert_eq!(median_and_spread(&[1.0, 3.0]), (2.0, 1.0));
    }

    #[test]
    fn rates_are_per_second() {
        let subject = Subject::all("rms_norm_forward").swap_remove(0);
        let work = subject.op.work(subject.call());
        let row = Row::new(&subject, "plain".into(), "a device".into(), &[2.0]);
        assert!((row.gb_s - work.bytes as f64 / 2e-3 / 1e9).abs() < 1e-9);
        assert!((row.gflop_s - work.flops as f64 / 2e-3 / 1e9).abs() < 1e-9);
        let json: serde_json::Value = serde_json::from_str(&row.json()).expect("one object");
        assert_eq!(json["variant"], "plain");
        assert_eq!(json["median_ms"], 2.0);
    }
}
