//! Rows of cells whose shade is a share: what happened when, or how each layer is stored.

use std::fmt::Write;

use super::axes::{WIDTH, exact, open, short, ticks};
use super::escape;
use super::lines::Mark;

/// A cell of a row.
#[derive(Clone, Debug)]
pub struct Cell {
    /// Where it begins and ends on the x axis.
    pub x: (f64, f64),
    /// How strong its colour is, 0 to 1.
    pub shade: f64,
    /// Its colour, below [`super::COLOURS`].
    pub colour: usize,
    /// What stands in it, where there is room.
    pub text: String,
    /// What is said of it.
    pub title: String,
}

/// A row of cells.
#[derive(Clone, Debug)]
pub struct Row {
    /// What stands at its left.
    pub name: String,
    /// Its cells.
    pub cells: Vec<Cell>,
}

const HEIGHT: f64 = 22.0;
const TOP: f64 = 16.0;

/// Rows of cells over x from 0 to `end`, and lines at `marks`; `None` where there is nothing to
/// draw. An empty `x_label` leaves the axis out.
pub fn strip(rows: &[Row], marks: &[Mark], end: f64, x_label: &str) -> Option<String> {
    if rows.is_empty() || end.is_nan() || end <= 0.0 {
        return None;
    }
    let widest = rows.iter().map(|row| row.name.chars().count()).max().unwrap_or(0);
    let left = (widest as f64 * 7.0 + 12.0).clamp(30.0, 150.0);
    let right = WIDTH - 8.0;
    let place = |x: f64| left + (x / end).clamp(0.0, 1.0) * (right - left);
    let bottom = TOP + rows.len() as f64 * HEIGHT;
    let mut svg = open(if x_label.is_empty() { bottom + 4.0 } else { bottom + 42.0 }, x_label);
    for (index, row) in rows.iter().enumerate() {
        let top = TOP + index as f64 * HEIGHT;
        let _ = write!(
            svg,
            "<text class=\"name\" x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"end\">{}</text>",
            left - 7.0,
            top + 14.5,
            escape(&row.name)
        );
        for cell in &row.cells {
            let (from, to) = (place(cell.x.0), place(cell.x.1));
            let _ = write!(
                svg,
                "<rect class=\"c{}\" fill-opacity=\"{:.2}\" x=\"{from:.2}\" y=\"{top}\" \
                 width=\"{:.2}\" height=\"{}\"><title>{}</title></rect>",
                cell.colour,
                cell.shade.clamp(0.0, 1.0),
                (to - from).max(0.2),
                HEIGHT - 3.0,
                escape(&cell.title)
            );
            // 7: a character.
            if !cell.text.is_empty() && cell.text.chars().count() as f64 * 7.0 < to - from {
                let _ = write!(
                    svg,
                    "<text class=\"cell\" x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"middle\">{}</text>",
                    (from + to) / 2.0,
                    top + 13.5,
                    escape(&cell.text)
                );
            }
        }
    }
    if !x_label.is_empty() {
        axis(&mut svg, marks, (left, right, bottom), end, x_label);
    }
    svg.push_str("</svg>");
    Some(svg)
}

fn axis(
    svg: &mut String,
    marks: &[Mark],
    (left, right, bottom): (f64, f64, f64),
    end: f64,
    x_label: &str,
) {
    let place = |x: f64| left + (x / end).clamp(0.0, 1.0) * (right - left);
    for mark in marks {
        let x = place(mark.x);
        let _ = write!(
            svg,
            "<path class=\"flag\" d=\"M{x:.1} {TOP}v{:.1}\"><title>{} at {}</title></path>\
             <path class=\"pin\" d=\"M{:.1} 6h6l-3 6z\"><title>{} at {}</title></path>",
            bottom - TOP,
            escape(&mark.name),
            exact(mark.x),
            x - 3.0,
            escape(&mark.name),
            exact(mark.x)
        );
    }
    for tick in ticks(0.0, end, 5) {
        let x = place(tick);
        let anchor = if x > right - 12.0 { "end" } else { "middle" };
        let _ = write!(
            svg,
            "<line class=\"axis\" x1=\"{x:.1}\" y1=\"{bottom}\" x2=\"{x:.1}\" y2=\"{:.1}\"/>\
             <text class=\"tick\" x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"{anchor}\">{}</text>",
            bottom + 4.0,
            if anchor == "end" { right + 6.0 } else { x },
            bottom + 17.0,
            short(tick)
        );
    }
    let _ = write!(
        svg,
        "<text class=\"label\" x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"middle\">{}</text>",
        (left + right) / 2.0,
        bottom + 34.0,
        escape(x_label)
    );
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cells_lie_side_by_side() {
        let cell = |from: f64, to: f64| Cell {
            x: (from, to),
            shade: 0.5,
            colour: 2,
            text: "4".into(),
            title: "a<b".into(),
        };
        let rows =
            [Row { name: "window 1".into(), cells: vec![cell(0.0, 50.0), cell(50.0, 50.1)] }];
        let marks = [Mark { x: 50.0, name: "best".into() }];
        let svg = strip(&rows, &marks, 100.0, "step").unwrap();
        assert_eq!((svg.matches("<rect").count(), svg.matches("class=\"cell\"").count()), (2, 1));
        assert!(svg.contains("a&lt;b") && svg.contains("best at 50") && svg.contains(">step<"));
        let bare = strip(&rows, &marks, 100.0, "").unwrap();
        assert!(!bare.contains("tick") && !bare.contains("pin"));
        assert!(strip(&[], &[], 1.0, "x").is_none() && strip(&rows, &[], 0.0, "x").is_none());
    }
}
