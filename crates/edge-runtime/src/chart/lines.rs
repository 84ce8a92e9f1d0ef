//! Lines over x.

use std::fmt::Write;

use super::axes::{Frame, exact};
use super::{escape, legend};

/// Points of a line, x rising; a y that is no number is a gap.
pub type Line = Vec<(f64, f64)>;

/// How a curve is drawn.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Stroke {
    /// Thin and pale: what a thicker one sums up. Not in the legend where `name` is another's.
    Thin,
    /// A line.
    #[default]
    Thick,
    /// A line with a dot at each point.
    Dots,
    /// A dashed line: what was predicted.
    Dashed,
}

impl Stroke {
    fn class(self) -> &'static str {
        match self {
            Self::Thin => "thin",
            Self::Thick | Self::Dots => "thick",
            Self::Dashed => "dashed",
        }
    }
}

/// A line with a name.
#[derive(Clone, Debug, Default)]
pub struct Curve {
    /// Its name, for the legend and what is said of a point.
    pub name: String,
    /// Its colour, below [`super::COLOURS`].
    pub colour: usize,
    /// How it is drawn.
    pub stroke: Stroke,
    /// Its points.
    pub points: Line,
}

/// A place on the x axis with a name, drawn as a vertical line.
#[derive(Clone, Debug)]
pub struct Mark {
    /// Where.
    pub x: f64,
    /// What.
    pub name: String,
}

/// Most columns that say what their points are.
const COLUMNS: usize = 100;

/// The path of a line: a stroke for each run of numbers.
fn path(frame: &Frame, points: &[(f64, f64)]) -> String {
    let mut d = String::new();
    for run in points.split(|point| !point.1.is_finite()).filter(|run| !run.is_empty()) {
        for (index, &point) in run.iter().enumerate() {
            let (x, y) = frame.place(point);
            let _ = write!(d, "{}{x:.1} {y:.1}", if index == 0 { 'M' } else { 'L' });
        }
        // The round end of nothing is a dot.
        if run.len() == 1 {
            d.push_str("h0");
        }
    }
    d
}

/// Invisible columns that say the values within them, as a tooltip and through the page's script.
fn columns(svg: &mut String, frame: &Frame, curves: &[Curve], x_name: &str) {
    let bin = |x: f64| ((x - frame.x.0) / (frame.x.1 - frame.x.0) * COLUMNS as f64) as usize;
    let mut bins: Vec<(f64, Vec<Option<f64>>)> = vec![(0.0, Vec::new()); COLUMNS + 1];
    for (index, curve) in curves.iter().enumerate() {
        for &(x, y) in curve.points.iter().filter(|point| point.1.is_finite()) {
            let (at, values) = &mut bins[bin(x).min(COLUMNS)];
            values.resize(curves.len(), None);
            (*at, values[index]) = (at.max(x), Some(y));
        }
    }
    bins.retain(|(_, values)| !values.is_empty());
    let places: Vec<f64> = bins.iter().map(|(x, _)| frame.place((*x, 0.0)).0).collect();
    let (top, bottom) = Frame::edges();
    let (left, right) = (frame.place((frame.x.0, 0.0)).0, frame.place((frame.x.1, 0.0)).0);
    for (index, (x, values)) in bins.iter().enumerate() {
        let from = if index == 0 { left } else { (places[index - 1] + places[index]) / 2.0 };
        let to = places.get(index + 1).map_or(right, |next| (places[index] + next) / 2.0);
        let said: Vec<String> = values
            .iter()
            .zip(curves)
            .filter_map(|(value, curve)| Some(format!("{} {}", curve.name, exact((*value)?))))
            .collect();
        let _ = write!(
            svg,
            "<rect class=\"hit\" x=\"{from:.1}\" y=\"{top}\" width=\"{:.1}\" height=\"{:.1}\">\
             <title>{} {}: {}</title></rect>",
            (to - from).max(0.5),
            bottom - top,
            escape(x_name),
            exact(*x),
            escape(&said.join(", "))
        );
    }
}

