//! Embeds every file under `shaders/` as `(path, text)`, so that a binary needs no files beside it.

use std::fmt::Write as _;
use std::path::{Path, PathBuf};

fn collect(dir: &Path, found: &mut Vec<PathBuf>) {
    let entries = std::fs::read_dir(dir)
        .unwrap_or_else(|error| panic!("reading the shader folder {}: {error}", dir.display()));
    for entry in entries {
        let path = entry.expect("a readable directory entry").path();
        if path.is_dir() {
            collect(&path, found);
        } else if path.extension().is_some_and(|ext| ext == "wgsl") {
            found.push(path);
        }
    }
}

fn main() {
    let manifest = std::env::var("CARGO_MANIFEST_DIR").expect("cargo sets CARGO_MANIFEST_DIR");
    let root = Path::new(&manifest).join("../../shaders");
    println!("cargo::rerun-if-changed={}", root.display());
    let mut found = Vec::new();
    collect(&root, &mut found);
    found.sort();
    let mut text = String::from("pub(crate) static EMBEDDED: &[(&str, &str)] = &[\n");
    for path in &found {
        let name = path.strip_prefix(&root).expect("below the root");
        let name = name.to_str().expect("shader paths are UTF-8").replace('\\', "/");
        let full = path.canonicalize().expect("an existing file");
        writeln!(text, "    ({name:?}, include_str!({full:?})),").expect("writing to a string");
    }
    text.push_str("];\n");
    let out = std::env::var("OUT_DIR").expect("cargo sets OUT_DIR");
    std::fs::write(Path::new(&out).join("embedded.rs"), text).expect("OUT_DIR is writable");
}
