//! Checks of any text file.

use super::{Complaints, File, Tree};

const COLUMNS_MAX: usize = 100;

/// Text that people write here; data, licences and lock files are left alone.
fn written(file: &File) -> bool {
    let known = ["rs", "wgsl", "md", "toml", "yml", "yaml"].iter().any(|ext| file.is(ext));
    (known || file.below(".ci")) && !file.below("crates/edge-runtime/demo")
}

pub(super) fn whitespace(tree: &Tree, out: &mut Complaints) {
    for file in tree.files.iter().filter(|file| written(file)) {
        let (path, text) = (&file.path, &file.text);
        if text.is_empty() && file.bytes > 0 {
            out.push(path, 0, "is not UTF-8: save it as UTF-8");
            continue;
        }
        if !text.ends_with('\n') || text.ends_with("\n\n") {
            out.push(path, 0, "end the file with exactly one newline");
        }
        for (index, line) in text.split('\n').enumerate() {
            if line.ends_with('\r') {
                out.push(path, index + 1, "CRLF line end: use LF");
            } else if line.ends_with([' ', '\t']) {
                out.push(path, index + 1, "remove the trailing space");
            } else if line.contains('\t') {
                out.push(path, index + 1, "indent with spaces, not with a tab");
            } else if line.chars().any(char::is_control) {
                out.push(path, index + 1, "remove the control character");
            }
        }
    }
}

pub(super) fn columns(tree: &Tree, out: &mut Complaints) {
    for file in tree.files.iter().filter(|file| written(file)) {
        for (number, line) in file.lines() {
            let count = line.chars().count();
            let unbreakable = line.contains("http://") || line.contains("https://");
            let table = file.is("md") && line.trim_start().starts_with('|');
            // An inline table of a manifest is one line by TOML's grammar.
            let inline = file.is("toml") && line.contains('{');
            let described = file.is("toml") && line.starts_with("description = ");
            if count > COLUMNS_MAX && !(unbreakable || table || inline || described) {
                let message = format!("{count} columns: break the line at {COLUMNS_MAX}");
                out.push(&file.path, number, message);
            }
        }
    }
}

/// Written in halves, so that this file passes its own check.
const REMINDERS: &[(&str, &str)] = &[
    (concat!("FIX", "ME"), "do it now, or open an issue and say in the comment what holds today"),
    (concat!("XX", "X"), "do it now, or open an issue and say in the comment what holds today"),
    (concat!("dbg", "!("), "remove it, or use `tracing::debug!`"),
    (concat!("todo", "!("), "nothing unfinished on the main branch: write it or leave it out"),
    (
        concat!("unimple", "mented!("),
        "nothing unfinished on the main branch: return an error that says what is supported",
    ),
];

pub(super) fn reminders(tree: &Tree, out: &mut Complaints) {
    for file in tree.files.iter().filter(|file| file.is("rs") || file.is("wgsl")) {
        for (number, line) in file.lines() {
            for (word, fix) in REMINDERS {
                if line.contains(word) {
                    out.push(&file.path, number, format!("`{word}`: {fix}"));
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tidy::testing::places;

    #[test]
    fn white_space_is_seen() {
        let files = [
            ("a.rs", "//! a\nb \n\tc\nd\r\n"),
            ("b.md", "no newline"),
            ("c.rs", "//! fine\n"),
            ("crates/edge-runtime/demo/adapt.md", "data \n"),
        ];
        assert_eq!(places(whitespace, &files), ["a.rs:2", "a.rs:3", "a.rs:4", "b.md:0"]);
    }

    #[test]
    fn long_lines_are_seen_but_not_addresses() {
        let long = "x".repeat(101);
        let address = format!("https://{long}\n");
        let row = format!("| {long} |\n");
        let code = format!("//! a\n// {long}\n");
        let files = [("a.rs", code.as_str()), ("b.md", &address), ("c.md", &row)];
        assert_eq!(places(columns, &files), ["a.rs:2"]);
    }

    #[test]
    fn reminders_are_seen() {
        for (word, _) in REMINDERS {
            let text = format!("//! a\n{word}\n");
            assert_eq!(places(reminders, &[("a.rs", &text)]), ["a.rs:2"], "{word}");
        }
    }
}
