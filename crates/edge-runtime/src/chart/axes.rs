//! Axes: where values lie on a drawing, round numbers along it, numbers in few characters.

use std::fmt::Write;

use super::escape;

/// Width of every drawing: about that of a phone, so that text keeps its size there.
pub(super) const WIDTH: f64 = 440.0;
const HEIGHT: f64 = 270.0;
const LEFT: f64 = 64.0;
const RIGHT: f64 = 14.0;
const TOP: f64 = 12.0;
const BOTTOM: f64 = 46.0;

/// Round numbers over a range, about `count` of them.
pub fn ticks(low: f64, high: f64, count: usize) -> Vec<f64> {
    let span = high - low;
    if span.is_nan() || span <= 0.0 || !span.is_finite() {
        return vec![low];
    }
    let rough = span / count as f64;
    let power = 10f64.powf(rough.log10().floor());
    let step = [1.0, 2.0, 5.0, 10.0].into_iter().map(|m| m * power).find(|s| *s >= rough);
    let step = step.unwrap_or(power);
    let first = (low / step - 1e-9).ceil() as i64;
    let last = (high / step + 1e-9).floor() as i64;
    (first..=last).map(|i| i as f64 * step).collect()
}

/// A number in few characters: `1.5M`, `20k`, `0.25`, `2e-5`.
pub fn short(value: f64) -> String {
    if value != 0.0 && value.abs() < 1e-3 {
        let text = format!("{value:.1e}");
        return text.replace(".0e", "e");
    }
    let (scaled, unit) = match value.abs() {
        v if v >= 1e9 => (value / 1e9, "G"),
        v if v >= 1e6 => (value / 1e6, "M"),
        v if v >= 1e3 => (value / 1e3, "k"),
        _ => (value, ""),
    };
    let digits = match scaled.abs() {
        v if v >= 100.0 => 0,
        v if v >= 10.0 => 1,
        v if v >= 1.0 => 2,
        _ => 3,
    };
    let text = format!("{scaled:.digits$}");
    let text = match text.contains('.') {
        true => text.trim_end_matches('0').trim_end_matches('.'),
        false => &text,
    };
    format!("{text}{unit}")
}

/// A number with four digits behind the point where it is no whole one.
pub fn exact(value: f64) -> String {
    match value {
        v if v.fract() == 0.0 && v.abs() < 1e15 => format!("{v:.0}"),
        v if v.abs() < 1e-3 => format!("{v:.3e}"),
        v if v.abs() >= 1e3 => format!("{v:.1}"),
        v => format!("{v:.4}"),
    }
}

/// The range of values that is drawn: all of them, or without the few that are so far off that
/// nothing else could be seen.
fn range(values: impl Iterator<Item = f64>) -> Option<(f64, f64)> {
    const ENOUGH: usize = 50;
    let mut sorted: Vec<f64> = values.filter(|value| value.is_finite()).collect();
    sorted.sort_by(f64::total_cmp);
    let (&least, &most) = (sorted.first()?, sorted.last()?);
    if sorted.len() < ENOUGH {
        return Some((least, most));
    }
    let cut = sorted.len() / 200 + 1;
    let (low, high) = (sorted[cut], sorted[sorted.len() - 1 - cut]);
    let span = (high - low).max(1e-9);
    Some((
        if low - least > 3.0 * span { low - span / 2.0 } else { least },
        if most - high > 3.0 * span { high + span / 2.0 } else { most },
    ))
}

/// Where values lie on the drawing.
pub(super) struct Frame {
    pub(super) x: (f64, f64),
    pub(super) y: (f64, f64),
}

