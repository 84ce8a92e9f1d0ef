//! Charts as SVG text, and pages of them that need no other file: what a comparison and the report
//! of a run share. Colours come from the page's style sheet, light and dark.

mod axes;
mod bars;
mod lines;
mod page;
mod strip;

pub use self::axes::{exact, short, ticks};
pub use self::bars::{Bar, Part, bars};
pub use self::lines::{Curve, Line, Mark, Stroke, averaged, lines, mean_line, smoothed, thinned};
pub use self::page::{Table, figure, fill};
pub use self::strip::{Cell, Row, strip};

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

/// The names of what is drawn, each beside its colour.
pub fn legend<'a>(names: impl Iterator<Item = (&'a str, usize)>) -> String {
    let mut html = String::from("<ul class=\"legend\">");
    for (name, colour) in names {
        let _ = write!(html, "<li><span class=\"swatch c{colour}\"></span>{}</li>", escape(name));
    }
    html.push_str("</ul>");
    html
}
