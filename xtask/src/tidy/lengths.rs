//! Length of files and functions: a ratchet. What is too long today is in `tidy_allow.txt` with
//! its length; an entry may only shrink, and goes when it is no longer needed.

use std::collections::HashMap;

use super::{Complaints, Tree};

const FILE_LINES_MAX: usize = 600;
const FUNCTION_LINES_MAX: usize = 70;
const ALLOW: &str = "xtask/src/tidy_allow.txt";

pub(super) fn files_and_functions(tree: &Tree, out: &mut Complaints) {
    let allow = tree.get(ALLOW).map_or("", |file| file.text.as_str());
    let mut entries = parse(allow, out);
    for file in tree.files.iter().filter(|file| file.is("rs") || file.is("wgsl")) {
        let lines = file.text.lines().count();
        let mut judge = |key: String, line: usize, lines: usize, most: usize, what: &str| {
            let entry = entries.remove(&key);
            match entry {
                Some((at, allowed)) if lines <= most => out.push(
                    ALLOW,
                    at,
                    format!("`{key} {allowed}` is stale ({lines} lines now): remove it"),
                ),
                Some((at, allowed)) if lines < allowed => {
                    out.push(ALLOW, at, format!("`{key}` has shrunk: lower {allowed} to {lines}"));
                }
                Some((_, allowed)) if lines == allowed => {}
                _ if lines <= most => {}
                _ => out.push(
                    &file.path,
                    line,
                    format!("{what} has {lines} lines, more than {most}: split it"),
                ),
            }
        };
        judge(format!("file {}", file.path), 0, lines, FILE_LINES_MAX, "the file");
        for (line, name, lines) in functions(&file.text) {
            let key = format!("fn {} {name}", file.path);
            judge(key, line, lines, FUNCTION_LINES_MAX, &format!("`{name}`"));
        }
    }
    for (key, (at, _)) in entries {
        out.push(ALLOW, at, format!("`{key}` names nothing that exists: remove the line"));
    }
}

/// `file PATH LINES` and `fn PATH NAME LINES`, to line in the list and allowed length.
fn parse(text: &str, out: &mut Complaints) -> HashMap<String, (usize, usize)> {
    let mut entries = HashMap::new();
    for (index, line) in text.lines().enumerate() {
        if line.is_empty() || line.starts_with('#') {
            continue;
        }
        let entry = line.rsplit_once(' ').and_then(|(key, lines)| {
            let words = key.split(' ').count();
            let good =
                key.starts_with("file ") && words == 2 || key.starts_with("fn ") && words == 3;
            Some((good.then_some(key)?, lines.parse::<usize>().ok()?))
        });
        match entry {
            Some((key, lines)) => {
                entries.insert(key.to_string(), (index + 1, lines));
            }
            None => out.push(ALLOW, index + 1, "write `file PATH LINES` or `fn PATH NAME LINES`"),
        }
    }
    entries
}

/// First line, name and length of each function: from `fn` to the brace at the same indentation,
/// which rustfmt (and, in WGSL, custom) guarantees. Of functions of one name the longest counts.
fn functions(text: &str) -> Vec<(usize, String, usize)> {
    let lines: Vec<&str> = text.lines().collect();
    let mut longest: HashMap<String, (usize, usize)> = HashMap::new();
    for (index, line) in lines.iter().enumerate() {
        let Some(name) = function_name(line) else { continue };
        let indent = &line[..line.len() - line.trim_start().len()];
        let ends = |line: &str| {
            line.strip_prefix(indent).is_some_and(|rest| {
                rest == "}" || rest.starts_with(')') && (rest.ends_with(';') || rest.ends_with('}'))
            })
        };
        let one_line = line.ends_with('}') || line.ends_with(';');
        let rest = lines[index + 1..].iter().position(|line| ends(line));
        let count = if one_line { 1 } else { rest.map_or(1, |rest| rest + 2) };
        let known = longest.entry(name.to_string()).or_default();
        if count > known.1 {
            *known = (index + 1, count);
        }
    }
    let mut all: Vec<_> =
        longest.into_iter().map(|(name, (line, count))| (line, name, count)).collect();
    all.sort();
    all
}

/// The name behind `fn` where a line declares a function.
fn function_name(line: &str) -> Option<&str> {
    let (before, after) = line.trim_start().split_once("fn ")?;
    let qualifiers = ["pub", "pub(crate)", "pub(super)", "const", "async", "unsafe", "extern"];
    let declared = before
        .split_whitespace()
        .all(|word| qualifiers.contains(&word) || word.starts_with('"') && word.ends_with('"'));
    let end = after.find(|c: char| !c.is_alphanumeric() && c != '_')?;
    (declared && end > 0 && (before.is_empty() || before.ends_with(' '))).then(|| &after[..end])
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tidy::testing::{places, tree};

    fn function(name: &str, lines: usize) -> String {
        format!("fn {name}() {{\n{}}}\n", "    x();\n".repeat(lines - 2))
    }

    #[test]
    fn functions_are_measured() {
        let text = "//! a\n    pub(crate) const fn one(\n        x: u32,\n    ) -> u32 {\n        \
                    x\n    }\nfn short() {}\n    fn declared(\n        x: u32,\n    ) -> u32;\n\
                    let f: fn (u32);\n// fn comment() {\n";
        let want = [(2, "one".into(), 5), (7, "short".into(), 1), (8, "declared".into(), 3)];
        assert_eq!(functions(text), want);
    }

    #[test]
    fn what_is_too_long_is_seen() {
        let long = format!("//! a\n{}{}", function("a", 70), function("b", 71));
        assert_eq!(places(files_and_functions, &[("a.rs", &long)]), ["a.rs:72"]);
        let file = "//! a\n".repeat(601);
        assert_eq!(places(files_and_functions, &[("a.rs", &file)]), ["a.rs:0"]);
    }

    #[test]
    fn the_list_allows_and_may_only_shrink() {
        let long = format!("//! a\n{}", function("b", 80));
        let check = |entry: &str| places(files_and_functions, &[("a.rs", &long), (ALLOW, entry)]);
        assert!(check("# why\nfn a.rs b 80\n").is_empty());
        assert_eq!(check("fn a.rs b 79\n"), ["a.rs:2"]);
        assert_eq!(check("fn a.rs b 81\n"), [format!("{ALLOW}:1")]);
        assert_eq!(check("fn a.rs b 80\nfn a.rs c 90\n"), [format!("{ALLOW}:2")]);
        assert_eq!(check("fn a.rs b 80\nfile a.rs 700\n"), [format!("{ALLOW}:2")]);
        assert_eq!(check("fn a.rs b 80\nnonsense\n"), [format!("{ALLOW}:2")]);
    }

    #[test]
    fn messages_name_the_fix() {
        let mut found = Complaints::default();
        let long = format!("//! a\n{}", function("b", 71));
        files_and_functions(&tree(&[("a.rs", &long)]), &mut found);
        assert!(found.0[0].to_string().ends_with("split it"), "{}", found.0[0]);
    }
}
