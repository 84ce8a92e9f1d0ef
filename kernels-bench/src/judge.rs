//! Two records beside each other: which rows left the fence of their own history, which way, and
//! how far.

use crate::fence::Magnitude;
use crate::history::History;
use crate::measure::Better;
use crate::series::{self, Series};

/// A row of both records.
#[derive(Clone, Debug, PartialEq)]
pub struct Change {
    /// `op/format/shape/variant`.
    pub key: String,
    /// [`series::KERNEL`] or the measure's kind.
    pub kind: String,
    /// Unit of the values.
    pub unit: String,
    /// Whether production takes the variant.
    pub production: bool,
    /// Value before, in the unit.
    pub before: f64,
    /// Value now, in the unit.
    pub now: f64,
    /// What is judged, now over before: calibrated times where both records have them.
    pub ratio: f64,
    /// What it is of.
    pub basis: Basis,
    /// Half the width of the fence, relative.
    pub reach: f64,
    /// Which way it ought to go.
    pub better: Better,
}

/// What two records are compared by.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Basis {
    /// The values.
    Value,
    /// Times over those of the calibration kernel.
    Calibrated,
    /// The clock, since one record has no calibrated times: whether the kernel or the machine was
    /// slow cannot be told.
    Clock,
}

/// What a change is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Outside the fence, on the wrong side.
    Regression(Magnitude),
    /// Outside the fence, on the right side.
    Improvement(Magnitude),
    /// Outside the fence of a number that may go either way, or by the clock alone.
    Moved(Magnitude),
    /// Within the fence.
    Nothing,
}

impl Change {
    /// How far outside: the change in widths of the fence.
    pub fn distance(&self) -> f64 {
        let change = (self.ratio - 1.0).abs();
        if change == 0.0 { 0.0 } else { change / self.reach }
    }

    /// What it is.
    pub fn verdict(&self) -> Verdict {
        let distance = self.distance();
        if distance <= 1.0 {
            return Verdict::Nothing;
        }
        let magnitude = Magnitude::of(distance);
        match (self.better, self.ratio > 1.0) {
            _ if self.basis == Basis::Clock => Verdict::Moved(magnitude),
            (Better::Neither, _) => Verdict::Moved(magnitude),
            (Better::Lower, true) | (Better::Higher, false) => Verdict::Regression(magnitude),
            (Better::Lower, false) | (Better::Higher, true) => Verdict::Improvement(magnitude),
        }
    }
}

/// A comparison of two records of one device.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Judgement {
    /// Rows of both, those that went furthest out of their fence first.
    pub changes: Vec<Change>,
    /// Rows that only the second has.
    pub new: Vec<String>,
    /// Rows that only the first has.
    pub gone: Vec<String>,
}

impl Judgement {
    /// Changes with a verdict, the furthest first.
    pub fn with(&self, wanted: impl Fn(Verdict) -> bool) -> Vec<&Change> {
        self.changes.iter().filter(|change| wanted(change.verdict())).collect()
    }

    /// What became worse.
    pub fn regressions(&self) -> Vec<&Change> {
        self.with(|verdict| matches!(verdict, Verdict::Regression(_)))
    }

    /// What became better.
    pub fn improvements(&self) -> Vec<&Change> {
        self.with(|verdict| matches!(verdict, Verdict::Improvement(_)))
    }
}

/// A series between two records, where it has both.
pub fn change(series: &Series, before: usize, now: usize) -> Option<Change> {
    let (a, b) = (series.at(before)?, series.at(now)?);
    let both = a.calibrated().zip(b.calibrated());
    let ratio = both.map_or(b.value / a.value, |(a, b)| b / a);
    let basis = match (a.calibrated.is_empty(), b.calibrated.is_empty()) {
        (true, true) => Basis::Value,
        (false, false) => Basis::Calibrated,
        _ => Basis::Clock,
    };
    Some(Change {
        key: series.key(),
        kind: series.kind.clone(),
        unit: series.unit.clone(),
        production: series.production,
        before: a.value,
        now: b.value,
        // Of two zeros: nothing changed.
        ratio: if a.value == b.value { 1.0 } else { ratio },
        basis,
        // Whichever of the two is older: the other is what is judged.
        reach: series.reach(before.max(now), basis == Basis::Calibrated)?,
        better: series.better,
    })
}

