//! Checks of WGSL files. What needs a parser (names, layouts, limits) is tested in `edge-kernels`.

use super::{Complaints, File, Tree};

/// Fragments are pasted into kernels and have no grid of their own.
fn is_fragment(file: &File) -> bool {
    file.below("shaders/lib") || file.below("shaders/weights")
}

pub(super) fn header(tree: &Tree, out: &mut Complaints) {
    for file in tree.with_extension("wgsl") {
        if !file.text.starts_with("//! ") {
            out.push(&file.path, 1, "begin with `//!` and the formula that the kernel computes");
        }
        let grid = file.lines().any(|(_, line)| line.starts_with("//!") && line.contains("Grid:"));
        if !grid && !is_fragment(file) {
            let message = "say in a line `//! Grid: …` what one workgroup computes";
            out.push(&file.path, 1, message);
        }
    }
}

pub(super) fn banned(tree: &Tree, out: &mut Complaints) {
    const FIX: &str = "the only directives are `//#include`, `//#paste`, `//#spec` and \
                       `//#unroll`; choose by including another fragment";
    for file in tree.with_extension("wgsl") {
        for (number, line) in file.lines() {
            let word = line.split_whitespace().next().unwrap_or_default();
            let known = matches!(word, "//#include" | "//#paste" | "//#unroll");
            if word.starts_with('#') || word.starts_with("//#") && !known {
                out.push(&file.path, number, format!("`{word}`: {FIX}"));
            }
        }
    }
}

/// The dead-file detector: each shader is named by an op or included by a shader.
pub(super) fn every_file_is_used(tree: &Tree, out: &mut Complaints) {
    for file in tree.with_extension("wgsl") {
        let Some(path) = file.path.strip_prefix("shaders/") else {
            out.push(&file.path, 0, "shaders live in shaders/, so that the assembler finds them");
            continue;
        };
        let quoted = format!("\"{path}\"");
        let named = |other: &File| {
            let reader = other.is("wgsl") && other.path != file.path
                || other.is("rs") && other.below("crates/edge-kernels");
            reader && other.text.contains(&quoted)
        };
        if !tree.files.iter().any(named) {
            let message = "no op names this file and no shader includes it: use it or remove it";
            out.push(&file.path, 0, message);
        }
    }
}

/// One op = one Rust file + one WGSL file of the same family and stem + one line in the registry.
pub(super) fn op_has_both_files(tree: &Tree, out: &mut Complaints) {
    const OPS: &str = "crates/edge-kernels/src/ops";
    let registry = tree.get(&format!("{OPS}/mod.rs")).map_or("", |file| file.text.as_str());
    for file in tree.with_extension("wgsl").filter(|file| !is_fragment(file)) {
        let Some(path) = file.path.strip_prefix("shaders/") else { continue };
        let twin = format!("{OPS}/{}.rs", path.trim_end_matches(".wgsl"));
        if tree.get(&twin).is_none() {
            out.push(&file.path, 0, format!("its op is missing: write {twin}"));
        }
    }
    let is_op = |file: &&File| file.below(OPS) && file.text.contains("\nimpl Op for ");
    for file in tree.with_extension("rs").filter(is_op) {
        let place = file.path[OPS.len() + 1..].trim_end_matches(".rs");
        if tree.get(&format!("shaders/{place}.wgsl")).is_none() {
            out.push(&file.path, 0, format!("its shader is missing: write shaders/{place}.wgsl"));
        }
        let module = place.replace('/', "::");
        if !registry.contains(&format!("&{module}::")) {
            let message = format!("not in the registry: add `&{module}::…` to OPS in {OPS}/mod.rs");
            out.push(&file.path, 0, message);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tidy::testing::places;

    const OP: &str = "//! a\n\nimpl Op for A {\n    \"norm/a.wgsl\"\n}\n";

    #[test]
    fn headers_are_wanted() {
        let files = [
            ("shaders/norm/a.wgsl", "//! a\n//! Grid: one workgroup a row.\n"),
            ("shaders/norm/b.wgsl", "//! b\n"),
            ("shaders/lib/c.wgsl", "//! c\n"),
            ("shaders/lib/d.wgsl", "const D = 1;\n"),
        ];
        assert_eq!(places(header, &files), ["shaders/norm/b.wgsl:1", "shaders/lib/d.wgsl:1"]);
    }

    #[test]
    fn other_directives_are_seen() {
        let text = "//! a\n//#include \"lib/c.wgsl\"\n#ifdef F16\n  //#if F16\n//#unroll\n";
        let want = ["shaders/a.wgsl:3", "shaders/a.wgsl:4"];
        assert_eq!(places(banned, &[("shaders/a.wgsl", text)]), want);
    }

    #[test]
    fn dead_files_are_seen() {
        let files = [
            ("crates/edge-kernels/src/ops/norm/a.rs", OP),
            ("shaders/norm/a.wgsl", "//! a\n//#include \"lib/c.wgsl\"\n"),
            ("shaders/lib/c.wgsl", "//! c\n"),
            ("shaders/lib/d.wgsl", "//! d\n"),
        ];
        assert_eq!(places(every_file_is_used, &files), ["shaders/lib/d.wgsl:0"]);
    }

    #[test]
    fn an_op_is_two_files_and_a_line() {
        let (registry, shader) = ("crates/edge-kernels/src/ops/mod.rs", "//! a\n");
        let (a, b) = ("crates/edge-kernels/src/ops/norm/a.rs", "shaders/norm/a.wgsl");
        let listed = "//! r\n&norm::a::A,\n";
        assert!(places(op_has_both_files, &[(registry, listed), (a, OP), (b, shader)]).is_empty());
        assert_eq!(places(op_has_both_files, &[(registry, listed), (a, OP)]).len(), 1);
        assert_eq!(places(op_has_both_files, &[(registry, listed), (b, shader)]).len(), 1);
        assert_eq!(
            places(op_has_both_files, &[(registry, "//! r\n"), (a, OP), (b, shader)]).len(),
            1
        );
    }
}
