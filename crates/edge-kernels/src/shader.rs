//! The assembler: from files under `shaders/` to the WGSL text of one variant.
//!
//! A shader file is ordinary WGSL with working defaults. Four comment directives are all the
//! preprocessing there is:
//!
//! * `//#include "path"` pastes another file once; the path is relative to `shaders/`, and a
//!   [`Variant`] may name another file instead (that is how weight formats are chosen).
//! * `//#paste "path"` does so each time, for lines in the middle of a function.
//! * `//#spec` behind `const NAME: u32 = 8u;` lets a variant rewrite the value.
//! * `//#unroll` before `for (var i = 0u; i < TM; i++) {` writes the body out once per value.
//!   naga never unrolls, and an accumulator array indexed by a rolled loop ends up in memory;
//!   indexed by literals it ends up in registers.
//!
//! `enable` lines are hoisted to the top, where WGSL wants them. The result carries a map from
//! its lines to the source lines, so that an error names the file that a person can edit.

use std::borrow::Cow;
use std::collections::{HashMap, HashSet};
use std::fmt;
use std::path::PathBuf;

use crate::op::{Op, Variant};

include!(concat!(env!("OUT_DIR"), "/embedded.rs"));

/// The line that an assembler may turn into an immediate binding.
const UNIFORM_PARAMS: &str = "@group(0) @binding(0) var<uniform> params: Params;";

/// What is wrong with a shader file or with what a variant asks of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Error(String);

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for Error {}

/// The text of one variant.
#[derive(Clone, Debug)]
pub struct Assembled {
    /// WGSL, ready for naga.
    pub text: String,
    /// For each line of `text`: file and 1-based line in it.
    pub lines: Vec<(String, usize)>,
}

impl Assembled {
    /// `file:line` of a 1-based line of the text.
    pub fn origin(&self, line: usize) -> String {
        match self.lines.get(line.saturating_sub(1)) {
            Some((file, line)) => format!("shaders/{file}:{line}"),
            None => String::from("shaders/?"),
        }
    }
}

/// Paths of all shader files, sorted.
pub fn files() -> impl Iterator<Item = &'static str> {
    EMBEDDED.iter().map(|(path, _)| *path)
}

/// The text of a shader file: from the folder `EDGE_SHADER_DIR` where that variable is set (for
/// tuning a shader without a rebuild), else as it was at build time.
pub fn source(path: &str) -> Result<Cow<'static, str>, Error> {
    if let Some(dir) = std::env::var_os("EDGE_SHADER_DIR") {
        let full = PathBuf::from(dir).join(path);
        return std::fs::read_to_string(&full)
            .map(Cow::Owned)
            .map_err(|error| Error(format!("{}: {error}", full.display())));
    }
    EMBEDDED
        .iter()
        .find(|(name, _)| *name == path)
        .map(|(_, text)| Cow::Borrowed(*text))
        .ok_or_else(|| Error(format!("no shader file shaders/{path}")))
}

/// Assembles a variant of an op. With `immediates`, `params` is an immediate (push constant)
/// instead of a uniform buffer.
pub fn assemble(op: &dyn Op, variant: &Variant, immediates: bool) -> Result<Assembled, Error> {
    assemble_file(op.shader(), variant, immediates)
}

/// As [`assemble`], for a file that no op owns.
pub fn assemble_file(path: &str, variant: &Variant, immediates: bool) -> Result<Assembled, Error> {
    let mut lines = Lines::default();
    let mut state = Paste { variant, seen: HashSet::new(), used: HashSet::new(), open: Vec::new() };
    state.paste(path, &mut lines)?;
    for (name, _) in &variant.spec {
        if !state.used.contains(name) {
            return Err(Error(format!(
                "shaders/{path}: variant '{}' sets {name}, which no `//#spec` line declares",
                variant.name
            )));
        }
    }
    for (from, _) in &variant.fragments {
        if !state.used.contains(from) {
            return Err(Error(format!(
                "shaders/{path}: variant '{}' replaces \"{from}\", which nothing includes",
                variant.name
            )));
        }
    }
    let constants = constants(&lines.0);
    let unrolled = unroll(&lines.0, &constants)?;
    Ok(finish(unrolled, immediates))
}

/// One line of source on its way through the assembler.
#[derive(Clone)]
struct Line {
    text: String,
    file: String,
    number: usize,
}

#[derive(Default)]
struct Lines(Vec<Line>);

struct Paste<'a> {
    variant: &'a Variant,
    seen: HashSet<String>,
    used: HashSet<&'a str>,
    /// Files that are being pasted, the outermost first.
    open: Vec<String>,
}