/// Compares two records by their indices in the history; they are of one device.
pub fn judge(history: &History, before: usize, now: usize) -> Judgement {
    let mut judgement = Judgement::default();
    let device = &history.entries[now].device;
    for series in series::all(history).iter().filter(|series| series.device == *device) {
        match (series.at(before), series.at(now)) {
            (Some(_), Some(_)) => judgement.changes.extend(change(series, before, now)),
            (None, Some(_)) => judgement.new.push(series.key()),
            (Some(_), None) => judgement.gone.push(series.key()),
            (None, None) => {}
        }
    }
    judgement.changes.sort_by(|a, b| b.distance().total_cmp(&a.distance()));
    judgement
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use crate::Subject;
    use crate::history::Entry;
    use crate::measure::Measure;
    use crate::record::Record;
    use crate::row::Row;

    /// A record of one kernel, one loss and one size.
    pub(crate) fn entry(name: &str, ms: f64, calibrated: Option<f64>, loss: f64) -> Entry {
        let subject = Subject::own().swap_remove(0);
        let row = Row::new(&subject, ("plain", true), "a device", None, &[ms]);
        let number = |kind: &str, metric: &str, value: f64, better| Measure {
            kind: kind.into(),
            op: "compare".into(),
            format: "edge".into(),
            shape: "demo".into(),
            metric: metric.into(),
            value,
            unit: if kind == "quality" { "nats".into() } else { String::new() },
            better,
            repeat: "x".into(),
            seed: None,
        };
        let measures = vec![
            number("quality", "val_loss", loss, Better::Lower),
            number("tuning", "speed_ratio_to_lora", 1.0 / ms, Better::Higher),
        ];
        let record = Record {
            rows: vec![Row { calibrated, ..row }],
            measures,
            commit: "abc".into(),
            date: name.into(),
            fingerprint: "f".into(),
            machine: None,
        };
        Entry { device: "a-device".into(), name: name.into(), record }
    }

    #[test]
    fn calibrated_times_decide_where_there_are_some() {
        // Twice as slow by the clock on a machine that was twice as slow.
        let entries = vec![entry("1", 1.0, Some(0.5), 3.0), entry("2", 2.0, Some(0.5), 3.0)];
        let judgement = judge(&History { entries }, 0, 1);
        let kernel = judgement.changes.iter().find(|one| one.kind == "kernel").expect("in both");
        assert_eq!((kernel.ratio, kernel.now), (1.0, 2.0));
        assert_eq!(kernel.verdict(), Verdict::Nothing);
        let entries = vec![entry("1", 1.0, None, 3.0), entry("2", 2.0, Some(0.5), 3.0)];
        let judgement = judge(&History { entries }, 0, 1);
        let kernel = judgement.changes.iter().find(|one| one.kind == "kernel").expect("in both");
        assert_eq!((kernel.basis, kernel.ratio), (Basis::Clock, 2.0));
        assert!(matches!(kernel.verdict(), Verdict::Moved(_)), "nobody's fault");
        assert_eq!(judgement.regressions().len(), 1, "the ratio to vanilla has halved");
    }

    #[test]
    fn a_row_is_judged_by_its_own_history() {
        let noisy = [1.0, 1.4, 0.8, 1.3, 0.9, 1.2].map(|ms| entry("n", ms, Some(ms), 3.0));
        let calm = [1.0, 1.01, 0.99, 1.0, 1.02, 1.0].map(|ms| entry("c", ms, Some(ms), 3.0));
        let judged = |mut entries: Vec<Entry>| {
            entries.push(entry("new", 1.15, Some(1.15), 3.0));
            let now = entries.len() - 1;
            let judgement = judge(&History { entries }, 0, now);
            judgement.regressions().iter().any(|change| change.kind == "kernel")
        };
        assert!(judged(calm.into()) && !judged(noisy.into()));
    }

    #[test]
    fn losses_are_exact_and_directions_count() {
        let entries = vec![entry("1", 1.0, None, 3.0), entry("2", 0.5, None, 3.1)];
        let judgement = judge(&History { entries }, 0, 1);
        let keys = |changes: Vec<&Change>| -> Vec<String> {
            changes.iter().map(|change| change.kind.clone()).collect()
        };
        assert_eq!(keys(judgement.regressions()), ["quality"]);
        assert_eq!(keys(judgement.improvements()), ["tuning", "kernel"]);
    }
}
