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

/// The triple that this compiler builds for by itself.
fn host(version: &str) -> Option<&str> {
    version.lines().find_map(|line| line.strip_prefix("host: ")).map(str::trim)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_host_is_read() {
        assert_eq!(host("rustc 1\nhost: x86_64-a-b\nrelease: 1\n"), Some("x86_64-a-b"));
        assert_eq!(host("rustc 1\n"), None);
    }
}
