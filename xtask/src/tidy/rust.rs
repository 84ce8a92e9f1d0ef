//! Checks of Rust files.

use super::{Complaints, File, Tree};

pub(super) fn module_docs(tree: &Tree, out: &mut Complaints) {
    for file in tree.with_extension("rs") {
        if !file.text.starts_with("//! ") {
            out.push(&file.path, 1, "begin with `//!` and a sentence on what this file is for");
        }
    }
}

/// What is not to be written, where, and what instead.
struct Ban {
    word: &'static str,
    applies: fn(&File) -> bool,
    fix: &'static str,
}

const BANS: &[Ban] = &[
    Ban {
        word: ".unwrap()",
        applies: |_| true,
        fix: "return an error that names file or tensor, or say in `.expect(\"…\")` what holds",
    },
    // As parts of words these also find `eprintln!` and `eprint!`.
    Ban { word: "println!(", applies: is_library, fix: PRINT },
    Ban { word: "print!(", applies: is_library, fix: PRINT },
    Ban {
        word: "std::time::",
        applies: |file| file.below("crates/edge-scheduler") || file.below("crates/edge-kernels"),
        fix: "this crate reads no clock: take the duration as an argument",
    },
    Ban {
        word: "std::fs",
        applies: |file| file.below("crates/edge-scheduler"),
        fix: "the scheduler reads no file: take the contents as an argument",
    },
];

const PRINT: &str = "write to a `Write` that the caller gives, or use `tracing`: only the command \
                     line decides what goes to which stream";

/// Everything but the command line itself.
fn is_library(file: &File) -> bool {
    !file.below("crates/edge-runtime/src/cli") && file.path != "crates/edge-runtime/src/main.rs"
}

/// The bans hold in `crates/*/src` outside of tests and comments.
pub(super) fn banned(tree: &Tree, out: &mut Complaints) {
    for file in tree.with_extension("rs").filter(|file| is_product(file)) {
        let tests = test_lines(&file.text);
        for (number, line) in file.lines() {
            if tests[number - 1] || line.trim_start().starts_with("//") {
                continue;
            }
            let hit = BANS.iter().find(|ban| (ban.applies)(file) && line.contains(ban.word));
            if let Some(Ban { word, fix, .. }) = hit {
                out.push(&file.path, number, format!("`{word}` is not used here: {fix}"));
            }
        }
    }
}

/// Product code: below `crates/*/src`, apart from modules that by their name are only for tests.
fn is_product(file: &File) -> bool {
    let mut parts = file.path.split('/');
    let product = parts.next() == Some("crates") && parts.nth(1) == Some("src");
    let stem = file.stem();
    let tests = matches!(stem, "tests" | "testing") || stem.ends_with("_tests");
    product && !tests && !file.path.contains("/tests/")
}

/// For each line, whether it belongs to an item behind `#[cfg(test)]`. Relies on rustfmt's
/// indentation, which is checked too.
fn test_lines(text: &str) -> Vec<bool> {
    let mut out = Vec::new();
    let mut until: Option<String> = None;
    let mut starts = false;
    for line in text.lines() {
        let trimmed = line.trim_start();
        let indent = &line[..line.len() - trimmed.len()];
        if trimmed.starts_with("#[cfg(test)]") {
            starts = true;
            out.push(true);
            continue;
        }
        if starts && !trimmed.starts_with('#') {
            starts = false;
            if trimmed.ends_with('{') {
                until = Some(format!("{indent}}}"));
            }
            out.push(true);
            continue;
        }
        out.push(starts || until.is_some());
        if until.as_deref() == Some(line) {
            until = None;
        }
    }
    out
}

/// The GPU library's name.
const GPU_API: &str = concat!("wg", "pu");

/// What shaders with cooperative matrices begin with.
const DIRECTIVE: &str = concat!("enable ", "wg", "pu", "_cooperative_matrix;");

/// One crate names the GPU library; the others could be built on another.
pub(super) fn gpu_api_in_one_crate(tree: &Tree, out: &mut Complaints) {
    let checked = |file: &&File| {
        let kind = file.is("rs") || file.is("toml") || file.is("wgsl");
        // A peer's backend is named after it.
        let peer = file.below("kernels-bench/peers");
        kind && !peer && !file.below("crates/edge-gpu") && file.path != "Cargo.toml"
    };
    for file in tree.files.iter().filter(checked) {
        for (number, line) in file.lines() {
            // The directive of an extension has that name, whoever translates it.
            let directive = file.is("wgsl") && line == DIRECTIVE;
            if line.contains(GPU_API) && !directive {
                let message = format!(
                    "`{GPU_API}` is named outside edge-gpu: say what is needed in terms of \
                     edge-gpu's API (or, in a comment, of WebGPU)"
                );
                out.push(&file.path, number, message);
            }
        }
    }
}