impl Frame {
    /// Around the points of all lines, with x from 0.
    pub(super) fn around<'a>(lines: impl Iterator<Item = &'a [(f64, f64)]>) -> Option<Self> {
        let (mut high_x, mut y) = (0f64, None);
        for line in lines {
            let Some((low, high)) = range(line.iter().map(|point| point.1)) else { continue };
            high_x = line.iter().map(|point| point.0).fold(high_x, f64::max);
            let (least, most) = y.unwrap_or((low, high));
            y = Some((low.min(least), high.max(most)));
        }
        let (low, high) = y?;
        if high_x <= 0.0 {
            return None;
        }
        let pad = ((high - low) * 0.05).max(1e-3 * high.abs()).max(1e-9);
        // No negative numbers on the axis of what has none.
        let bottom = if low >= 0.0 { (low - pad).max(0.0) } else { low - pad };
        Some(Self { x: (0.0, high_x), y: (bottom, high + pad) })
    }

    /// A point's place; what is out of range lies on the edge.
    pub(super) fn place(&self, (x, y): (f64, f64)) -> (f64, f64) {
        let across = (x - self.x.0) / (self.x.1 - self.x.0);
        let up = ((y - self.y.0) / (self.y.1 - self.y.0)).clamp(0.0, 1.0);
        (LEFT + across * (WIDTH - LEFT - RIGHT), HEIGHT - BOTTOM - up * (HEIGHT - TOP - BOTTOM))
    }

    /// Heights of the upper and the lower edge.
    pub(super) fn edges() -> (f64, f64) {
        (TOP, HEIGHT - BOTTOM)
    }

    pub(super) fn open(about: &str) -> String {
        open(HEIGHT, about)
    }

    pub(super) fn axes(&self, svg: &mut String, x_label: &str, y_label: &str) {
        let (right, bottom) = (WIDTH - RIGHT, HEIGHT - BOTTOM);
        for tick in ticks(self.y.0, self.y.1, 6) {
            let y = self.place((0.0, tick)).1;
            let _ = write!(
                svg,
                "<line class=\"grid\" x1=\"{LEFT}\" y1=\"{y:.1}\" x2=\"{right}\" y2=\"{y:.1}\"/>\
                 <text class=\"tick\" x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"end\">{}</text>",
                LEFT - 7.0,
                y + 4.0,
                short(tick)
            );
        }
        for tick in ticks(self.x.0, self.x.1, 5) {
            let x = self.place((tick, 0.0)).0;
            // The last number would stick out at the right.
            let anchor = if x > right - 12.0 { "end" } else { "middle" };
            let _ = write!(
                svg,
                "<line class=\"axis\" x1=\"{x:.1}\" y1=\"{bottom}\" x2=\"{x:.1}\" y2=\"{:.1}\"/>\
                 <text class=\"tick\" x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"{anchor}\">{}</text>",
                bottom + 5.0,
                if anchor == "end" { right + 4.0 } else { x },
                bottom + 18.0,
                short(tick)
            );
        }
        let (middle_x, middle_y) = ((LEFT + right) / 2.0, (TOP + bottom) / 2.0);
        let _ = write!(
            svg,
            "<line class=\"axis\" x1=\"{LEFT}\" y1=\"{bottom}\" x2=\"{right}\" y2=\"{bottom}\"/>\
             <text class=\"label\" x=\"{middle_x:.1}\" y=\"{:.1}\" text-anchor=\"middle\">{}</text>\
             <text class=\"label\" transform=\"translate(12 {middle_y:.1}) rotate(-90)\" \
             text-anchor=\"middle\">{}</text>",
            HEIGHT - 9.0,
            escape(x_label),
            escape(y_label)
        );
    }
}

/// Begins a drawing.
pub(super) fn open(height: f64, about: &str) -> String {
    format!("<svg viewBox=\"0 0 {WIDTH} {height}\" role=\"img\" aria-label=\"{}\">", escape(about))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ticks_are_round_and_inside() {
        assert_eq!(ticks(0.0, 10.0, 5), [0.0, 2.0, 4.0, 6.0, 8.0, 10.0]);
        assert_eq!(ticks(2.9, 4.1, 3), [3.0, 3.5, 4.0]);
        assert_eq!(ticks(1.0, 1.0, 5), [1.0]);
        let shown = [1_500_000.0, 20_000.0, 0.25, 0.0, 100.0, 2e-5, 1.24e-4, -3e-4].map(short);
        assert_eq!(shown, ["1.5M", "20k", "0.25", "0", "100", "2e-5", "1.2e-4", "-3e-4"]);
        let shown = [12_345.0, 0.25, 1e-5, 1234.56].map(exact);
        assert_eq!(shown, ["12345", "0.2500", "1.000e-5", "1234.6"]);
    }

    #[test]
    fn what_is_far_off_does_not_hide_the_rest() {
        let falling = |i: usize| 5.0 - i as f64 / 100.0;
        assert_eq!(range((0..200).map(falling)), Some((falling(199), 5.0)));
        let spiked = (0..200).map(|i| if i == 50 { 1e9 } else { falling(i) });
        let (low, high) = range(spiked).unwrap();
        assert!(low == falling(199) && (5.0..7.0).contains(&high), "{low} {high}");
        assert_eq!(range([f64::NAN, f64::INFINITY].into_iter()), None);
        assert_eq!(range([f64::NAN, 2.0].into_iter()), Some((2.0, 2.0)));
        assert!(Frame::around([&[(1.0, f64::NAN)][..]].into_iter()).is_none());
        let one = Frame::around([&[(1.0, 2.0)][..]].into_iter()).unwrap();
        assert!(one.y.0 < 2.0 && one.y.1 > 2.0 && one.x == (0.0, 1.0));
    }
}
