//! The charts of a run's report. Each takes its points from the rows as they are and draws at most
//! a few hundred of them, so that a page stays small whatever the length of the run.

use edge_kernels::Category;
use edge_scheduler::Projection;

use super::Report;
use crate::chart::{
    self, Bar, COLOURS, Cell, Curve, Line, Mark, Part, Row, Stroke, averaged, legend, smoothed,
    thinned,
};
use crate::metrics::{StepRow, ValidationRow};
use crate::session::mebibytes;

/// Most points of what was measured at each step, in a chart.
const RAW_POINTS: usize = 600;

/// Most points of a smoothed line, in a chart.
const SMOOTH_POINTS: usize = 240;

/// Most marks of validations on the timeline.
const MARKS: usize = 60;

/// Fewer points than this are not smoothed.
const FEW: usize = 20;

/// Where there is nothing to draw yet.
const NOTHING: &str = "Nothing was measured yet.";

/// A line as it was measured, pale, and smoothed; `share` of the points of a chart.
fn measured(name: &str, colour: usize, points: &Line, share: usize) -> Vec<Curve> {
    let curve = |name: String, stroke, points| Curve { name, colour, stroke, points };
    if points.len() < FEW {
        return vec![curve(name.into(), Stroke::Dots, points.clone())];
    }
    let span = (points.len() as f64 / 40.0).clamp(2.0, 200.0);
    let smooth = averaged(&smoothed(points, span), (SMOOTH_POINTS / share).max(40));
    vec![
        curve(format!("{name}, raw"), Stroke::Thin, thinned(points, (RAW_POINTS / share).max(60))),
        curve(name.into(), Stroke::Thick, smooth),
    ]
}

fn points(rows: &[StepRow], value: impl Fn(&StepRow) -> f64) -> Line {
    rows.iter().map(|row| (row.step as f64, value(row))).collect()
}

fn exits(report: &Report) -> usize {
    report.header.windows.len().max(1)
}

/// Losses: of training, by window, with validation; and of each exit.
pub(super) fn loss(report: &Report) -> String {
    let metrics = &report.metrics;
    let windows = exits(report);
    let mut curves: Vec<Curve> = Vec::new();
    for window in 0..windows {
        let own: Vec<StepRow> = match windows {
            1 => metrics.steps.clone(),
            _ => {
                let steps = metrics.steps.iter();
                steps.filter(|row| row.window == window as u64 + 1).cloned().collect()
            }
        };
        let name = match windows {
            1 => "training".to_owned(),
            _ => format!("training, window {}", window + 1),
        };
        curves.extend(measured(&name, window % COLOURS, &points(&own, |row| row.loss), windows));
    }
    // Pale lines lie below.
    curves.sort_by_key(|curve| curve.stroke != Stroke::Thin);
    let valid: Line = thinned(
        &metrics.validations.iter().map(|row| (row.step as f64, row.val_loss)).collect::<Line>(),
        SMOOTH_POINTS,
    );
    let colour = windows % COLOURS;
    curves.push(Curve { name: "validation".into(), colour, stroke: Stroke::Dots, points: valid });
    let unlike = metrics.steps.iter().filter(|row| !row.loss.is_finite()).count();
    let mut caption =
        "Mean over the trained tokens of a step, before its update; smoothed, and pale as measured."
            .to_owned();
    if let Some(first) = metrics.steps.iter().find(|row| !row.loss.is_finite()) {
        caption.push_str(&format!(
            " {unlike} of {} losses are no numbers, the first at step {}.",
            metrics.steps.len(),
            first.step
        ));
    }
    let missing = match metrics.steps.is_empty() {
        true => NOTHING,
        false => "No loss is a number.",
    };
    let drawing = chart::lines(&curves, &marks(report), "step", "loss, nats");
    let mut html = chart::figure(drawing, "Loss", &caption, missing);
    if windows > 1 {
        html.push_str(&by_exit(report, windows));
    }
    html
}

/// The best checkpoint, where there is one.
fn marks(report: &Report) -> Vec<Mark> {
    report.best.iter().map(|(step, _)| Mark { x: *step as f64, name: "best".into() }).collect()
}

fn by_exit(report: &Report, windows: usize) -> String {
    let rows = &report.metrics.validations;
    let exit = |index: usize| -> Line {
        let value = |exits: &[f64]| exits.get(index).copied().unwrap_or(f64::NAN);
        rows.iter().map(|row| (row.step as f64, value(&row.val_exits))).collect()
    };
    let curve = |name: String, colour: usize, points: Line| Curve {
        name,
        colour: colour % COLOURS,
        stroke: Stroke::Dots,
        points: thinned(&points, SMOOTH_POINTS),
    };
    let mut curves: Vec<Curve> = (0..windows)
        .map(|index| curve(format!("exit {}", index + 1), index, exit(index)))
        .collect();
    let vote = rows.iter().map(|row| (row.step as f64, row.val_vote)).collect();
    let name = format!("vote {}", report.options.vote.name());
    curves.push(curve(name, windows, vote));
    let caption = "On the validation data. A learned vote is fitted after training, on their first \
                   half; before that it is the last exit.";
    chart::figure(
        chart::lines(&curves, &marks(report), "step", "validation loss, nats"),
        "Validation by exit",
        caption,
        NOTHING,
    )
}