impl Paste<'_> {
    fn paste(&mut self, path: &str, out: &mut Lines) -> Result<(), Error> {
        if self.open.iter().any(|file| file == path) {
            return Err(Error(format!("shaders/{path}: pastes itself")));
        }
        self.open.push(path.to_string());
        let text = source(path)?;
        for (index, line) in text.lines().enumerate() {
            let trimmed = line.trim();
            let included = trimmed.strip_prefix("//#include ");
            if let Some(rest) = included.or_else(|| trimmed.strip_prefix("//#paste ")) {
                let named = rest.trim().trim_matches('"');
                let replaced = self.variant.fragments.iter().find(|(from, _)| *from == named);
                let target = match replaced {
                    Some((from, to)) => {
                        self.used.insert(from);
                        *to
                    }
                    None => named,
                };
                if self.seen.insert(target.to_string()) || included.is_none() {
                    self.paste(target, out)?;
                }
                continue;
            }
            let text = self.rewrite(line, path, index + 1)?;
            out.0.push(Line { text, file: path.to_string(), number: index + 1 });
        }
        self.open.pop();
        Ok(())
    }

    /// Applies a `//#spec` value to a line.
    fn rewrite(&mut self, line: &str, path: &str, number: usize) -> Result<String, Error> {
        if !line.contains("//#spec") {
            return Ok(line.to_string());
        }
        let parsed = line
            .trim()
            .strip_prefix("const ")
            .and_then(|rest| rest.split_once(": u32 = "))
            .and_then(|(name, rest)| rest.split_once(';').map(|(_, tail)| (name, tail)));
        let Some((name, tail)) = parsed else {
            return Err(Error(format!(
                "shaders/{path}:{number}: `//#spec` belongs behind `const NAME: u32 = VALUE;`"
            )));
        };
        match self.variant.spec.iter().find(|(spec, _)| *spec == name) {
            Some((spec, value)) => {
                self.used.insert(spec);
                Ok(format!("const {name}: u32 = {value}u;{tail}"))
            }
            None => Ok(line.to_string()),
        }
    }
}

/// All `const NAME: u32 = EXPR;` of the text that evaluate to a number.
fn constants(lines: &[Line]) -> HashMap<String, u32> {
    let mut known = HashMap::new();
    for line in lines {
        let parsed = line
            .text
            .trim()
            .strip_prefix("const ")
            .and_then(|rest| rest.split_once(": u32 = "))
            .and_then(|(name, rest)| rest.split_once(';').map(|(value, _)| (name, value)));
        if let Some((name, value)) = parsed
            && let Some(value) = evaluate(value, &known)
        {
            known.insert(name.to_string(), value);
        }
    }
    known
}

/// Evaluates `+ - * / %` and parentheses over u32 literals and known constants.
fn evaluate(text: &str, known: &HashMap<String, u32>) -> Option<u32> {
    struct Parser<'a> {
        rest: &'a str,
        known: &'a HashMap<String, u32>,
    }
    impl Parser<'_> {
        fn peek(&mut self) -> Option<char> {
            self.rest = self.rest.trim_start();
            self.rest.chars().next()
        }
        fn eat(&mut self, wanted: char) -> bool {
            let found = self.peek() == Some(wanted);
            if found {
                self.rest = &self.rest[1..];
            }
            found
        }
        fn sum(&mut self) -> Option<u32> {
            let mut value = self.product()?;
            loop {
                if self.eat('+') {
                    value = value.checked_add(self.product()?)?;
                } else if self.eat('-') {
                    value = value.checked_sub(self.product()?)?;
                } else {
                    return Some(value);
                }
            }
        }
        fn product(&mut self) -> Option<u32> {
            let mut value = self.atom()?;
            loop {
                if self.eat('*') {
                    value = value.checked_mul(self.atom()?)?;
                } else if self.eat('/') {
                    value = value.checked_div(self.atom()?)?;
                } else if self.eat('%') {
                    value = value.checked_rem(self.atom()?)?;
                } else {
                    return Some(value);
                }
            }
        }
        fn atom(&mut self) -> Option<u32> {
            if self.eat('(') {
                let value = self.sum()?;
                return self.eat(')').then_some(value);
            }
            self.peek()?;
            let end = self.rest.find(|c: char| !c.is_alphanumeric() && c != '_');
            let (word, rest) = self.rest.split_at(end.unwrap_or(self.rest.len()));
            self.rest = rest;
            match self.known.get(word) {
                Some(value) => Some(*value),
                None => word.strip_suffix('u').unwrap_or(word).parse().ok(),
            }
        }
    }
    let mut parser = Parser { rest: text, known };
    let value = parser.sum()?;
    parser.peek().is_none().then_some(value)
}

/// Writes out every loop behind `//#unroll`.
fn unroll(lines: &[Line], known: &HashMap<String, u32>) -> Result<Vec<Line>, Error> {
    let mut out = Vec::with_capacity(lines.len());
    let mut index = 0;
    while index < lines.len() {
        let line = &lines[index];
        if line.text.trim() != "//#unroll" {
            out.push(line.clone());
            index += 1;
            continue;
        }
        let head = lines.get(index + 1).ok_or_else(|| complain(line, "nothing follows"))?;
        let (name, from, to) = loop_head(&head.text, known)
            .ok_or_else(|| complain(head, "expected `for (var i = A; i < B; i++) {`"))?;
        let end = closing(lines, index + 1).ok_or_else(|| complain(head, "no closing brace"))?;
        let body = &lines[index + 2..end];
        for value in from..to {
            let literal = format!("{value}u");
            let copy: Vec<Line> = body
                .iter()
                .map(|line| Line {
                    text: replace_word(&line.text, &name, &literal),
                    ..line.clone()
                })
                .collect();
            out.push(Line { text: "{".into(), ..head.clone() });
            out.extend(unroll(&copy, known)?);
            out.push(Line { text: "}".into(), ..lines[end].clone() });
        }
        index = end + 1;
    }
    Ok(out)
}