/// Curves over x, with a legend; `None` where there is nothing to draw. `x_label` begins with what
/// x is called, before a comma and its unit.
pub fn lines(curves: &[Curve], marks: &[Mark], x_label: &str, y_label: &str) -> Option<String> {
    let frame = Frame::around(curves.iter().map(|curve| &curve.points[..]))?;
    let mut svg = Frame::open(&format!("{y_label} against {x_label}"));
    frame.axes(&mut svg, x_label, y_label);
    let (top, bottom) = Frame::edges();
    for mark in marks.iter().filter(|mark| (frame.x.0..=frame.x.1).contains(&mark.x)) {
        let x = frame.place((mark.x, 0.0)).0;
        let (dx, anchor) = if x > 300.0 { (-4.0, "end") } else { (4.0, "start") };
        let _ = write!(
            svg,
            "<line class=\"mark\" x1=\"{x:.1}\" y1=\"{top}\" x2=\"{x:.1}\" y2=\"{bottom}\"/>\
             <text class=\"tick\" x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"{anchor}\">{}</text>",
            x + dx,
            top + 10.0,
            escape(&mark.name)
        );
    }
    for curve in curves {
        let (class, colour) = (curve.stroke.class(), curve.colour);
        let d = path(&frame, &curve.points);
        let _ = write!(svg, "<path class=\"{class} s{colour}\" d=\"{d}\"/>");
        if curve.stroke == Stroke::Dots {
            for &point in curve.points.iter().filter(|point| point.1.is_finite()) {
                let (x, y) = frame.place(point);
                let _ = write!(
                    svg,
                    "<circle class=\"c{colour}\" cx=\"{x:.1}\" cy=\"{y:.1}\" r=\"2.6\"/>"
                );
            }
        }
    }
    let (name, _) = x_label.split_once(',').unwrap_or((x_label, ""));
    columns(&mut svg, &frame, curves, name);
    svg.push_str("</svg>");
    let named = curves.iter().filter(|curve| curve.points.iter().any(|p| p.1.is_finite()));
    let mut names: Vec<(&str, usize)> = Vec::new();
    for curve in named.filter(|curve| curve.stroke != Stroke::Thin) {
        names.push((&curve.name, curve.colour));
    }
    Some(format!("{}{svg}<p class=\"readout soft\"></p>", legend(names.into_iter())))
}

/// The mean of lines where all of them are, at the x of the one with the fewest points.
pub fn mean_line(lines: &[&Line]) -> Line {
    let lines: Vec<&&Line> = lines.iter().filter(|line| !line.is_empty()).collect();
    let Some(grid) = lines.iter().min_by_key(|line| line.len()) else { return Vec::new() };
    let first = lines.iter().map(|line| line[0].0).fold(f64::MIN, f64::max);
    let last = lines.iter().map(|line| line[line.len() - 1].0).fold(f64::MAX, f64::min);
    let mut mean: Line = Vec::new();
    for &(x, _) in grid.iter() {
        let x = x.max(first).min(last);
        if mean.last().is_none_or(|(before, _)| *before < x) {
            let sum: f64 = lines.iter().map(|line| value_at(line, x)).sum();
            mean.push((x, sum / lines.len() as f64));
        }
    }
    mean
}

/// A line's y at an x within it.
fn value_at(line: &Line, x: f64) -> f64 {
    let after = line.iter().position(|point| point.0 >= x).unwrap_or(line.len() - 1);
    let (x1, y1) = line[after];
    let (x0, y0) = line[after.saturating_sub(1)];
    if x1 > x0 { y0 + (y1 - y0) * (x - x0) / (x1 - x0) } else { y1 }
}

/// At most about `most` points of a line: in each of equally many parts the least and the
/// greatest, in their order, so that no spike is lost.
pub fn thinned(points: &[(f64, f64)], most: usize) -> Line {
    if points.len() <= most {
        return points.to_vec();
    }
    let parts = (most / 2).max(1);
    let mut kept = Line::with_capacity(2 * parts + 1);
    for part in 0..parts {
        let (from, to) = (part * points.len() / parts, (part + 1) * points.len() / parts);
        let numbered = (from..to).filter(|&index| points[index].1.is_finite());
        let by = |a: &usize, b: &usize| points[*a].1.total_cmp(&points[*b].1);
        let (least, greatest) = (numbered.clone().min_by(by), numbered.max_by(by));
        match (least, greatest) {
            (Some(a), Some(b)) => {
                kept.push(points[a.min(b)]);
                if a != b {
                    kept.push(points[a.max(b)]);
                }
            }
            // A part without a number is a gap.
            _ => kept.push((points[from].0, f64::NAN)),
        }
    }
    kept
}

/// The mean of each of at most `most` equal parts of a line; gaps count nothing.
pub fn averaged(points: &[(f64, f64)], most: usize) -> Line {
    if points.len() <= most {
        return points.to_vec();
    }
    let part =
        |index: usize| &points[index * points.len() / most..(index + 1) * points.len() / most];
    let mean = |part: &[(f64, f64)]| {
        let finite: Vec<f64> = part.iter().map(|p| p.1).filter(|y| y.is_finite()).collect();
        (part[part.len() - 1].0, finite.iter().sum::<f64>() / finite.len() as f64)
    };
    (0..most).map(|index| mean(part(index))).collect()
}

