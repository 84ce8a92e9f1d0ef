//! Learning-rate schedules: those of transformers' `optimization.py`.

use clap::ValueEnum;
use serde::{Deserialize, Serialize};

/// Shape of the learning rate after the warm-up, which always rises linearly from 0.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Schedule {
    /// `get_constant_schedule_with_warmup`
    Constant,
    /// `get_linear_schedule_with_warmup`: falls linearly to 0.
    Linear,
    /// `get_cosine_schedule_with_warmup`: half a cosine, falls to 0.
    #[default]
    Cosine,
}

impl Schedule {
    /// Learning rate where the share `done` of a run is behind it, which rises over its first
    /// share `warmup`.
    pub fn learning_rate(self, peak: f64, done: f64, warmup: f64) -> f64 {
        if done < warmup {
            return peak * done / warmup;
        }
        let progress = if warmup < 1.0 { ((done - warmup) / (1.0 - warmup)).min(1.0) } else { 0.0 };
        match self {
            Self::Constant => peak,
            Self::Linear => peak * (1.0 - progress),
            Self::Cosine => peak * 0.5 * (1.0 + (std::f64::consts::PI * progress).cos()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(schedule: Schedule, steps: u64, warmup: u64, expected: &[f64]) {
        for (step, want) in expected.iter().enumerate() {
            let share = |count: f64| count / steps.max(1) as f64;
            let got = schedule.learning_rate(2e-4, share(step as f64), share(warmup as f64));
            assert!((got - 2e-4 * want).abs() < 1e-15, "{schedule:?} step {step}: {got}");
        }
    }

    /// Multiples of the peak, from the formulas of transformers evaluated in Python.
    #[test]
    fn values_are_those_of_transformers() {
        let cosine = [
            0.0,
            0.5,
            1.0,
            0.961_939_766_255_643_4,
            0.853_553_390_593_273_7,
            0.691_341_716_182_544_9,
            0.5,
            0.308_658_283_817_455_14,
            0.146_446_609_406_726_27,
            0.038_060_233_744_356_63,
            0.0,
        ];
        check(Schedule::Cosine, 10, 2, &cosine);
        check(Schedule::Linear, 6, 2, &[0.0, 0.5, 1.0, 0.75, 0.5, 0.25, 0.0, 0.0]);
        check(Schedule::Constant, 4, 3, &[0.0, 1.0 / 3.0, 2.0 / 3.0, 1.0, 1.0]);
    }

    #[test]
    fn no_warmup_starts_at_the_peak_and_all_warmup_never_divides_by_zero() {
        check(Schedule::Cosine, 1, 0, &[1.0, 0.0]);
        check(Schedule::Linear, 4, 4, &[0.0, 0.25, 0.5, 0.75, 1.0]);
        check(Schedule::Cosine, 0, 0, &[1.0]);
    }
}
