//! A row of the throughput table.

use edge_kernels::op::Work;
use serde_json::json;

use crate::Subject;
use crate::roof::Roof;

/// One subject on one device with one variant.
#[derive(Clone, Debug, PartialEq)]
pub struct Row {
    /// Op name.
    pub op: String,
    /// Weight format.
    pub format: String,
    /// Name of the case.
    pub shape: String,
    /// Shader variant.
    pub variant: String,
    /// Whether production takes this variant on this device.
    pub production: bool,
    /// Device name.
    pub device: String,
    /// Median time of a dispatch, milliseconds.
    pub median_ms: f64,
    /// Median absolute deviation of the samples, milliseconds.
    pub spread_ms: f64,
    /// Number of samples.
    pub samples: usize,
    /// Least bytes of the definition over the median, 10⁹ bytes a second.
    pub gb_s: f64,
    /// Operations of the definition over the median, 10⁹ a second.
    pub gflop_s: f64,
    /// Least time by the [`Roof`] over the median; none without a roof.
    pub roof_share: Option<f64>,
    /// How many times as fast as production's variant in f32 on the same op and shape.
    pub ratio_to_dense_f32: Option<f64>,
    /// The same for f16.
    pub ratio_to_dense_f16: Option<f64>,
    /// Times of the calibration kernel that a dispatch takes: the median over rounds, in which
    /// both were timed next to each other.
    pub calibrated: Option<f64>,
    /// Median absolute deviation of the rounds from it.
    pub calibrated_spread: Option<f64>,
    /// Which pass of its record, from 0.
    pub pass: u32,
}

impl Row {
    /// The row of these samples (milliseconds of a dispatch each; at least one), without ratios.
    pub fn new(
        subject: &Subject,
        (variant, production): (&str, bool),
        device: &str,
        roof: Option<&Roof>,
        samples_ms: &[f64],
    ) -> Self {
        let (median_ms, spread_ms) = median_and_spread(samples_ms);
        let work = subject.op.work(&subject.call);
        let Work { bytes, flops } = work;
        let per_second = |count: u64| count as f64 / (median_ms * 1e6);
        Self {
            op: subject.op.name().into(),
            format: subject.format().into(),
            shape: subject.shape.clone(),
            variant: variant.into(),
            production,
            device: device.into(),
            median_ms,
            spread_ms,
            samples: samples_ms.len(),
            gb_s: per_second(bytes),
            gflop_s: per_second(flops),
            roof_share: roof.map(|roof| roof.share(work, median_ms)),
            ratio_to_dense_f32: None,
            ratio_to_dense_f16: None,
            calibrated: None,
            calibrated_spread: None,
            pass: 0,
        }
    }

    /// `op/format/shape/variant`: what a row of another run is compared with.
    pub fn key(&self) -> String {
        format!("{}/{}/{}/{}", self.op, self.format, self.shape, self.variant)
    }

    /// As one line of JSON. Numbers that are not known are null.
    pub fn json(&self) -> String {
        json!({
            "op": self.op,
            "format": self.format,
            "shape": self.shape,
            "variant": self.variant,
            "production": self.production,
            "median_ms": self.median_ms,
            "spread_ms": self.spread_ms,
            "samples": self.samples,
            "gb_s": self.gb_s,
            "gflop_s": self.gflop_s,
            "roof_share": self.roof_share,
            "ratio_to_dense_f32": self.ratio_to_dense_f32,
            "ratio_to_dense_f16": self.ratio_to_dense_f16,
            "calibrated": self.calibrated,
            "device": self.device,
        })
        .to_string()
    }