/// Throughput, learning rate, norm of the gradient.
pub(super) fn speed(report: &Report) -> String {
    let steps = &report.metrics.steps;
    let ends = steps.first().zip(steps.last()).map(|(a, b)| [a.step as f64, b.step as f64]);
    let constant = |name: &str, value: f64| {
        let points = ends.iter().flatten().map(|x| (*x, value)).collect();
        Curve { name: name.into(), colour: 1, stroke: Stroke::Dashed, points }
    };
    let mut speed = measured("tokens/s", 0, &points(steps, |row| row.tokens_per_s), 1);
    if let Some(ms) = report.header.predicted_step_ms {
        speed.push(constant("predicted", report.header.tokens_per_step() as f64 / ms * 1e3));
    }
    let rate = Curve {
        name: "learning rate".into(),
        points: thinned(&points(steps, |row| row.lr), SMOOTH_POINTS),
        ..Curve::default()
    };
    let mut norm = measured("gradient norm", 0, &points(steps, |row| row.grad_norm), 1);
    let most = steps.iter().map(|row| row.grad_norm).fold(0.0, f64::max);
    // A bound far above all norms would press them onto the axis.
    if report.options.clip > 0.0 && report.options.clip < 2.0 * most {
        norm.push(constant("clipped above", report.options.clip));
    }
    let figure = |curves: &[Curve], title: &str, y_label: &str, caption: &str| {
        chart::figure(chart::lines(curves, &[], "step", y_label), title, caption, NOTHING)
    };
    [
        figure(
            &speed,
            "Throughput",
            "tokens/s",
            "Of training steps alone; validation does not count.",
        ),
        figure(
            &norm,
            "Gradient norm",
            "L2 norm",
            "Of the window that is trained, before clipping.",
        ),
        figure(
            &[rate],
            "Learning rate",
            "learning rate",
            "Its peak, warm-up and fall are those of the options.",
        ),
    ]
    .concat()
}

/// Memory by category, planned and measured, against the budget.
pub(super) fn memory(report: &Report) -> String {
    let header = &report.header;
    let mib = |bytes: u64| bytes as f64 / f64::from(1 << 20);
    let part = |name: &str, bytes: u64| {
        let colour = Category::ALL.iter().position(|category| category.name() == name);
        Part { name: name.into(), value: mib(bytes), colour: colour.unwrap_or(COLOURS - 1) }
    };
    let planned = header.planned_bytes_by_category.iter();
    let mut bars = vec![Bar {
        name: "planned".into(),
        parts: planned.map(|(name, bytes)| part(name, *bytes)).collect(),
        spread: None,
        label: mebibytes(header.planned_bytes),
    }];
    let peak = report.metrics.steps.last().map(|row| row.device_bytes);
    let by_category = report.result["peak_device_bytes_by_category"].as_object();
    if let (Some(peak), Some(by_category)) = (peak, by_category) {
        let parts = by_category.iter().map(|(name, bytes)| part(name, bytes.as_u64().unwrap_or(0)));
        bars.push(Bar {
            name: "measured".into(),
            parts: parts.collect(),
            spread: None,
            label: mebibytes(peak),
        });
    } else if let Some(peak) = peak {
        let parts = vec![Part { name: "in all".into(), value: mib(peak), colour: COLOURS - 1 }];
        bars.push(Bar { name: "so far".into(), parts, spread: None, label: mebibytes(peak) });
    }
    let limit = header.budget_bytes.map(|bytes| Mark { x: mib(bytes), name: "budget, MiB".into() });
    let used = Category::ALL.iter().enumerate().filter(|(index, _)| {
        header.planned_bytes_by_category.get(*index).is_some_and(|(_, bytes)| *bytes > 0)
    });
    let legend = legend(used.map(|(colour, category)| (category.name(), colour)));
    let caption = match header.budget_bytes {
        Some(bytes) => {
            format!("Peak by category; the dashed line is the budget, {}.", mebibytes(bytes))
        }
        None => "Peak by category; no --memory-budget was given.".into(),
    };
    let drawing = chart::bars(&bars, limit.as_ref(), "MiB").map(|svg| legend + &svg);
    chart::figure(drawing, "Device memory", &caption, NOTHING)
}

