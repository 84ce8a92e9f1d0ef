//! `cargo xtask dist`: the program as it is released: an archive with the binary, the licences and
//! what changed, in `target/dist`.

use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result};

use crate::cmd;

/// Where the archive is put.
const FOLDER: &str = "target/dist";

/// What lies beside the program.
const TEXTS: [&str; 4] = ["README.md", "CHANGELOG.md", "LICENSE-APACHE", "LICENSE-MIT"];

/// Folders that lie there too, by where they are taken from: what commands without arguments work
/// on, and what the README names.
const FOLDERS: [[&str; 2]; 2] = [["crates/edge-runtime/demo", "demo"], ["docs", "docs"]];

pub(crate) fn run(args: &[String]) -> Result<()> {
    cmd::no_arguments("dist", args)?;
    cmd::run(&mut cmd::cargo(&["build", "--release", "--locked", "-p", "edge-runtime"]))?;
    let version = cmd::output(Command::new("rustc").arg("-vV")).unwrap_or_default();
    let target = host(&version).context("`rustc -vV` names no host")?;
    let name = format!("edge-runtime-{target}");
    let folder = Path::new(FOLDER).join(&name);
    if folder.exists() {
        std::fs::remove_dir_all(&folder)
            .with_context(|| format!("{} cannot be removed", folder.display()))?;
    }
    std::fs::create_dir_all(&folder)
        .with_context(|| format!("{} cannot be made", folder.display()))?;
    let program = format!("edge-runtime{}", std::env::consts::EXE_SUFFIX);
    let built = Path::new("target/release").join(&program);
    let copies = [(built.as_path(), program.as_str())].into_iter();
    for (from, to) in copies.chain(TEXTS.map(|text| (Path::new(text), text))) {
        let to = folder.join(to);
        std::fs::copy(from, &to)
            .with_context(|| format!("{} cannot be copied to {}", from.display(), to.display()))?;
    }
    for [from, to] in FOLDERS {
        copy_folder(Path::new(from), &folder.join(to))?;
    }
    let archive = format!("{name}.tar.gz");
    cmd::run(
        Command::new("tar")
            .args(["-C", FOLDER, "-czf"])
            .arg(Path::new(FOLDER).join(&archive))
            .arg(&name),
    )
    .context("`tar` is needed; Windows has it since version 10")?;
    println!("{FOLDER}/{archive}");
    Ok(())
}

/// Copies a folder with all that is in it.
fn copy_folder(from: &Path, to: &Path) -> Result<()> {
    std::fs::create_dir_all(to).with_context(|| format!("{} cannot be made", to.display()))?;
    let files =
        std::fs::read_dir(from).with_context(|| format!("{} cannot be read", from.display()))?;
    for file in files {
        let file = file.with_context(|| format!("{} cannot be read", from.display()))?;
        let (path, to) = (file.path(), to.join(file.file_name()));
        if path.is_dir() {
            copy_folder(&path, &to)?;
        } else {
            std::fs::copy(&path, &to)
                .with_context(|| format!("{} cannot be copied", path.display()))?;
        }
    }
    Ok(())
}

/// The triple that this compiler builds for by itself.
fn host(version: &str) -> Option<&str> {
    version.lines().find_map(|line| line.strip_prefix("host: ")).map(str::trim)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn folders_are_copied_whole() {
        let root = std::env::temp_dir().join(format!("xtask-dist-{}", std::process::id()));
        let (from, to) = (root.join("from"), root.join("to"));
        std::fs::create_dir_all(from.join("a/b")).expect("a folder");
        std::fs::write(from.join("a/b/c.txt"), "text").expect("a file");
        copy_folder(&from, &to).expect("copied");
        let copied = std::fs::read_to_string(to.join("a/b/c.txt"));
        std::fs::remove_dir_all(&root).expect("removed");
        assert_eq!(copied.expect("a file"), "text");
    }

    #[test]
    fn the_host_is_read() {
        assert_eq!(host("rustc 1\nhost: x86_64-a-b\nrelease: 1\n"), Some("x86_64-a-b"));
        assert_eq!(host("rustc 1\n"), None);
    }
}
