//! `cargo xtask sanitize`: what only a nightly compiler watches. Miri runs the tests of the pure
//! crates and reports undefined behaviour; the thread sanitizer runs the streaming tests, whose
//! loader hands slots of weights to the thread that records, and reports data races.

use std::process::Command;

use anyhow::{Context, Result, bail};

use crate::cmd;
use crate::fuzz::host;

/// `miri` or `thread`; both by default. Installs a nightly compiler where there is none.
pub(crate) fn run(args: &[String]) -> Result<()> {
    if !cmd::succeeds(Command::new("cargo").args(["+nightly", "miri", "--version"])) {
        let mut install = Command::new("rustup");
        install.args(["toolchain", "install", "nightly", "--profile", "minimal"]);
        install.args(["--component", "miri,rust-src"]);
        cmd::run(&mut install).context("get Rust by https://rustup.rs, which has nightly ones")?;
    }
    match args.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        [] => miri().and_then(|()| thread()),
        ["miri"] => miri(),
        ["thread"] => thread(),
        _ => bail!("`cargo xtask sanitize` takes miri, thread or nothing"),
    }
}

/// The clock and files may be read; what floats round to is the same each time, since tests compare
/// it; crossbeam, which rayon stands on, keeps the rules of tree borrows and not of stacked ones,
/// makes pointers of integers, and leaves its threads' memory behind.
const MIRI_FLAGS: &str = "-Zmiri-disable-isolation -Zmiri-deterministic-floats \
                          -Zmiri-tree-borrows -Zmiri-permissive-provenance -Zmiri-ignore-leaks";

/// Parts of the names of tests that take Miri minutes each: many cases, or shaders for naga.
const SLOW: &str = "shader_and_cases naga_accepts valid_wgsl every_name_is the_reference_writes \
                    rows_from_an_offset is_the_adjoint_of_adding keys_and_queries \
                    backward_references forward_reference rows_of_every_format chunks_agree \
                    three_exits_agree the_reference_is_the is_its_definition products_are_adjoint \
                    rounding_has_no_bias rows_taken_are a_mask_decides given_scales \
                    packing_the_unpacked some_rows_are error_is_at_most_half zero_constant";

fn miri() -> Result<()> {
    let mut command = Command::new("cargo");
    command.args(["+nightly", "miri", "test", "--lib", "-p", "edge-scheduler", "-p"]);
    command.args(["edge-kernels", "--target-dir", "target/miri", "--"]);
    command.args(SLOW.split_whitespace().flat_map(|name| ["--skip", name]));
    command.env("MIRIFLAGS", MIRI_FLAGS);
    cmd::run(command.env("RAYON_NUM_THREADS", "1"))
}

fn thread() -> Result<()> {
    let host = host()?;
    let mut command = Command::new("cargo");
    // With --target, build scripts are left as they are; the standard library is built anew, since
    // what it does would be taken for races otherwise.
    command.args(["+nightly", "test", "-Zbuild-std", "--target", &host, "--release"]);
    command.args(["--target-dir", "target/thread", "-p", "edge-tests", "--test", "it"]);
    command.args(["--", "stream::"]).env("RUSTFLAGS", "-Zsanitizer=thread");
    let supp = std::env::current_dir().context("the current folder")?.join("tests/tsan.supp");
    // Drivers are not compiled for it.
    let options = "exitcode=66 ignore_noninstrumented_modules=1 suppressions=";
    command.env("TSAN_OPTIONS", format!("{options}{}", supp.display()));
    cmd::run(&mut command)
}
