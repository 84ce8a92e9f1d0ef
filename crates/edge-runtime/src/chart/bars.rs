//! Horizontal bars of parts.

use std::fmt::Write;

use super::axes::{WIDTH, exact, open, short, ticks};
use super::escape;
use super::lines::Mark;

/// A part of a bar.
#[derive(Clone, Debug)]
pub struct Part {
    /// Its name, for the tooltip.
    pub name: String,
    /// Its length.
    pub value: f64,
    /// Its colour, below [`super::COLOURS`].
    pub colour: usize,
}

/// A bar.
#[derive(Clone, Debug)]
pub struct Bar {
    /// What stands at its left.
    pub name: String,
    /// What lies beside each other in it.
    pub parts: Vec<Part>,
    /// Half the length of the whisker at its end.
    pub spread: Option<f64>,
    /// What stands at its right.
    pub label: String,
}

const ROW: f64 = 32.0;

/// A generous width of a character of a name.
const CHARACTER: f64 = 7.8;

/// A horizontal line with ends, at a height.
fn whisker(from: f64, to: f64, middle: f64) -> String {
    let top = middle - 5.0;
    format!(
        "<path class=\"whisker\" d=\"M{from:.1} {middle:.1}H{to:.1}M{from:.1} {top:.1}v10\
         M{to:.1} {top:.1}v10\"/>"
    )
}

/// Horizontal bars from 0, and a line at `limit` where there is one; `None` where there is nothing
/// to draw.
pub fn bars(bars: &[Bar], limit: Option<&Mark>, x_label: &str) -> Option<String> {
    let length = |bar: &Bar| bar.parts.iter().map(|part| part.value).sum::<f64>();
    let ends = bars.iter().map(|bar| length(bar) + bar.spread.unwrap_or(0.0));
    let most = ends.fold(0.0, f64::max);
    if most <= 0.0 || !most.is_finite() {
        return None;
    }
    let most = limit.map_or(most, |limit| most.max(limit.x));
    let widest = bars.iter().map(|bar| bar.name.chars().count()).max().unwrap_or(0);
    let left = (widest as f64 * CHARACTER + 14.0).clamp(40.0, 180.0);
    let labels = bars.iter().map(|bar| bar.label.chars().count()).max().unwrap_or(0);
    let right = WIDTH - (labels as f64 * CHARACTER + 14.0).min(150.0);
    let bottom = bars.len() as f64 * ROW + 8.0;
    let place = |value: f64| left + value / most * (right - left);
    let mut svg = open(bottom + 46.0, x_label);
    for tick in ticks(0.0, most, 4) {
        let x = place(tick);
        let _ = write!(
            svg,
            "<line class=\"grid\" x1=\"{x:.1}\" y1=\"4\" x2=\"{x:.1}\" y2=\"{bottom}\"/>\
             <text class=\"tick\" x=\"{x:.1}\" y=\"{:.1}\" text-anchor=\"middle\">{}</text>",
            bottom + 16.0,
            short(tick)
        );
    }
    for (row, bar) in bars.iter().enumerate() {
        row_of(&mut svg, bar, row as f64 * ROW + 8.0, left, &place);
    }
    if let Some(limit) = limit {
        let x = place(limit.x);
        let _ = write!(
            svg,
            "<line class=\"limit\" x1=\"{x:.1}\" y1=\"2\" x2=\"{x:.1}\" y2=\"{bottom}\"><title>{}: \
             {}</title></line>",
            escape(&limit.name),
            exact(limit.x)
        );
    }
    let _ = write!(
        svg,
        "<text class=\"label\" x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"middle\">{}</text></svg>",
        (left + right) / 2.0,
        bottom + 36.0,
        escape(x_label)
    );
    Some(svg)
}

/// A bar at a height, with its name and label.
fn row_of(svg: &mut String, bar: &Bar, top: f64, left: f64, place: &dyn Fn(f64) -> f64) {
    let middle = top + ROW / 2.0 - 3.0;
    let name = escape(&bar.name);
    let _ = write!(
        svg,
        "<text class=\"name\" x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"end\">{name}</text>",
        left - 8.0,
        middle + 4.5
    );
    let mut sum = 0.0;
    for Part { name: part, value, colour } in &bar.parts {
        let (x, width) = (place(sum), place(*value) - left);
        sum += value;
        let _ = write!(
            svg,
            "<rect class=\"c{colour}\" x=\"{x:.1}\" y=\"{top:.1}\" width=\"{width:.1}\" \
             height=\"{:.1}\"><title>{name}: {} {}</title></rect>",
            ROW - 8.0,
            escape(part),
            short(*value)
        );
    }
    if let Some(spread) = bar.spread {
        svg.push_str(&whisker(place((sum - spread).max(0.0)), place(sum + spread), middle));
    }
    let _ = write!(
        svg,
        "<text class=\"name\" x=\"{:.1}\" y=\"{:.1}\">{}</text>",
        place(sum + bar.spread.unwrap_or(0.0)) + 8.0,
        middle + 4.5,
        escape(&bar.label)
    );
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bars_have_parts_whiskers_and_a_limit() {
        let part = |value| Part { name: "p".into(), value, colour: 0 };
        let bar = |parts| Bar { name: "n".into(), parts, spread: Some(1.0), label: "9".into() };
        let two = [bar(vec![part(3.0), part(1.0)]), bar(vec![part(2.0)])];
        let svg = bars(&two, None, "MiB").unwrap();
        assert_eq!((svg.matches("<rect").count(), svg.matches("whisker").count()), (3, 2));
        assert!(!svg.contains("limit"));
        let limit = Mark { x: 100.0, name: "budget".into() };
        let svg = bars(&two, Some(&limit), "MiB").unwrap();
        assert!(svg.contains("budget: 100") && svg.contains(">100<"), "{svg}");
        assert!(bars(&[], Some(&limit), "MiB").is_none());
    }
}
