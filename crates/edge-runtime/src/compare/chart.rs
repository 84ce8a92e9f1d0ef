//! Charts as SVG text, coloured by the page's style sheet.

use std::fmt::Write;

/// Colours that the style sheet has.
pub const COLOURS: usize = 8;

/// Text inside an element or attribute.
pub fn escape(text: &str) -> String {
    let mut result = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '&' => result.push_str("&amp;"),
            '<' => result.push_str("&lt;"),
            '>' => result.push_str("&gt;"),
            '"' => result.push_str("&quot;"),
            c => result.push(c),
        }
    }
    result
}

/// Points of a line, x rising.
pub type Line = Vec<(f64, f64)>;

/// Lines of one colour: a thin one for each seed, and their mean.
#[derive(Clone, Debug, Default)]
pub struct Series {
    /// Its name.
    pub name: String,
    /// Its colour, below [`COLOURS`].
    pub colour: usize,
    /// One line a seed.
    pub lines: Vec<(u64, Line)>,
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

/// A number in few characters: `1.5M`, `20k`, `0.25`.
pub fn short(value: f64) -> String {
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

const WIDTH: f64 = 640.0;
const HEIGHT: f64 = 360.0;
const LEFT: f64 = 62.0;
const RIGHT: f64 = 16.0;
const TOP: f64 = 12.0;
const BOTTOM: f64 = 48.0;

/// Where values lie on the drawing.
struct Frame {
    x: (f64, f64),
    y: (f64, f64),
}

impl Frame {
    /// Around all points, with x from 0.
    fn around(series: &[Series]) -> Option<Self> {
        let points = || series.iter().flat_map(|s| &s.lines).flat_map(|(_, line)| line);
        let high_x = points().map(|p| p.0).fold(0.0, f64::max);
        let low = points().map(|p| p.1).fold(f64::INFINITY, f64::min);
        let high = points().map(|p| p.1).fold(f64::NEG_INFINITY, f64::max);
        if high_x <= 0.0 || !low.is_finite() || !high.is_finite() {
            return None;
        }
        let pad = ((high - low) * 0.05).max(1e-3 * high.abs()).max(1e-9);
        Some(Self { x: (0.0, high_x), y: (low - pad, high + pad) })
    }

    fn place(&self, (x, y): (f64, f64)) -> (f64, f64) {
        let across = (x - self.x.0) / (self.x.1 - self.x.0);
        let up = (y - self.y.0) / (self.y.1 - self.y.0);
        (LEFT + across * (WIDTH - LEFT - RIGHT), HEIGHT - BOTTOM - up * (HEIGHT - TOP - BOTTOM))
    }

    fn axes(&self, svg: &mut String, x_label: &str, y_label: &str) {
        let (right, bottom) = (WIDTH - RIGHT, HEIGHT - BOTTOM);
        for tick in ticks(self.y.0, self.y.1, 8) {
            let y = self.place((0.0, tick)).1;
            let _ = write!(
                svg,
                "<line class=\"grid\" x1=\"{LEFT}\" y1=\"{y:.1}\" x2=\"{right}\" y2=\"{y:.1}\"/>\
                 <text class=\"tick\" x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"end\">{}</text>",
                LEFT - 8.0,
                y + 4.5,
                short(tick)
            );
        }
        for tick in ticks(self.x.0, self.x.1, 6) {
            let x = self.place((tick, 0.0)).0;
            let _ = write!(
                svg,
                "<line class=\"axis\" x1=\"{x:.1}\" y1=\"{bottom}\" x2=\"{x:.1}\" y2=\"{:.1}\"/>\
                 <text class=\"tick\" x=\"{x:.1}\" y=\"{:.1}\" text-anchor=\"middle\">{}</text>",
                bottom + 5.0,
                bottom + 19.0,
                short(tick)
            );
        }
        let (middle_x, middle_y) = ((LEFT + right) / 2.0, (TOP + bottom) / 2.0);
        let _ = write!(
            svg,
            "<line class=\"axis\" x1=\"{LEFT}\" y1=\"{bottom}\" x2=\"{right}\" y2=\"{bottom}\"/>\
             <text class=\"label\" x=\"{middle_x:.1}\" y=\"{:.1}\" text-anchor=\"middle\">{}</text>\
             <text class=\"label\" transform=\"translate(15 {middle_y:.1}) rotate(-90)\" \
             text-anchor=\"middle\">{}</text>",
            HEIGHT - 8.0,
            escape(x_label),
            escape(y_label)
        );
    }
}

fn open(height: f64, about: &str) -> String {
    format!("<svg viewBox=\"0 0 {WIDTH} {height}\" role=\"img\" aria-label=\"{}\">", escape(about))
}

/// The names of what is drawn, each beside its colour.
pub fn legend<'a>(names: impl Iterator<Item = (&'a str, usize)>) -> String {
    let mut html = String::from("<ul class=\"legend\">");
    for (name, colour) in names {
        let _ = write!(html, "<li><span class=\"swatch c{colour}\"></span>{}</li>", escape(name));
    }
    html.push_str("</ul>");
    html
}

