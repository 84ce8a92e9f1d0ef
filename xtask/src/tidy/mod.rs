//! Checks of the source text that neither rustfmt nor clippy makes: `#[test] fn tidy()`, and
//! `cargo xtask tidy` for the same without building the other tests.
//!
//! Each check is a function from the [`Tree`] to [`Complaints`]; each complaint names the file,
//! the line and the fix, and each check has a test that shows what it catches.

mod lengths;
mod repo;
mod rust;
mod shader;
mod text;

use std::fmt;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, bail};

use crate::cmd;

/// A file of the repository.
struct File {
    /// Path from the root, with `/`.
    path: String,
    /// Contents; empty for files that are not text.
    text: String,
    /// Length on disk.
    bytes: u64,
}

impl File {
    fn is(&self, extension: &str) -> bool {
        self.path.rsplit_once('.').is_some_and(|(_, ext)| ext == extension)
    }

    fn below(&self, folder: &str) -> bool {
        self.path.strip_prefix(folder).is_some_and(|rest| rest.starts_with('/'))
    }

    fn stem(&self) -> &str {
        let name = self.path.rsplit('/').next().unwrap_or_default();
        name.split_once('.').map_or(name, |(stem, _)| stem)
    }

    /// Lines with their 1-based numbers.
    fn lines(&self) -> impl Iterator<Item = (usize, &str)> {
        self.text.lines().enumerate().map(|(index, line)| (index + 1, line))
    }
}

/// The files that git tracks or would track.
struct Tree {
    files: Vec<File>,
}

impl Tree {
    fn read(root: &Path) -> Result<Self> {
        let listed = cmd::output(
            Command::new("git")
                .args(["ls-files", "-z", "--cached", "--others", "--exclude-standard"])
                .current_dir(root),
        );
        let mut paths: Vec<String> = match listed {
            Some(list) => list.split_terminator('\0').map(String::from).collect(),
            // A source archive without git.
            None => walk(root)?,
        };
        paths.sort();
        let mut files = Vec::new();
        for path in paths {
            let full = root.join(&path);
            // Listed but removed from the disk: the change that is being made.
            let Ok(data) = std::fs::read(&full) else { continue };
            let bytes = data.len() as u64;
            files.push(File { path, text: String::from_utf8(data).unwrap_or_default(), bytes });
        }
        Ok(Self { files })
    }

    fn get(&self, path: &str) -> Option<&File> {
        self.files.iter().find(|file| file.path == path)
    }

    fn with_extension(&self, extension: &'static str) -> impl Iterator<Item = &File> {
        self.files.iter().filter(move |file| file.is(extension))
    }
}

/// All files below a folder, apart from what is built or hidden.
fn walk(root: &Path) -> Result<Vec<String>> {
    const KEPT: &[&str] = &[".cargo", ".ci", ".github"];
    let mut found = Vec::new();
    let mut folders = vec![String::new()];
    while let Some(folder) = folders.pop() {
        let full = root.join(&folder);
        let entries = std::fs::read_dir(&full)
            .with_context(|| format!("{} cannot be read", full.display()))?;
        for entry in entries {
            let entry = entry.with_context(|| format!("{} cannot be read", full.display()))?;
            let name = entry.file_name().to_string_lossy().into_owned();
            let built = matches!(name.as_str(), "target" | "runs");
            if built || name.starts_with('.') && !KEPT.contains(&name.as_str()) {
                continue;
            }
            let path = if folder.is_empty() { name } else { format!("{folder}/{name}") };
            if entry.path().is_dir() { folders.push(path) } else { found.push(path) }
        }
    }
    Ok(found)
}

/// What is wrong, where, and what to do.
struct Complaint {
    path: String,
    /// 1-based; 0 for the file as a whole.
    line: usize,
    message: String,
}

impl fmt::Display for Complaint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.line {
            0 => write!(f, "{}: {}", self.path, self.message),
            line => write!(f, "{}:{line}: {}", self.path, self.message),
        }
    }
}

#[derive(Default)]
struct Complaints(Vec<Complaint>);

impl Complaints {
    fn push(&mut self, path: &str, line: usize, message: impl Into<String>) {
        self.0.push(Complaint { path: path.to_string(), line, message: message.into() });
    }
}

const CHECKS: &[fn(&Tree, &mut Complaints)] = &[
    text::whitespace,
    text::columns,
    text::reminders,
    rust::module_docs,
    rust::banned,
    rust::gpu_api_in_one_crate,
    rust::unsafe_in_few_files,
    shader::header,
    shader::banned,
    shader::every_file_is_used,
    shader::op_has_both_files,
    lengths::files_and_functions,
    repo::large_files,
    repo::changelog,
    repo::dependencies,
    repo::unused_dependencies,
    repo::workflows,
    repo::readme_commands,
];

fn complaints(tree: &Tree) -> Complaints {
    let mut all = Complaints::default();
    for check in CHECKS {
        check(tree, &mut all);
    }
    all
}

/// `cargo xtask tidy`
pub(crate) fn run(args: &[String]) -> Result<()> {
    cmd::no_arguments("tidy", args)?;
    let found = complaints(&Tree::read(Path::new("."))?);
    for complaint in &found.0 {
        println!("{complaint}");
    }
    match found.0.len() {
        0 => Ok(()),
        count => bail!("{count} complaints; each names its fix"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tidy() {
        let tree = Tree::read(&crate::root()).expect("the workspace can be read");
        assert!(tree.get("Cargo.toml").is_some(), "this is not the workspace");
        let found = complaints(&tree);
        let text: Vec<String> = found.0.iter().map(Complaint::to_string).collect();
        assert!(text.is_empty(), "{} complaints:\n{}", text.len(), text.join("\n"));
    }

    #[test]
    fn a_tree_without_git_is_walked() {
        let found = walk(&crate::root()).expect("the workspace can be read");
        assert!(found.iter().any(|path| path == "xtask/src/tidy/mod.rs"));
        assert!(!found.iter().any(|path| path.starts_with("target/")));
    }
}

/// For the tests of the checks.
#[cfg(test)]
mod testing {
    use super::{Complaint, Complaints, File, Tree};

    pub(super) fn tree(files: &[(&str, &str)]) -> Tree {
        let file = |&(path, text): &(&str, &str)| File {
            path: path.into(),
            text: text.into(),
            bytes: text.len() as u64,
        };
        Tree { files: files.iter().map(file).collect() }
    }

    /// `path:line` of each complaint of a check about these files.
    pub(super) fn places(check: fn(&Tree, &mut Complaints), files: &[(&str, &str)]) -> Vec<String> {
        let mut found = Complaints::default();
        check(&tree(files), &mut found);
        let place = |complaint: &Complaint| format!("{}:{}", complaint.path, complaint.line);
        found.0.iter().map(place).collect()
    }
}