fn complain(line: &Line, what: &str) -> Error {
    Error(format!("shaders/{}:{}: `//#unroll`: {what}", line.file, line.number))
}

/// Name and bounds of `for (var NAME = A; NAME < B; NAME++) {`.
fn loop_head(text: &str, known: &HashMap<String, u32>) -> Option<(String, u32, u32)> {
    let inner = text.trim().strip_prefix("for (var ")?.strip_suffix("++) {")?;
    let mut parts = inner.split(';');
    let (name, from) = parts.next()?.split_once('=')?;
    let (left, to) = parts.next()?.split_once('<')?;
    let step = parts.next()?;
    let name = name.trim();
    if left.trim() != name || step.trim() != name {
        return None;
    }
    Some((name.to_string(), evaluate(from, known)?, evaluate(to, known)?))
}

/// Index of the line that closes the brace opened on line `start`.
fn closing(lines: &[Line], start: usize) -> Option<usize> {
    let mut depth = 0_i32;
    for (index, line) in lines.iter().enumerate().skip(start) {
        let code = line.text.split("//").next().unwrap_or_default();
        for character in code.chars() {
            match character {
                '{' => depth += 1,
                '}' => depth -= 1,
                _ => {}
            }
        }
        if depth == 0 {
            return Some(index);
        }
    }
    None
}

/// Replaces an identifier, leaving longer words that contain it alone.
fn replace_word(text: &str, word: &str, with: &str) -> String {
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(start) = rest.find(|c: char| c.is_alphabetic() || c == '_') {
        // A letter straight behind a digit belongs to a literal such as `0u`.
        let literal = rest[..start].ends_with(|c: char| c.is_ascii_digit());
        let tail = &rest[start..];
        let end = tail.find(|c: char| !c.is_alphanumeric() && c != '_').unwrap_or(tail.len());
        out.push_str(&rest[..start]);
        let found = &tail[..end];
        out.push_str(if found == word && !literal { with } else { found });
        rest = &tail[end..];
    }
    out.push_str(rest);
    out
}

/// Hoists `enable` lines, chooses how `params` is bound, and joins the lines.
fn finish(lines: Vec<Line>, immediates: bool) -> Assembled {
    let (enables, body): (Vec<Line>, Vec<Line>) =
        lines.into_iter().partition(|line| line.text.trim_start().starts_with("enable "));
    let mut text = String::new();
    let mut map = Vec::new();
    let mut hoisted = HashSet::new();
    let enables = enables.into_iter().filter(|line| hoisted.insert(line.text.clone()));
    for line in enables.collect::<Vec<_>>().into_iter().chain(body) {
        if immediates && line.text.trim() == UNIFORM_PARAMS {
            text.push_str("var<immediate> params: Params;");
        } else {
            text.push_str(&line.text);
        }
        text.push('\n');
        map.push((line.file, line.number));
    }
    Assembled { text, lines: map }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn line(text: &str) -> Line {
        Line { text: text.into(), file: "test.wgsl".into(), number: 1 }
    }

    #[test]
    fn expressions_are_evaluated() {
        let known = HashMap::from([("TM".to_string(), 4), ("TN".to_string(), 8)]);
        assert_eq!(evaluate("TM * (TN - 2u) / 3u + 1u", &known), Some(9));
        assert_eq!(evaluate("TM * K", &known), None);
        assert_eq!(evaluate("1u - 2u", &known), None);
    }

    #[test]
    fn nested_loops_are_written_out() {
        let text = "//#unroll\nfor (var i = 0u; i < TM; i++) {\n//#unroll\n\
                    for (var j = i; j < 2u; j++) {\nacc[i * 2u + j] = ii + f32(j);\n}\n}";
        let lines: Vec<Line> = text.lines().map(line).collect();
        let known = HashMap::from([("TM".to_string(), 2)]);
        let out = unroll(&lines, &known).expect("well-formed");
        let body: Vec<&str> =
            out.iter().map(|line| line.text.as_str()).filter(|t| t.len() > 1).collect();
        assert_eq!(
            body,
            [
                "acc[0u * 2u + 0u] = ii + f32(0u);",
                "acc[0u * 2u + 1u] = ii + f32(1u);",
                "acc[1u * 2u + 1u] = ii + f32(1u);"
            ]
        );
    }

    #[test]
    fn a_loop_that_cannot_be_unrolled_is_named() {
        let lines = [line("//#unroll"), line("for (var i = 0u; i < params.k; i++) {"), line("}")];
        let error = unroll(&lines, &HashMap::new()).err().expect("an error");
        assert!(error.to_string().contains("test.wgsl:1"), "{error}");
    }
}