/// Lines over x, with a legend; `None` where there is nothing to draw.
pub fn lines(series: &[Series], x_label: &str, y_label: &str) -> Option<String> {
    let frame = Frame::around(series)?;
    let mut svg = open(HEIGHT, &format!("{y_label} against {x_label}"));
    frame.axes(&mut svg, x_label, y_label);
    let path = |line: &Line| {
        let points = line.iter().map(|&point| frame.place(point));
        points.map(|(x, y)| format!("{x:.1},{y:.1}")).collect::<Vec<_>>().join(" ")
    };
    for Series { name, colour, lines } in series {
        let name = escape(name);
        for (seed, line) in lines.iter().filter(|_| lines.len() > 1) {
            let _ = write!(
                svg,
                "<polyline class=\"seed s{colour}\" points=\"{}\"><title>{name}, seed {seed}\
                 </title></polyline>",
                path(line)
            );
        }
        let all: Vec<&Line> = lines.iter().map(|(_, line)| line).collect();
        let mean = mean_line(&all);
        let _ = write!(
            svg,
            "<polyline class=\"mean s{colour}\" points=\"{}\"><title>{name}, mean, \
             seeds: {}</title></polyline>",
            path(&mean),
            lines.len()
        );
        for &(x, y) in &mean {
            let (cx, cy) = frame.place((x, y));
            let _ = write!(
                svg,
                "<circle class=\"c{colour}\" cx=\"{cx:.1}\" cy=\"{cy:.1}\" r=\"3.5\"><title>\
                 {name}: {y:.4} at {}</title></circle>",
                short(x)
            );
        }
    }
    svg.push_str("</svg>");
    let names = series.iter().map(|series| (series.name.as_str(), series.colour));
    Some(format!("{}{svg}", legend(names)))
}

/// A part of a bar.
#[derive(Clone, Debug)]
pub struct Part {
    /// Its name, for the tooltip.
    pub name: String,
    /// Its length.
    pub value: f64,
    /// Its colour, below [`COLOURS`].
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

const ROW: f64 = 34.0;

/// A horizontal line with ends, at a height.
fn whisker(from: f64, to: f64, middle: f64) -> String {
    let top = middle - 5.0;
    format!(
        "<path class=\"whisker\" d=\"M{from:.1} {middle:.1}H{to:.1}M{from:.1} {top:.1}v10\
         M{to:.1} {top:.1}v10\"/>"
    )
}

/// Horizontal bars from 0; `None` where there is nothing to draw.
pub fn bars(bars: &[Bar], x_label: &str) -> Option<String> {
    let length = |bar: &Bar| bar.parts.iter().map(|part| part.value).sum::<f64>();
    let most = bars.iter().map(|bar| length(bar) + bar.spread.unwrap_or(0.0)).fold(0.0, f64::max);
    if most <= 0.0 || !most.is_finite() {
        return None;
    }
    // 7.4: a generous width of a character of 13 px.
    let widest = bars.iter().map(|bar| bar.name.chars().count()).max().unwrap_or(0);
    let left = (widest as f64 * 7.4 + 16.0).clamp(60.0, 220.0);
    let labels = bars.iter().map(|bar| bar.label.chars().count()).max().unwrap_or(0);
    let right = WIDTH - labels as f64 * 7.4 - 16.0;
    let bottom = bars.len() as f64 * ROW + 8.0;
    let place = |value: f64| left + value / most * (right - left);
    let mut svg = open(bottom + 46.0, x_label);
    for tick in ticks(0.0, most, 6) {
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
        let top = row as f64 * ROW + 8.0;
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
    let _ = write!(
        svg,
        "<text class=\"label\" x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"middle\">{}</text></svg>",
        (left + right) / 2.0,
        bottom + 38.0,
        escape(x_label)
    );
    Some(svg)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ticks_are_round_and_inside() {
        assert_eq!(ticks(0.0, 10.0, 5), [0.0, 2.0, 4.0, 6.0, 8.0, 10.0]);
        assert_eq!(ticks(2.9, 4.1, 3), [3.0, 3.5, 4.0]);
        assert_eq!(ticks(1.0, 1.0, 5), [1.0]);
        let shown = [1_500_000.0, 20_000.0, 0.25, 0.0, 100.0].map(short);
        assert_eq!(shown, ["1.5M", "20k", "0.25", "0", "100"]);
    }

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
    fn drawings_lie_in_their_frame() {
        let lines_of = vec![(0, vec![(0.0, 5.0), (1e6, 3.0)]), (1, vec![(0.0, 5.0), (1e6, 2.0)])];
        let series = [Series { name: "a<b".into(), colour: 1, lines: lines_of }];
        let svg = lines(&series, "tokens", "loss, nats").unwrap();
        assert!(svg.contains("a&lt;b") && !svg.contains("a<b"));
        assert_eq!(
            (svg.matches("\"seed s1\"").count(), svg.matches("\"mean s1\"").count()),
            (2, 1)
        );
        let points = svg.split("points=\"").skip(1).flat_map(|rest| {
            rest.split('"').next().unwrap().split(' ').map(|point| point.split_once(',').unwrap())
        });
        for (x, y) in points {
            let (x, y): (f64, f64) = (x.parse().unwrap(), y.parse().unwrap());
            assert!((LEFT..=WIDTH - RIGHT).contains(&x), "{x}");
            assert!((TOP..=HEIGHT - BOTTOM).contains(&y), "{y}");
        }
        assert!(lines(&[], "x", "y").is_none());
        let part = |value| Part { name: "p".into(), value, colour: 0 };
        let bar = |parts| Bar { name: "n".into(), parts, spread: Some(1.0), label: "9".into() };
        let svg = bars(&[bar(vec![part(3.0), part(1.0)]), bar(vec![part(2.0)])], "MiB").unwrap();
        assert_eq!((svg.matches("<rect").count(), svg.matches("whisker").count()), (3, 2));
        assert!(bars(&[], "MiB").is_none());
    }
}
