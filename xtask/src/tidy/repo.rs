//! Checks of the repository as a whole.

use super::{Complaints, Tree};
use crate::COMMANDS;

const FILE_BYTES_MAX: u64 = 256 << 10;

/// Larger files that are worth it.
const LARGE: &[&str] = &["crates/edge-runtime/demo/model/model.safetensors"];

pub(super) fn large_files(tree: &Tree, out: &mut Complaints) {
    for file in &tree.files {
        if file.bytes > FILE_BYTES_MAX && !LARGE.contains(&file.path.as_str()) {
            let message = format!(
                "{} bytes, more than {FILE_BYTES_MAX}: git keeps it for ever, so generate it, or \
                 add it to LARGE in xtask/src/tidy/repo.rs",
                file.bytes
            );
            out.push(&file.path, 0, message);
        }
    }
}

pub(super) fn changelog(tree: &Tree, out: &mut Complaints) {
    const PATH: &str = "CHANGELOG.md";
    let text = tree.get(PATH).map_or("", |file| file.text.as_str());
    let first = text.lines().find(|line| line.starts_with("## "));
    if !first.is_some_and(|line| line.starts_with("## Unreleased")) {
        out.push(PATH, 0, "its first section must be `## Unreleased`: changes are written there");
    }
}

const DEPENDENCIES: &str = "xtask/src/dependencies.txt";

/// Packages outside of the workspace, whose dependencies are in the list with their folder:
/// `kernels-bench/peers NAME: REASON`.
const OUTSIDE: &[&str] = &["kernels-bench/peers"];

/// The external dependencies equal a list with a reason for each.
pub(super) fn dependencies(tree: &Tree, out: &mut Complaints) {
    let list = tree.get(DEPENDENCIES).map_or("", |file| file.text.as_str());
    let mut allowed: Vec<(usize, &str)> = Vec::new();
    for (index, line) in list.lines().enumerate() {
        if line.is_empty() || line.starts_with('#') {
            continue;
        }
        match line.split_once(": ") {
            Some((name, reason)) if !reason.trim().is_empty() => allowed.push((index + 1, name)),
            _ => out.push(DEPENDENCIES, index + 1, "write `name: why it is worth having`"),
        }
    }
    let mut used = Vec::new();
    for (line, name) in section(tree, "Cargo.toml", "[workspace.dependencies]") {
        used.push(("Cargo.toml".to_string(), line, name.to_string()));
    }
    for folder in OUTSIDE {
        let path = format!("{folder}/Cargo.toml");
        for (line, name) in section(tree, &path, "[dependencies]") {
            used.push((path.clone(), line, format!("{folder} {name}")));
        }
    }
    for (path, line, name) in &used {
        if !allowed.iter().any(|(_, known)| known == name) {
            let message = format!("`{name}` is new: add `{name}: REASON` to {DEPENDENCIES}");
            out.push(path, *line, message);
        }
    }
    for (line, name) in allowed {
        if !used.iter().any(|(_, _, known)| known == name) {
            out.push(DEPENDENCIES, line, format!("`{name}` is not in Cargo.toml: remove the line"));
        }
    }
    inherited(tree, out);
}

/// External dependencies in a section of a manifest, with their lines.
fn section<'a>(tree: &'a Tree, path: &str, title: &str) -> Vec<(usize, &'a str)> {
    let Some(manifest) = tree.get(path) else { return Vec::new() };
    let mut inside = false;
    let mut found = Vec::new();
    for (number, line) in manifest.lines() {
        if line.starts_with('[') {
            inside = line == title;
        } else if let Some((name, value)) = line.split_once(" = ")
            && inside
            && !name.starts_with('#')
            && !value.contains("path = ")
        {
            found.push((number, name));
        }
    }
    found
}

/// Members take every dependency from the workspace, so that there is one version and one list.
fn inherited(tree: &Tree, out: &mut Complaints) {
    let outside = |path: &str| OUTSIDE.iter().any(|folder| path == format!("{folder}/Cargo.toml"));
    let manifests = tree.files.iter().filter(|file| file.path.ends_with("/Cargo.toml"));
    let manifests = manifests.filter(|file| !outside(&file.path));
    for file in manifests {
        let mut inside = false;
        for (number, line) in file.lines() {
            if line.starts_with('[') {
                inside = line.ends_with("dependencies]");
            } else if inside
                && line.contains('=')
                && !line.starts_with('#')
                && !line.contains("workspace = true")
            {
                let message = "give the version in the root Cargo.toml and write \
                               `NAME.workspace = true` here";
                out.push(&file.path, number, message);
            }
        }
    }
}

