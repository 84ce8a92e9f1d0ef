//! `cargo xtask fuzz`: runs the fuzz targets of `tests/fuzz` for a time each. Without `--guided`
//! inputs are mutated blindly, which any toolchain does; with it, libFuzzer goes where they reach
//! new code. Both keep what they find below `target/fuzz/findings/`.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Instant;

use anyhow::{Context, Result, bail, ensure};

use crate::cmd;

/// Where the guided build is: its flags would make cargo build everything else again.
const TARGET_DIR: &str = "target/fuzz";

/// Coverage for libFuzzer, as cargo-fuzz asks rustc for it; all of it is stable.
const COVERAGE: &str = "-Cpasses=sancov-module -Cllvm-args=-sanitizer-coverage-level=4 \
                        -Cllvm-args=-sanitizer-coverage-inline-8bit-counters \
                        -Cllvm-args=-sanitizer-coverage-pc-table \
                        -Cllvm-args=-sanitizer-coverage-trace-compares";

/// Longest input, bytes, as in `tests/fuzz/src/lib.rs`; time of an input, seconds, six times that
/// there, since coverage and assertions cost as much and more; what takes that long is a finding.
const LIMITS: [&str; 3] = ["-max_len=262144", "-timeout=60", "-report_slow_units=60"];

struct Args {
    targets: Vec<String>,
    seconds: u64,
    seed: u64,
    guided: bool,
}

impl Args {
    fn parse(args: &[String]) -> Result<Self> {
        let mut parsed = Self { targets: Vec::new(), seconds: 60, seed: 1, guided: false };
        let mut args = args.iter();
        while let Some(arg) = args.next() {
            let mut number = || -> Result<u64> {
                let value = args.next().with_context(|| format!("give {arg} a number"))?;
                value.parse().with_context(|| format!("{arg} is {value}: give a whole number"))
            };
            match arg.as_str() {
                "--seconds" => parsed.seconds = number()?,
                "--seed" => parsed.seed = number()?,
                "--guided" => parsed.guided = true,
                flag if flag.starts_with('-') => {
                    bail!("`cargo xtask fuzz` has no {flag}: use --seconds, --seed and --guided")
                }
                target => parsed.targets.push(target.to_owned()),
            }
        }
        Ok(parsed)
    }
}

/// Runs the targets that are named, or all.
pub(crate) fn run(args: &[String]) -> Result<()> {
    let args = Args::parse(args)?;
    if args.guided { guided(&args) } else { blind(&args) }
}

fn blind(args: &Args) -> Result<()> {
    let mut command = cmd::tested("fuzz")?;
    command.args(&args.targets).args([
        "--seconds",
        &args.seconds.to_string(),
        "--seed",
        &args.seed.to_string(),
    ]);
    cmd::run(&mut command)
}

fn guided(args: &Args) -> Result<()> {
    let host = host()?;
    // With --target, build scripts have no coverage, which they could not link.
    let mut build = cmd::cargo(&["build", "--release", "-p", "edge-fuzz", "--features", "guided"]);
    build.args(["--bin", "guided", "--target-dir", TARGET_DIR, "--target", &host]);
    for check in ["overflow-checks", "debug-assertions"] {
        build.args(["--config", &format!("profile.release.{check}=true")]);
    }
    cmd::run(build.env("RUSTFLAGS", COVERAGE))?;
    let program = PathBuf::from(TARGET_DIR).join(&host).join("release").join("guided");
    let mut found = 0;
    for target in seeds(&args.targets)? {
        found += one(&program, &target, args)?;
    }
    ensure!(found == 0, "{found} findings are in {TARGET_DIR}/findings: mend what they break");
    Ok(())
}

/// The target that this machine's compiler builds for.
pub(crate) fn host() -> Result<String> {
    let version = cmd::output(std::process::Command::new("rustc").arg("-vV"));
    let version = version.context("`rustc -vV` does not run: install Rust by rustup.rs")?;
    let host = version.lines().find_map(|line| line.strip_prefix("host: "));
    host.map(String::from).context("`rustc -vV` names no host")
}

/// Writes a valid file for each of these targets, or of all, as the first of its corpus; the names
/// of the targets.
fn seeds(targets: &[String]) -> Result<Vec<String>> {
    let mut command = cmd::tested("fuzz")?;
    command.args(["--seeds", "--out"]).arg(format!("{TARGET_DIR}/corpus"));
    let list = cmd::output(command.args(targets));
    let list = list.context("`target/release/fuzz --seeds` fails: run it")?;
    Ok(list.lines().map(String::from).collect())
}

/// Searches on behind a finding this often.
const STARTS: u32 = 10;

/// Runs one target; how many findings there are.
fn one(program: &Path, target: &str, args: &Args) -> Result<usize> {
    let corpus = PathBuf::from(TARGET_DIR).join("corpus").join(target);
    let findings = PathBuf::from(TARGET_DIR).join("findings").join(target);
    for dir in [&corpus, &findings] {
        fs::create_dir_all(dir).with_context(|| format!("{} cannot be made", dir.display()))?;
    }
    let count = || -> Result<usize> {
        let files = fs::read_dir(&findings);
        Ok(files.with_context(|| format!("{} cannot be read", findings.display()))?.count())
    };
    let started = Instant::now();
    for start in 0..STARTS {
        let left = args.seconds.saturating_sub(started.elapsed().as_secs());
        if left == 0 {
            break;
        }
        let mut command = std::process::Command::new(program);
        command.env("EDGE_FUZZ_TARGET", target).args(LIMITS);
        let seed = args.seed + u64::from(start);
        command.arg(format!("-max_total_time={left}")).arg(format!("-seed={seed}"));
        // Memory is bounded by the targets' own allocator, which says by how much.
        command.args(["-rss_limit_mb=4096", "-malloc_limit_mb=4096", "-print_final_stats=1"]);
        command.arg(format!("-artifact_prefix={}/", findings.display())).arg(&corpus);
        for kind in ["corpus", "regressions"] {
            let kept = PathBuf::from("tests/fuzz").join(kind).join(target);
            if kept.is_dir() {
                command.arg(kept);
            }
        }
        let before = count()?;
        // It ends at the first input that does harm.
        if let Err(error) = cmd::run(&mut command) {
            ensure!(count()? > before, "{target} ended and left no input: {error:#}");
            eprintln!("{target}: {error:#}");
        }
    }
    count()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn arguments_are_read() {
        let parse = |text: &str| {
            let words: Vec<String> = text.split_whitespace().map(String::from).collect();
            Args::parse(&words)
        };
        let args = parse("gguf --seconds 5 --guided exits --seed 7").expect("arguments");
        assert_eq!((args.targets.join(" ").as_str(), args.seconds), ("gguf exits", 5));
        assert_eq!((args.seed, args.guided), (7, true));
        assert!(parse("").is_ok_and(|args| args.targets.is_empty() && !args.guided));
        for wrong in ["--seconds", "--seconds x", "--fast"] {
            assert!(parse(wrong).is_err(), "{wrong}");
        }
    }
}
