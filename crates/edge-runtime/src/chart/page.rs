//! What pages consist of: a template with places, tables, figures.

use super::escape;

const STYLE: &str = include_str!("style.css");
const SCRIPT: &str = include_str!("hover.js");

/// Fills the places `{{name}}` of a template; `style` and `script` are those of all pages.
pub fn fill(template: &str, place: impl Fn(&str) -> String) -> String {
    let mut page = String::with_capacity(template.len() * 4 + STYLE.len());
    let mut rest = template;
    // One pass over the template, so that what is put in is not searched for places again.
    while let Some((before, after)) = rest.split_once("{{") {
        let (name, after) = after.split_once("}}").unwrap_or((after, ""));
        page.push_str(before);
        match name {
            "style" => page.push_str(STYLE),
            "script" => page.push_str(SCRIPT),
            _ => page.push_str(&place(name)),
        }
        rest = after;
    }
    page.push_str(rest);
    page
}

/// A drawing with a title and a caption, or what `missing` says where there is nothing to draw.
pub fn figure(drawing: Option<String>, title: &str, caption: &str, missing: &str) -> String {
    let drawing = drawing.unwrap_or_else(|| format!("<p class=\"soft\">{}</p>", escape(missing)));
    let (title, caption) = (escape(title), escape(caption));
    format!("<figure><h3>{title}</h3>{drawing}<figcaption>{caption}</figcaption></figure>")
}

/// A table with a head; the first column is text, the others are numbers.
pub struct Table {
    /// Names of the columns.
    pub head: Vec<String>,
    /// Cells, row by row.
    pub rows: Vec<Vec<String>>,
}

impl Table {
    /// Without rows.
    pub fn new(head: &[&str]) -> Self {
        Self { head: head.iter().map(|&name| name.into()).collect(), rows: Vec::new() }
    }

    /// For a page.
    pub fn html(&self) -> String {
        let row = |cells: &[String], tag: &str| {
            let cells = cells.iter().map(|cell| format!("<{tag}>{}</{tag}>", escape(cell)));
            format!("<tr>{}</tr>", cells.collect::<String>())
        };
        let rows: String = self.rows.iter().map(|cells| row(cells, "td")).collect();
        format!("<table><thead>{}</thead><tbody>{rows}</tbody></table>", row(&self.head, "th"))
    }

    /// For a terminal: columns of equal width, numbers at the right.
    pub fn text(&self) -> String {
        let all = || std::iter::once(&self.head).chain(&self.rows);
        let width = |column: usize| {
            let cells = all().filter_map(|row| row.get(column));
            cells.map(|cell| cell.chars().count()).max().unwrap_or(0)
        };
        let widths: Vec<usize> = (0..self.head.len()).map(width).collect();
        let line = |row: &Vec<String>| {
            let cells = row.iter().zip(&widths).enumerate().map(|(column, (cell, &width))| {
                if column == 0 { format!("{cell:<width$}") } else { format!("{cell:>width$}") }
            });
            cells.collect::<Vec<_>>().join("  ").trim_end().to_owned()
        };
        all().map(line).collect::<Vec<_>>().join("\n")
    }
}
