//! Records as series: each row of each device over time.

use std::collections::HashMap;

use crate::fence::{Fence, Least};
use crate::history::{Entry, History};
use crate::measure::{Better, Measure};
use crate::row::{Row, median};

/// The kind of a kernel's series; a [`Measure`]'s is its own.
pub const KERNEL: &str = "kernel";

/// A row in one record.
#[derive(Clone, Debug, PartialEq)]
pub struct Point {
    /// Index of the record in [`History::entries`].
    pub record: usize,
    /// Milliseconds, or the measure's value: the median over passes.
    pub value: f64,
    /// Median absolute deviation of the samples, in the unit of `value`; 0 for measures.
    pub spread: f64,
    /// Times of the calibration kernel, one a pass; none where it was not timed.
    pub calibrated: Vec<f64>,
    /// Median absolute deviation of the rounds from it.
    pub calibrated_spread: f64,
    /// The kernel's rates, where it is one.
    pub rates: Option<Rates>,
}

/// What a kernel's time amounts to.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Rates {
    /// 10⁹ bytes a second.
    pub gb_s: f64,
    /// 10⁹ operations a second.
    pub gflop_s: f64,
    /// Share of the roof.
    pub roof_share: Option<f64>,
    /// Times as fast as dense f32.
    pub to_f32: Option<f64>,
}

/// A row over time, older records first.
#[derive(Clone, Debug, PartialEq)]
pub struct Series {
    /// Folder of the device.
    pub device: String,
    /// [`KERNEL`], or a measure's kind.
    pub kind: String,
    /// Op, format, shape and variant or metric.
    pub names: [String; 4],
    /// Whether production takes the variant, in the newest record; true for measures.
    pub production: bool,
    /// Unit of the value.
    pub unit: String,
    /// Which way it ought to go.
    pub better: Better,
    /// How to repeat it.
    pub repeat: String,
    /// One a record.
    pub points: Vec<Point>,
}

impl Series {
    /// `op/format/shape/variant`.
    pub fn key(&self) -> String {
        self.names.join("/")
    }

    fn kernel(entry: &Entry, row: &Row) -> Self {
        Self {
            device: entry.device.clone(),
            kind: KERNEL.into(),
            names: [&row.op, &row.format, &row.shape, &row.variant].map(Clone::clone),
            production: row.production,
            unit: "ms".into(),
            better: Better::Lower,
            repeat: format!(
                "cargo xtask bench op={} format={} shape={}",
                row.op, row.format, row.shape
            ),
            points: Vec::new(),
        }
    }

    fn measure(entry: &Entry, one: &Measure) -> Self {
        Self {
            device: entry.device.clone(),
            kind: one.kind.clone(),
            names: [&one.op, &one.format, &one.shape, &one.metric].map(Clone::clone),
            production: true,
            unit: one.unit.clone(),
            better: one.better,
            repeat: one.repeat.clone(),
            points: Vec::new(),
        }
    }

    /// The point of a record.
    pub fn at(&self, record: usize) -> Option<&Point> {
        self.points.iter().find(|point| point.record == record)
    }

    /// Least widths of its fence.
    fn least(&self) -> Least {
        let timed = self.kind == KERNEL || matches!(self.unit.as_str(), "1/s" | "s" | "");
        if timed && self.kind != "size" { Least::TIMED } else { Least::EXACT }
    }

    /// Half the width of the fence, relative, by all that was known before a record: what a
    /// change to that record must exceed to count. By calibrated times where `calibrated`.
    pub fn reach(&self, before: usize, calibrated: bool) -> Option<f64> {
        let known: Vec<&Point> = self.points.iter().filter(|point| point.record < before).collect();
        let last = known.last()?;
        let (values, spread): (Vec<f64>, f64) = match calibrated {
            true => {
                let values = known.iter().flat_map(|point| point.calibrated.iter().copied());
                (values.collect(), last.calibrated_spread)
            }
            false => (known.iter().map(|point| point.value).collect(), last.spread),
        };
        (!values.is_empty()).then(|| Fence::of(&values, spread, self.least()).width())
    }
}

impl Point {
    /// The median over passes of the calibrated time.
    pub fn calibrated(&self) -> Option<f64> {
        (!self.calibrated.is_empty()).then(|| median(self.calibrated.clone()))
    }

    fn of_rows(record: usize, rows: &[&Row]) -> Self {
        let middle = |get: fn(&Row) -> f64| median(rows.iter().map(|row| get(row)).collect());
        let known = |get: fn(&Row) -> Option<f64>| {
            let values: Vec<f64> = rows.iter().filter_map(|row| get(row)).collect();
            (!values.is_empty()).then(|| median(values))
        };
        Self {
            record,
            value: middle(|row| row.median_ms),
            spread: middle(|row| row.spread_ms),
            calibrated: rows.iter().filter_map(|row| row.calibrated).collect(),
            calibrated_spread: known(|row| row.calibrated_spread).unwrap_or(0.0),
            rates: Some(Rates {
                gb_s: middle(|row| row.gb_s),
                gflop_s: middle(|row| row.gflop_s),
                roof_share: known(|row| row.roof_share),
                to_f32: known(|row| row.ratio_to_dense_f32),
            }),
        }
    }
}

/// All series of a history, in the order in which their keys appeared first.
pub fn all(history: &History) -> Vec<Series> {
    let mut found: Vec<Series> = Vec::new();
    let mut places: HashMap<(String, String), usize> = HashMap::new();
    let mut add = |new: Series, point: Point| {
        let place = *places.entry((new.device.clone(), new.key())).or_insert_with(|| {
            found.push(new.clone());
            found.len() - 1
        });
        let known = &mut found[place];
        known.production = new.production;
        known.repeat = new.repeat;
        known.points.push(point);
    };
    for (index, entry) in history.entries.iter().enumerate() {
        let mut passes: HashMap<String, Vec<&Row>> = HashMap::new();
        let mut order = Vec::new();
        for row in &entry.record.rows {
            let rows = passes.entry(row.key()).or_default();
            if rows.is_empty() {
                order.push(row);
            }
            rows.push(row);
        }
        for row in order {
            add(Series::kernel(entry, row), Point::of_rows(index, &passes[&row.key()]));
        }
        for one in &entry.record.measures {
            let point = Point {
                record: index,
                value: one.value,
                spread: 0.0,
                calibrated: Vec::new(),
                calibrated_spread: 0.0,
                rates: None,
            };
            add(Series::measure(entry, one), point);
        }
    }
    found
}
