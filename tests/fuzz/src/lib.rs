//! Fuzz targets: for each kind of file that the program reads from strangers, what the commands do
//! with it. The file may be refused with an error; a panic, an abort, much memory or much time is
//! a finding.
//!
//! [`targets`] has them, [`edge_tests::folders`] what lies beside the file, [`mutate`] makes new
//! inputs of known ones. `main.rs` runs them on any toolchain, `guided.rs` under libFuzzer. Inputs
//! worth keeping are in `corpus/TARGET/`, what was found in `regressions/TARGET/`; both are run by
//! the tests of this package.

pub mod mutate;
pub mod targets;

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result};
use cap::Cap;
use tempfile::TempDir;

/// Counts memory, and gives no more than [`MEMORY_BYTES`].
#[global_allocator]
static ALLOCATOR: Cap<std::alloc::System> = Cap::new(std::alloc::System, usize::MAX);

/// The most memory that an input may take, on top of what is in use before: inputs are at most
/// [`INPUT_BYTES`], and the parsers' own bounds (decoded metadata of GGUF, fuel of templates) are
/// below. More ends the process.
pub const MEMORY_BYTES: usize = 512 << 20;

/// Longest input.
pub const INPUT_BYTES: usize = 1 << 18;

/// The most time that an input may take.
pub const TIME: Duration = Duration::from_secs(10);

/// A kind of file, and what is done with it.
pub struct Target {
    /// Its name on the command line and in folders.
    pub name: &'static str,
    /// Makes a folder in which all files are valid.
    pub prepare: fn(&Path) -> Result<()>,
    /// The file in it that is fuzzed.
    pub file: &'static str,
    /// Mends checksums that would let no input through.
    pub mend: fn(&mut [u8]),
    /// Does with the folder what commands do.
    pub run: fn(&Path) -> Result<()>,
}

impl Target {
    /// The target of this name.
    ///
    /// # Errors
    /// There is none.
    pub fn named(name: &str) -> Result<&'static Self> {
        let found = targets::TARGETS.iter().find(|target| target.name == name);
        found.with_context(|| {
            let names: Vec<&str> = targets::TARGETS.iter().map(|target| target.name).collect();
            format!("there is no target {name}: give one of {}", names.join(", "))
        })
    }
}

/// A target with its folder.
pub struct Prepared {
    target: &'static Target,
    dir: TempDir,
    /// The valid file.
    pub valid: Vec<u8>,
}

impl Prepared {
    /// Makes the folder, in memory where there is such a file system.
    ///
    /// # Errors
    /// It cannot be written, or its files are not valid.
    pub fn new(target: &'static Target) -> Result<Self> {
        let memory = Path::new("/dev/shm");
        let place = if memory.is_dir() { memory.to_owned() } else { std::env::temp_dir() };
        let dir = tempfile::tempdir_in(place)?;
        (target.prepare)(dir.path())?;
        let valid = std::fs::read(dir.path().join(target.file)).context("the valid file")?;
        let prepared = Self { target, dir, valid };
        prepared.run(&prepared.valid).context("the valid file is refused")?;
        Ok(prepared)
    }

    /// Runs one input.
    ///
    /// # Errors
    /// The input is refused.
    pub fn run(&self, input: &[u8]) -> Result<()> {
        let mut bytes = input.to_vec();
        (self.target.mend)(&mut bytes);
        std::fs::write(self.dir.path().join(self.target.file), bytes)?;
        let in_use = ALLOCATOR.allocated();
        ALLOCATOR.set_limit(in_use + MEMORY_BYTES).map_err(|()| anyhow::anyhow!("the limit"))?;
        let result = (self.target.run)(self.dir.path());
        ALLOCATOR.set_limit(usize::MAX).map_err(|()| anyhow::anyhow!("the limit"))?;
        result
    }
}

/// The folder of this package.
pub fn home() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
}

/// Files of `corpus/` or `regressions/` of a target, sorted; none where there is no such folder.
///
/// # Errors
/// A file cannot be read.
pub fn kept(kind: &str, target: &str) -> Result<Vec<(PathBuf, Vec<u8>)>> {
    let dir = home().join(kind).join(target);
    let files = std::fs::read_dir(dir).into_iter().flatten().flatten();
    let mut paths: Vec<PathBuf> = files.map(|file| file.path()).collect();
    paths.sort();
    let read = |path: PathBuf| Ok((path.clone(), std::fs::read(path)?));
    paths.into_iter().map(read).collect()
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use super::*;

    /// One test, since memory is counted for the whole process. An input that ends the process is
    /// the one that was named last.
    #[test]
    fn kept_inputs_do_no_harm() {
        for target in targets::TARGETS {
            let prepared = Prepared::new(target).unwrap();
            for kind in ["corpus", "regressions"] {
                for (path, input) in kept(kind, target.name).unwrap() {
                    let shown = path.strip_prefix(home()).unwrap().display();
                    eprintln!("{shown}");
                    let started = Instant::now();
                    let result = prepared.run(&input);
                    let took = started.elapsed();
                    assert!(took < TIME, "{shown} took {took:?}");
                    let wanted = path.file_name().unwrap().to_string_lossy();
                    match result {
                        Ok(()) => {}
                        Err(error) => {
                            assert!(!wanted.starts_with("ok"), "{shown} is refused: {error:#}");
                        }
                    }
                }
            }
        }
    }
}