    /// As one line of the table.
    pub fn line(&self) -> String {
        let mark = if self.production { "*" } else { "" };
        let share = self.roof_share.map_or("-".into(), |share| format!("{:.0}%", 100.0 * share));
        let ratio = |ratio: Option<f64>| ratio.map_or("-".into(), |ratio| format!("{ratio:.2}"));
        format!(
            "{:<22} {:<6} {:<34} {:<11} {:>10.4} {:>8.4} {:>7.2} {:>8.2} {:>5} {:>6} {:>6}",
            self.op,
            self.format,
            self.shape,
            format!("{}{mark}", self.variant),
            self.median_ms,
            self.spread_ms,
            self.gb_s,
            self.gflop_s,
            share,
            ratio(self.ratio_to_dense_f32),
            ratio(self.ratio_to_dense_f16)
        )
    }

    /// Titles over [`Row::line`].
    pub fn title() -> String {
        format!(
            "{:<22} {:<6} {:<34} {:<11} {:>10} {:>8} {:>7} {:>8} {:>5} {:>6} {:>6}",
            "op",
            "format",
            "shape",
            "variant",
            "median_ms",
            "spread",
            "gb_s",
            "gflop_s",
            "roof",
            "x f32",
            "x f16"
        )
    }
}

/// Median, and median distance from it.
pub fn median_and_spread(samples: &[f64]) -> (f64, f64) {
    let middle = median(samples.to_vec());
    (middle, median(samples.iter().map(|sample| (sample - middle).abs()).collect()))
}

/// The middle of the samples, or the mean of the middle two.
///
/// # Panics
/// Without samples.
pub fn median(mut samples: Vec<f64>) -> f64 {
    assert!(!samples.is_empty(), "a row has samples");
    samples.sort_by(f64::total_cmp);
    let half = samples.len() / 2;
    if samples.len() % 2 == 1 { samples[half] } else { (samples[half - 1] + samples[half]) / 2.0 }
}

/// How many times as fast as `baseline` the samples are: the median over rounds, so that what
/// slows a whole round down cancels. Both lists begin with the first round.
pub fn paired_ratio(baseline_ms: &[f64], samples_ms: &[f64]) -> Option<f64> {
    ratio_and_spread(baseline_ms, samples_ms).map(|(ratio, _)| ratio)
}

/// [`paired_ratio`], and the median distance of the rounds from it.
pub fn ratio_and_spread(baseline_ms: &[f64], samples_ms: &[f64]) -> Option<(f64, f64)> {
    let ratios: Vec<f64> =
        baseline_ms.iter().zip(samples_ms).map(|(baseline, sample)| baseline / sample).collect();
    (!ratios.is_empty()).then(|| median_and_spread(&ratios))
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
    fn ratios_are_taken_round_by_round() {
        // The second round was three times as slow for both.
        assert_eq!(paired_ratio(&[4.0, 12.0, 4.0], &[2.0, 6.0, 2.0]), Some(2.0));
        // The slower one was stopped earlier.
        assert_eq!(paired_ratio(&[4.0], &[2.0, 9.0]), Some(2.0));
        assert_eq!(paired_ratio(&[], &[2.0]), None);
    }

    #[test]
    fn rates_are_per_second_and_unknown_numbers_null() {
        let own = Subject::own();
        let subject = own.iter().find(|subject| subject.op.name() == "rms_norm_forward");
        let subject = subject.expect("it is registered");
        let work = subject.op.work(&subject.call);
        let row = Row::new(subject, ("plain", true), "a device", None, &[2.0]);
        assert!((row.gb_s - work.bytes as f64 / 2e-3 / 1e9).abs() < 1e-9);
        assert!((row.gflop_s - work.flops as f64 / 2e-3 / 1e9).abs() < 1e-9);
        let json: serde_json::Value = serde_json::from_str(&row.json()).expect("one object");
        assert_eq!(json["variant"], "plain");
        assert_eq!(json["median_ms"], 2.0);
        assert!(json["roof_share"].is_null());
        let keys = ["op", "format", "shape", "spread_ms", "gb_s", "gflop_s", "ratio_to_dense_f32"];
        assert!(keys.iter().all(|key| json.get(key).is_some()), "{json}");
        assert!(row.line().contains("plain*"), "production's variant is marked");
    }
}