/// An exponential moving average that forgets over `span` points, without a bias to its start; gaps
/// change nothing.
pub fn smoothed(points: &[(f64, f64)], span: f64) -> Line {
    let decay = 1.0 - 1.0 / span.max(1.0);
    let (mut sum, mut weight) = (0.0, 0.0);
    let smooth = points.iter().map(|&(x, y)| {
        if y.is_finite() {
            (sum, weight) = (decay * sum + y, decay * weight + 1.0);
        }
        (x, sum / weight)
    });
    smooth.collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::chart::axes::WIDTH;

    #[test]
    fn the_mean_is_taken_where_all_lines_are() {
        let a = vec![(0.0, 4.0), (1.0, 2.0), (2.0, 0.0)];
        let b = vec![(0.0, 2.0), (1.0, 2.0), (2.0, 2.0)];
        assert_eq!(mean_line(&[&a, &b]), [(0.0, 3.0), (1.0, 2.0), (2.0, 1.0)]);
        // Fewer points, and an end between two of the other's.
        let c = vec![(0.0, 0.0), (1.5, 3.0)];
        assert_eq!(mean_line(&[&a, &c]), [(0.0, 2.0), (1.5, 2.0)]);
        assert!(mean_line(&[]).is_empty());
    }

    #[test]
    fn curves_lie_in_their_frame() {
        let curve =
            |name: &str, stroke, points| Curve { name: name.into(), colour: 1, stroke, points };
        let curves = [
            curve("a<b", Stroke::Thin, vec![(0.0, 5.0), (1e6, 3.0)]),
            curve("mean", Stroke::Dots, vec![(0.0, 5.0), (5e5, f64::NAN), (1e6, 2.0)]),
        ];
        let mark = Mark { x: 5e5, name: "best".into() };
        let svg = lines(&curves, &[mark], "tokens", "loss, nats").unwrap();
        assert!(svg.contains("a&lt;b") && !svg.contains("a<b") && svg.contains(">best<"));
        assert_eq!(
            (svg.matches("class=\"thin").count(), svg.matches("class=\"thick").count()),
            (1, 1)
        );
        assert_eq!(svg.matches("<circle").count(), 2);
        let title = "<title>tokens 1000000: a&lt;b 3, mean 2</title>";
        assert!(svg.contains(title), "{svg}");
        let (top, bottom) = Frame::edges();
        let paths = svg.split(" d=\"").skip(1).map(|rest| rest.split('"').next().unwrap());
        for point in paths.flat_map(|d| d.split(['M', 'L'])).filter(|point| !point.is_empty()) {
            let (x, y) = point.trim_end_matches("h0").split_once(' ').unwrap();
            let (x, y): (f64, f64) = (x.parse().unwrap(), y.parse().unwrap());
            assert!((0.0..=WIDTH).contains(&x) && (top..=bottom).contains(&y), "{point}");
        }
        assert!(lines(&[], &[], "x", "y").is_none());
        let alone = [curve("one", Stroke::Thick, vec![(1.0, 2.0)])];
        assert!(lines(&alone, &[], "x", "y").unwrap().contains("h0\""));
    }

    #[test]
    fn long_lines_keep_their_spikes_and_means() {
        let line: Line =
            (0..100_000).map(|i| (i as f64, if i == 777 { 9.0 } else { 1.0 })).collect();
        let thin = thinned(&line, 400);
        assert!(thin.len() <= 400 && thin.contains(&(777.0, 9.0)));
        assert!(thin.windows(2).all(|pair| pair[0].0 < pair[1].0));
        let mean = averaged(&line, 100);
        assert_eq!(mean.len(), 100);
        assert!((mean[0].1 - 1.008).abs() < 1e-9 && mean[1].1 == 1.0);
        assert_eq!(mean[99].0, 99_999.0);
        let gaps: Line = (0..1000).map(|i| (i as f64, f64::NAN)).collect();
        assert!(thinned(&gaps, 10).iter().chain(&averaged(&gaps, 10)).all(|p| p.1.is_nan()));
        assert_eq!(thinned(&line[..3], 10), line[..3]);
    }

    #[test]
    fn smoothing_begins_at_the_first_value() {
        let line = [(1.0, f64::NAN), (2.0, 4.0), (3.0, f64::NAN), (4.0, 2.0)];
        let smooth = smoothed(&line, 2.0);
        assert!(smooth[0].1.is_nan());
        assert_eq!((smooth[1].1, smooth[2].1), (4.0, 4.0));
        assert!((smooth[3].1 - (0.5 * 4.0 + 2.0) / 1.5).abs() < 1e-12);
    }
}
