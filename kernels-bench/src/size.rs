//! The size of what is delivered and of what is kept: the program, the shaders, the tests.

use std::fs;
use std::path::Path;

use anyhow::{Context, Result};

use crate::measure::{Better, Measure};

/// Folders with sources, from the root of the workspace.
const FOLDERS: [&str; 5] = ["crates", "kernels-bench", "shaders", "tests", "xtask"];

/// Lines and tests of the sources below some folders.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Counts {
    rust_lines: u64,
    wgsl_lines: u64,
    tests: u64,
}

impl Counts {
    fn add(&mut self, name: &str, text: &str) {
        let lines = text.lines().count() as u64;
        if name.ends_with(".wgsl") {
            self.wgsl_lines += lines;
        } else if name.ends_with(".rs") {
            self.rust_lines += lines;
            self.tests += text.lines().filter(|line| line.trim() == "#[test]").count() as u64;
        }
    }

    fn walk(&mut self, folder: &Path) -> Result<()> {
        let entries =
            fs::read_dir(folder).with_context(|| format!("{} cannot be read", folder.display()))?;
        for entry in entries {
            let path = entry.with_context(|| format!("{}", folder.display()))?.path();
            let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
            if path.is_dir() {
                // What is built inside a package is no source.
                if name != "target" {
                    self.walk(&path)?;
                }
            } else if name.ends_with(".rs") || name.ends_with(".wgsl") {
                let text = fs::read_to_string(&path)
                    .with_context(|| format!("{} cannot be read", path.display()))?;
                self.add(&name, &text);
            }
        }
        Ok(())
    }
}

/// Bytes of the program, lines and tests of the workspace at `root`, and the seconds of a build
/// from nothing where it was timed.
///
/// # Errors
/// The program is not there, or a file cannot be read.
pub fn measures(root: &Path, program: &Path, cold_build_s: Option<f64>) -> Result<Vec<Measure>> {
    let mut counts = Counts::default();
    for folder in FOLDERS {
        counts.walk(&root.join(folder))?;
    }
    let bytes = fs::metadata(program)
        .with_context(|| format!("{} is not there: build edge-runtime", program.display()))?
        .len();
    let measure = |shape: &str, metric: &str, value: f64, unit: &str, better: Better| Measure {
        kind: "size".into(),
        op: "build".into(),
        format: String::new(),
        shape: shape.into(),
        metric: metric.into(),
        value,
        unit: unit.into(),
        better,
        repeat: "cargo xtask bench --record --cold-build".into(),
        seed: None,
    };
    let mut found = vec![
        measure("edge-runtime", "binary_bytes", bytes as f64, "B", Better::Lower),
        measure("workspace", "wgsl_lines", counts.wgsl_lines as f64, "", Better::Neither),
        measure("workspace", "rust_lines", counts.rust_lines as f64, "", Better::Neither),
        measure("workspace", "tests", counts.tests as f64, "", Better::Higher),
    ];
    found.extend(
        cold_build_s.map(|s| measure("edge-runtime", "cold_build_s", s, "s", Better::Lower)),
    );
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_and_tests_are_counted_where_they_are_written() {
        let mut counts = Counts::default();
        counts.add("a.rs", "//! a\n#[test]\nfn a() {}\n    #[test]\n// #[test]\n");
        counts.add("b.wgsl", "//! b\n\n");
        counts.add("c.txt", "#[test]\n");
        assert_eq!(counts, Counts { rust_lines: 5, wgsl_lines: 2, tests: 2 });
    }

    #[test]
    fn this_workspace_has_sizes() {
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
        let found = measures(&root, &root.join("Cargo.toml"), Some(12.5)).expect("readable");
        let value = |metric: &str| {
            found.iter().find(|one| one.metric == metric).map_or(f64::NAN, |one| one.value)
        };
        assert!(value("tests") > 300.0 && value("wgsl_lines") > 3000.0, "{found:?}");
        assert!(value("rust_lines") > value("wgsl_lines") && value("binary_bytes") > 100.0);
        assert_eq!(value("cold_build_s"), 12.5);
        assert!(measures(&root, &root.join("no-such-program"), None).is_err());
    }
}