/// Files with `unsafe`, and what it is worth there.
const UNSAFE: &[(&str, &str)] = &[
    ("crates/edge-gpu/src/device.rs", "leave to use experimental features"),
    ("crates/edge-gpu/src/host.rs", "buffers of the cpu device, shared as those of a GPU are"),
    ("crates/edge-gpu/src/pipeline.rs", "shaders without bounds checks of the driver's own"),
    ("crates/edge-gpu/src/transfer.rs", "words written into mapped buffers in place"),
    ("crates/edge-gpu/src/upload.rs", "words written into mapped buffers in place"),
    ("crates/edge-kernels/src/ops/product.rs", "gemm takes pointers and strides"),
    ("crates/edge-runtime/src/compress/solve/linear.rs", "an instruction of processors with AVX"),
    ("crates/edge-runtime/src/data/store.rs", "a map of a file that has no name"),
    ("kernels-bench/peers/src/cpu.rs", "gemm takes pointers and strides"),
];

/// `unsafe` is in the files of the list alone, each with its reason.
pub(super) fn unsafe_in_few_files(tree: &Tree, out: &mut Complaints) {
    let forms = ["{", "fn ", "impl ", "trait ", "extern "].map(|what| format!("unsafe {what}"));
    // The checks themselves have the words as texts.
    for file in tree.with_extension("rs").filter(|file| !file.below("xtask")) {
        let has = |line: &str| {
            let comment = line.trim_start().starts_with("//");
            !comment && forms.iter().any(|form| line.contains(form))
        };
        let found = file.lines().find(|(_, line)| has(line));
        let listed = UNSAFE.iter().any(|(path, _)| *path == file.path);
        match found {
            Some((line, _)) if !listed => out.push(
                &file.path,
                line,
                "`unsafe` in a new file: use a safe crate, or add the file to UNSAFE in \
                 xtask/src/tidy/rust.rs with what it is worth",
            ),
            None if listed => {
                out.push(&file.path, 0, "has no `unsafe` any more: remove it from UNSAFE");
            }
            _ => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tidy::testing::places;

    #[test]
    fn a_file_without_docs_is_seen() {
        assert_eq!(places(module_docs, &[("a.rs", "use b;\n"), ("b.rs", "//! b\n")]), ["a.rs:1"]);
    }

    #[test]
    fn bans_hold_outside_tests_and_comments() {
        let text = "//! a\n// x.unwrap()\nx.unwrap();\nprintln!(\"\");\n\
                    #[cfg(test)]\nmod tests {\n    x.unwrap();\n}\nx.unwrap();\n";
        let place = "crates/edge-gpu/src/a.rs";
        let free = ["xtask/src/a.rs", "crates/a/examples/a.rs", "crates/a/src/a_tests.rs"];
        let files = [(place, text), (free[0], text), (free[1], text), (free[2], text)];
        let want: Vec<String> = [3, 4, 9].map(|line| format!("{place}:{line}")).into();
        assert_eq!(places(banned, &files), want);
    }

    #[test]
    fn only_the_command_line_prints() {
        let text = "//! a\neprintln!(\"a\");\n";
        let files =
            [("crates/edge-runtime/src/cli/a.rs", text), ("crates/edge-runtime/src/a.rs", text)];
        assert_eq!(places(banned, &files), ["crates/edge-runtime/src/a.rs:2"]);
    }

    #[test]
    fn unsafe_has_its_places() {
        let (listed, reason) = UNSAFE[0];
        assert!(UNSAFE.iter().all(|(_, reason)| !reason.is_empty()), "{reason}");
        let text = "//! a\n// unsafe { no }\nlet a = unsafe { b };\n";
        let files = [("crates/a/src/a.rs", text), (listed, text), ("xtask/src/a.rs", text)];
        assert_eq!(places(unsafe_in_few_files, &files), ["crates/a/src/a.rs:3"]);
        let safe = [(listed, "//! a\n")];
        assert_eq!(places(unsafe_in_few_files, &safe), [format!("{listed}:0")]);
    }

    #[test]
    fn the_scheduler_has_no_clock() {
        let text = "//! a\nuse std::time::Instant;\n";
        let files = [("crates/edge-scheduler/src/a.rs", text), ("crates/edge-gpu/src/a.rs", text)];
        assert_eq!(places(banned, &files), ["crates/edge-scheduler/src/a.rs:2"]);
    }

    #[test]
    fn the_gpu_library_has_one_home() {
        let text = format!("//! a\nuse {GPU_API}::Device;\n");
        let files = [
            ("crates/edge-gpu/src/a.rs", text.as_str()),
            ("crates/edge-runtime/src/a.rs", &text),
            ("kernels-bench/peers/src/a.rs", &text),
        ];
        assert_eq!(places(gpu_api_in_one_crate, &files), ["crates/edge-runtime/src/a.rs:2"]);
    }
}