/// Packages whose use is in no source text: features and data of another one.
const UNNAMED: &[&str] = &[];

/// A dependency that no file of its package names is built for nothing.
pub(super) fn unused_dependencies(tree: &Tree, out: &mut Complaints) {
    for manifest in tree.files.iter().filter(|file| file.path.ends_with("/Cargo.toml")) {
        let folder = manifest.path.trim_end_matches("/Cargo.toml");
        let inner = |path: &str| OUTSIDE.iter().any(|o| path.starts_with(*o) && *o != folder);
        let sources: Vec<&str> = tree
            .with_extension("rs")
            .filter(|file| file.below(folder) && !inner(&file.path))
            .map(|file| file.text.as_str())
            .collect();
        let mut inside = false;
        for (number, line) in manifest.lines() {
            if line.starts_with('[') {
                inside = line.ends_with("dependencies]");
                continue;
            }
            let end = line.find([' ', '.', '=']).unwrap_or(0);
            let name = &line[..end];
            if !inside || name.is_empty() || name.starts_with('#') || UNNAMED.contains(&name) {
                continue;
            }
            let word = name.replace('-', "_");
            if !sources.iter().any(|text| names(text, &word)) {
                let message = format!("no file of {folder} names `{word}`: remove the dependency");
                out.push(&manifest.path, number, message);
            }
        }
    }
}

/// Whether a text has `word::`, `use word` or `word` in braces, as a whole word.
fn names(text: &str, word: &str) -> bool {
    text.match_indices(word).any(|(at, _)| {
        let before = text[..at].chars().next_back();
        let after = &text[at + word.len()..];
        let whole = before.is_none_or(|c| !c.is_alphanumeric() && c != '_');
        whole && (after.starts_with("::") || after.starts_with(';') || after.starts_with(" as "))
    })
}

/// Continuous integration runs what a laptop runs: each step of a workflow is a `cargo xtask`
/// command, or an action pinned to a full version; permissions are stated.
pub(super) fn workflows(tree: &Tree, out: &mut Complaints) {
    for file in tree.files.iter().filter(|file| file.below(".github/workflows")) {
        if !file.lines().any(|(_, line)| line.starts_with("permissions:")) {
            out.push(&file.path, 0, "state `permissions:` for the whole workflow");
        }
        for (number, line) in file.lines() {
            let step = line.trim_start().trim_start_matches("- ");
            if let Some(command) = step.strip_prefix("run: ") {
                let ours = command.starts_with("cargo xtask ");
                // What only exists there: results of jobs, releases.
                let theirs = ["gh release ", "test '"].iter().any(|is| command.starts_with(is));
                if !ours && !theirs {
                    let message = "make this a `cargo xtask` command, which runs on a laptop too";
                    out.push(&file.path, number, message);
                }
            }
            if let Some(action) = step.strip_prefix("uses: ") {
                let version = action.rsplit_once("@v").map_or("", |(_, version)| version);
                let parts: Vec<&str> = version.split('.').collect();
                let full = parts.len() == 3 && parts.iter().all(|p| p.parse::<u32>().is_ok());
                if !full {
                    let message = "pin the action to a full version, `@v1.2.3`";
                    out.push(&file.path, number, message);
                }
            }
        }
    }
}

