//! `--check`: whether a kernel has become slower or faster than its record says, on a machine that
//! is busy with other things.
//!
//! What is judged is the time over that of the calibration kernel, against the fence of the same
//! quotient in the records of this machine. A row outside is timed again, and counts only when it
//! is outside on the same side each time: noise comes and goes, a slower kernel stays.

use std::fmt::Write as _;

use crate::fence::{Fence, HISTORY_MIN, Least, Magnitude};
use crate::row::Row;

/// Least widths of a fence. What other programs leave of caches and memory's bandwidth changes the
/// quotient too: kernels that are bound by memory drift by up to a tenth between a quiet and a busy
/// machine (`docs/benchmarks.md`).
const LEAST: Least = Least { known: 0.10, unknown: 0.10 };

/// How often a row outside its fence is timed again.
pub const AGAIN: usize = 2;

/// A slow-down that every row ought to show; wider fences are said to be blind to it.
const WANTED: f64 = 0.15;

/// A row and its fence.
#[derive(Clone, Debug)]
pub struct Checked {
    /// `op/format/shape/variant`.
    pub key: String,
    /// Calibrated times, one each time that it was timed.
    pub values: Vec<f64>,
    /// The fence, where there is enough history.
    pub fence: Option<Fence>,
}

impl Checked {
    /// Of a row, with the calibrated times of its history.
    pub fn new(row: &Row, history: &[f64]) -> Self {
        let fence = (history.len() >= HISTORY_MIN).then(|| Fence::of(history, 0.0, LEAST));
        Self { key: row.key(), values: row.calibrated.into_iter().collect(), fence }
    }

    /// Whether all of its times are outside, on one side: by how many widths the nearest.
    pub fn outside(&self) -> Option<f64> {
        let fence = self.fence.as_ref()?;
        let first = *self.values.first()?;
        let one_side = |value: &&f64| (**value > fence.middle) == (first > fence.middle);
        let same = self.values.iter().filter(one_side);
        if same.count() < self.values.len() {
            return None;
        }
        let least = self.values.iter().map(|&value| fence.distance(value));
        let least = least.fold(f64::INFINITY, f64::min);
        (least > 1.0).then_some(least)
    }

    /// The time that is nearest to the middle, over the middle.
    pub fn ratio(&self) -> Option<f64> {
        let middle = self.fence.as_ref()?.middle;
        let apart = |value: &f64| (value / middle).ln().abs();
        let nearest = self.values.iter().min_by(|a, b| apart(a).total_cmp(&apart(b)))?;
        Some(nearest / middle)
    }
}

/// What a check found.
#[derive(Clone, Debug, Default)]
pub struct Outcome {
    /// All rows that were timed.
    pub rows: Vec<Checked>,
}

impl Outcome {
    /// Rows that are slower than their fence, the worst first.
    pub fn slower(&self) -> Vec<&Checked> {
        self.outside(|ratio| ratio > 1.0)
    }

    /// Rows that are faster than their fence, the most first.
    pub fn faster(&self) -> Vec<&Checked> {
        self.outside(|ratio| ratio < 1.0)
    }

    fn outside(&self, side: fn(f64) -> bool) -> Vec<&Checked> {
        let here = |row: &&Checked| row.outside().is_some() && row.ratio().is_some_and(side);
        let mut rows: Vec<&Checked> = self.rows.iter().filter(here).collect();
        let distance = |row: &Checked| row.outside().unwrap_or(0.0);
        rows.sort_by(|a, b| distance(b).total_cmp(&distance(a)));
        rows
    }

    /// For people, the worst first.
    pub fn text(&self) -> String {
        let mut text = String::new();
        // Writing to a string cannot fail.
        for (word, rows) in [("slower", self.slower()), ("faster", self.faster())] {
            for row in rows {
                let magnitude = Magnitude::of(row.outside().unwrap_or(0.0)).words();
                let (Some(ratio), Some(fence)) = (row.ratio(), row.fence) else { continue };
                let percent = 100.0 * (ratio - 1.0);
                let width = 100.0 * fence.width();
                let _ = writeln!(
                    text,
                    "{word:<7} {percent:>+7.1} %  {magnitude:<10}  {}  (fence of {} values: \
                     {width:.0} %, timed {} times)",
                    row.key,
                    fence.values,
                    row.values.len()
                );
            }
        }
        let judged: Vec<&Fence> = self.rows.iter().filter_map(|row| row.fence.as_ref()).collect();
        let blind = judged.iter().filter(|fence| fence.width() > WANTED).count();
        let [slower, faster] = [self.slower().len(), self.faster().len()];
        let _ = writeln!(
            text,
            "{} rows judged: {slower} slower, {faster} faster than their fences; {blind} fences \
             are wider than {:.0} %",
            judged.len(),
            100.0 * WANTED
        );
        let without = self.rows.len() - judged.len();
        if without > 0 {
            let _ = writeln!(
                text,
                "{without} rows have less than {HISTORY_MIN} values of this machine: record some \
                 with `cargo xtask bench --check --record --passes 12`"
            );
        }
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Subject;

    fn row(calibrated: f64) -> Row {
        let subject = Subject::own().swap_remove(0);
        let row = Row::new(&subject, ("a", true), "a device", None, &[1.0]);
        Row { calibrated: Some(calibrated), ..row }
    }

    const HISTORY: [f64; 6] = [1.0, 1.01, 0.99, 1.0, 1.02, 0.98];

    #[test]
    fn a_slow_down_of_15_percent_is_seen() {
        let checked = Checked::new(&row(1.15), &HISTORY);
        assert!(checked.outside().is_some_and(|distance| distance > 1.0));
        let outcome = Outcome { rows: vec![checked, Checked::new(&row(1.03), &HISTORY)] };
        assert_eq!((outcome.slower().len(), outcome.faster().len()), (1, 0));
        let text = outcome.text();
        assert!(text.contains("slower    +15.0 %"), "{text}");
        assert!(text.contains("2 rows judged: 1 slower, 0 faster"), "{text}");
    }

    #[test]
    fn noise_that_goes_is_no_alarm() {
        let mut checked = Checked::new(&row(1.3), &HISTORY);
        checked.values.push(1.02);
        assert_eq!(checked.outside(), None);
        checked.values[1] = 0.7;
        assert_eq!(checked.outside(), None, "once slower, once faster");
        checked.values[1] = 1.2;
        assert!(checked.outside().is_some());
        assert!(checked.ratio().is_some_and(|ratio| (ratio - 1.2).abs() < 1e-9), "the nearer");
    }

    #[test]
    fn rows_without_history_are_counted_and_not_judged() {
        let checked = Checked::new(&row(5.0), &HISTORY[..4]);
        assert!(checked.fence.is_none() && checked.outside().is_none());
        let text = Outcome { rows: vec![checked] }.text();
        assert!(text.contains("0 rows judged") && text.contains("1 rows have less than 5"));
    }
}