/// The colour of a number of bits.
fn colour_of(bits: u32) -> usize {
    match bits {
        2 => 1,
        3 => 4,
        4 => 2,
        8 => 0,
        16 => 6,
        _ => 7,
    }
}

/// How each projection of each block is stored.
pub(super) fn layers(report: &Report) -> String {
    let layers = &report.header.layers;
    let mut widths: Vec<u32> = layers.iter().flatten().map(|stored| stored.bits).collect();
    widths.sort_unstable();
    widths.dedup();
    let sparse = layers.iter().flatten().any(|stored| stored.sparsity > 0.0);
    let row = |projection: &Projection| {
        let cells = layers.iter().enumerate().filter_map(|(block, stored)| {
            let stored = stored.get(projection.index())?;
            let kept = match stored.sparsity {
                share if share > 0.0 => format!("{:.0} % left out", 100.0 * share),
                _ => "dense".to_owned(),
            };
            Some(Cell {
                x: (block as f64, block as f64 + 0.94),
                shade: if stored.sparsity > 0.0 { 0.2 } else { 0.55 },
                colour: colour_of(stored.bits),
                text: stored.bits.to_string(),
                title: format!(
                    "block {}, {}: {} bit, {kept}",
                    block + 1,
                    projection.name(),
                    stored.bits
                ),
            })
        });
        Row { name: projection.name().into(), cells: cells.collect() }
    };
    let rows: Vec<Row> = Projection::ALL.iter().map(row).collect();
    let names: Vec<(String, usize)> =
        widths.iter().map(|bits| (format!("{bits} bit"), colour_of(*bits))).collect();
    let legend = legend(names.iter().map(|(name, colour)| (name.as_str(), *colour)));
    let drawing = chart::strip(&rows, &[], layers.len() as f64, "").map(|svg| legend + &svg);
    let pale = if sparse { " Pale: half of the weights are left out (2:4)." } else { "" };
    let caption = format!(
        "Stored weights of {} ({}). Blocks from the bottom of the model at the left to its top at \
         the right.{pale}",
        report.header.model, report.header.precision
    );
    chart::figure(drawing, "Bits of each layer", &caption, NOTHING)
}

/// The parts of the timeline.
const PARTS: usize = 100;

/// Which window was trained when, and when that was validated.
pub(super) fn timeline(report: &Report) -> String {
    let steps = &report.metrics.steps;
    let windows = exits(report);
    let end = steps.last().map_or(0.0, |row| row.step as f64);
    let parts = PARTS.min(steps.len());
    let row = |window: usize| {
        let mut cells: Vec<Cell> = Vec::new();
        for part in 0..parts {
            let own = &steps[part * steps.len() / parts..(part + 1) * steps.len() / parts];
            let count = own.iter().filter(|row| row.window == window as u64 + 1).count();
            if count == 0 {
                continue;
            }
            let shade = 0.9 * count as f64 / own.len() as f64;
            let x = (own[0].step as f64 - 1.0, own[own.len() - 1].step as f64);
            let title = |from: f64, to: f64, shade: f64| {
                let share = 100.0 * shade / 0.9;
                format!("window {}: {share:.0} % of steps {} to {to}", window + 1, from + 1.0)
            };
            // Parts that are alike are one cell.
            match cells.last_mut() {
                Some(last) if last.x.1 == x.0 && (last.shade - shade).abs() < 0.02 => {
                    last.x.1 = x.1;
                    last.title = title(last.x.0, x.1, last.shade);
                }
                _ => cells.push(Cell {
                    x,
                    shade,
                    colour: window % COLOURS,
                    text: String::new(),
                    title: title(x.0, x.1, shade),
                }),
            }
        }
        let blocks = report.header.windows.get(window);
        let name = match blocks {
            Some([first, last]) if windows > 1 => format!("blocks {first}-{last}"),
            _ => "all".into(),
        };
        Row { name, cells }
    };
    let rows: Vec<Row> = match steps.is_empty() {
        true => Vec::new(),
        false => (0..windows).rev().map(row).collect(),
    };
    let validations = &report.metrics.validations;
    let every = validations.len().div_ceil(MARKS).max(1);
    let named = |row: &ValidationRow| match row.val_loss.is_finite() {
        true => format!("validation, loss {:.4}", row.val_loss),
        false => "validation, whose loss is no number,".to_owned(),
    };
    let shown = validations.iter().step_by(every);
    let mut marks: Vec<Mark> =
        shown.map(|row| Mark { x: row.step as f64, name: named(row) }).collect();
    marks.extend(self::marks(report));
    let caption = "Which window was trained when, the top one first: the stronger the colour, the \
                   more of the steps. Pins are validations.";
    chart::figure(chart::strip(&rows, &marks, end, "step"), "Windows over time", caption, NOTHING)
}