/// Every `cargo xtask COMMAND` in the documents is a command.
pub(super) fn readme_commands(tree: &Tree, out: &mut Complaints) {
    for file in tree.with_extension("md") {
        for (number, line) in file.lines() {
            for rest in line.split("cargo xtask ").skip(1) {
                let end = rest.find(|c: char| !c.is_ascii_alphanumeric() && c != '-');
                let name = &rest[..end.unwrap_or(rest.len())];
                let placeholder = name.chars().all(|c| c.is_ascii_uppercase());
                if !placeholder && !COMMANDS.iter().any(|(known, _)| *known == name) {
                    let message = format!("there is no `cargo xtask {name}`: correct the document");
                    out.push(&file.path, number, message);
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
    fn large_files_are_seen() {
        let text = "x".repeat(300 << 10);
        let files = [("a.bin", text.as_str()), (LARGE[0], &text), ("b.bin", "x")];
        assert_eq!(places(large_files, &files), ["a.bin:0"]);
    }

    #[test]
    fn the_changelog_begins_with_unreleased() {
        let good = "# Changelog\n\n## Unreleased\n\n## 1.0\n";
        assert!(places(changelog, &[("CHANGELOG.md", good)]).is_empty());
        assert_eq!(places(changelog, &[("CHANGELOG.md", "## 1.0\n")]).len(), 1);
        assert_eq!(places(changelog, &[]).len(), 1);
    }

    #[test]
    fn dependencies_need_a_reason() {
        let root =
            "[workspace.dependencies]\nours = { path = \"ours\" }\nhalf = \"2\"\n\n[a]\nb = 1\n";
        let check = |list: &str, member: &str| {
            let files = [("Cargo.toml", root), (DEPENDENCIES, list), ("a/Cargo.toml", member)];
            places(dependencies, &files)
        };
        let member = "[dependencies]\nhalf.workspace = true\n";
        assert!(check("# list\nhalf: f16 on the host\n", member).is_empty());
        assert_eq!(check("", member), ["Cargo.toml:3"]);
        assert_eq!(check("half: f16\nrand: x\n", member), [format!("{DEPENDENCIES}:2")]);
        assert_eq!(check("half: f16\nhalf\n", member), [format!("{DEPENDENCIES}:2")]);
        let own = "[package]\nname = \"a\"\n[dev-dependencies]\nhalf = \"2\"\n";
        assert_eq!(check("half: f16\n", own), ["a/Cargo.toml:4"]);
    }

    #[test]
    fn packages_outside_need_reasons_too() {
        let path = "kernels-bench/peers/Cargo.toml";
        let manifest = "[workspace]\n\n[dependencies]\nburn = { version = \"1\" }\n";
        let check = |list: &str| places(dependencies, &[(DEPENDENCIES, list), (path, manifest)]);
        assert!(check("kernels-bench/peers burn: a peer\n").is_empty());
        // A reason within the workspace is none outside of it.
        assert_eq!(check("burn: a peer\n"), [format!("{path}:4"), format!("{DEPENDENCIES}:1")]);
    }

    #[test]
    fn a_dependency_that_nothing_names_is_seen() {
        let manifest = "[package]\nname = \"a\"\n\n[dependencies]\nhalf.workspace = true\n\
                        fs4 = { workspace = true }\nserde-json.workspace = true\n\n\
                        [lints]\nx = 1\n";
        let source = "use half::f16;\nlet a = serde_json::json!(1); // fs4 is not used: xfs4::a\n";
        let files = [("crates/a/Cargo.toml", manifest), ("crates/a/src/lib.rs", source)];
        assert_eq!(places(unused_dependencies, &files), ["crates/a/Cargo.toml:6"]);
        // Another package's use is none.
        let other = [("crates/a/Cargo.toml", manifest), ("crates/ab/src/lib.rs", source)];
        assert_eq!(places(unused_dependencies, &other).len(), 3);
    }

    #[test]
    fn workflows_run_our_commands() {
        let path = ".github/workflows/a.yml";
        let good = "permissions:\n  contents: read\njobs:\n  - uses: actions/checkout@v4.2.2\n\
                    \x20 - run: cargo xtask tidy\n";
        assert!(places(workflows, &[(path, good)]).is_empty());
        let bad = "jobs:\n  - uses: actions/checkout@v4\n  - run: make test\n";
        let want = [0, 2, 3].map(|line| format!("{path}:{line}"));
        assert_eq!(places(workflows, &[(path, bad)]), want);
    }

    #[test]
    fn unknown_commands_in_documents_are_seen() {
        let text = "run `cargo xtask test` or `cargo xtask COMMAND`\nor `cargo xtask tests`\n";
        assert_eq!(places(readme_commands, &[("README.md", text)]), ["README.md:2"]);
    }
}
