//! `cargo xtask bench`: the throughput table, by the binary of `kernels-bench`.

use std::path::Path;
use std::time::Instant;

use anyhow::{Context, Result};

use crate::{cmd, vulkan};

/// A workspace of its own, so that nobody builds what it depends on without asking.
const PEERS: &str = "kernels-bench/peers/Cargo.toml";

/// Where it is built: shared with nothing, and removed with everything else.
const PEERS_TARGET: &str = "target/peers";

/// Where the program is built from nothing to time that.
const COLD_TARGET: &str = "target/cold";

pub(crate) fn run(args: &[String]) -> Result<()> {
    let asked = |flag: &str| args.iter().any(|arg| arg == flag);
    let program = format!("{PEERS_TARGET}/release/kernels-bench-peers");
    let program = format!("{program}{}", std::env::consts::EXE_SUFFIX);
    let mut passed = with_program(args, &program);
    if passed != args {
        eprintln!("building the peers: the first time this takes many minutes");
        let build = ["build", "--release", "--locked", "--manifest-path", PEERS];
        cmd::run(cmd::cargo(&build).args(["--target-dir", PEERS_TARGET]))?;
    }
    // What `--help` or a mistake needs no program for is left to the bench.
    if asked("--record") && !asked("--check") && !asked("--list") {
        cmd::run(&mut cmd::cargo(&["build", "--release", "-p", "edge-runtime"]))?;
        let suffix = std::env::consts::EXE_SUFFIX;
        passed.push(format!("--program=target/release/edge-runtime{suffix}"));
        if asked("--cold-build") {
            passed.push(format!("--cold-build-s={:.1}", cold_build_s()?));
        }
    }
    let environment = vulkan::quiet_environment();
    cmd::run(cmd::tested("kernels-bench")?.args(passed).envs(environment))
}

/// Seconds that the program takes to build from nothing, with its crates downloaded.
fn cold_build_s() -> Result<f64> {
    if Path::new(COLD_TARGET).exists() {
        std::fs::remove_dir_all(COLD_TARGET)
            .with_context(|| format!("{COLD_TARGET} cannot be removed"))?;
    }
    cmd::run(&mut cmd::cargo(&["fetch", "--locked"]))?;
    let build = ["build", "--release", "-p", "edge-runtime", "--target-dir", COLD_TARGET];
    let start = Instant::now();
    cmd::run(&mut cmd::cargo(&build))?;
    Ok(start.elapsed().as_secs_f64())
}

/// The arguments, `--peers` with the program that it means.
fn with_program(args: &[String], program: &str) -> Vec<String> {
    let fill = |arg: &String| match arg.as_str() {
        "--peers" => format!("--peers={program}"),
        _ => arg.clone(),
    };
    args.iter().map(fill).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn peers_are_named_only_where_they_are_asked_for() {
        let args = ["matmul_nt", "--peers", "--json"].map(String::from);
        assert_eq!(with_program(&args, "a/b"), ["matmul_nt", "--peers=a/b", "--json"]);
        assert_eq!(with_program(&args[..1], "a/b"), args[..1]);
    }
}
