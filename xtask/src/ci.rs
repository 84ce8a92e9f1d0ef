//! `cargo xtask ci`: what continuous integration runs, in its order, so that a red build can be
//! reproduced with one line. The cheap checks come first.

use std::path::Path;
use std::time::Instant;

use anyhow::{Context, Result};

use crate::{cmd, dashboard, fuzz, shaders, test, vulkan};

type Step = fn() -> Result<()>;

const STEPS: &[(&str, Step)] = &[
    ("format", format),
    ("clippy", clippy),
    ("test", tests),
    ("fuzz", fuzz_targets),
    ("benches", benches),
    ("dashboard", page),
    ("doc", doc),
    ("shader index", shader_index),
    ("README commands", readme_commands),
];

/// Runs all steps, or the one that is named (`cargo xtask ci clippy`).
pub(crate) fn run(args: &[String]) -> Result<()> {
    let known = |name: &String| STEPS.iter().any(|(step, _)| step == name);
    if let Some(name) = args.iter().find(|name| !known(name)) {
        let names: Vec<&str> = STEPS.iter().map(|(name, _)| *name).collect();
        anyhow::bail!("there is no step `{name}`; the steps are: {}", names.join(", "));
    }
    let mut times = String::new();
    for (name, step) in STEPS {
        if args.is_empty() || args.iter().any(|wanted| wanted == name) {
            let start = Instant::now();
            step().with_context(|| format!("step `{name}` (`cargo xtask ci '{name}'`)"))?;
            times.push_str(&format!("  {name}: {:.0} s\n", start.elapsed().as_secs_f64()));
        }
    }
    println!("\nall steps passed\n{times}");
    Ok(())
}

fn format() -> Result<()> {
    cmd::run(&mut cmd::cargo(&["fmt", "--all", "--check"])).context("run `cargo fmt --all`")?;
    // A workspace of its own, which is not built here.
    let peers = ["--manifest-path", "kernels-bench/peers/Cargo.toml", "--check"];
    cmd::run(cmd::cargo(&["fmt"]).args(peers))
        .context("run `cargo fmt --manifest-path kernels-bench/peers/Cargo.toml`")
}

fn clippy() -> Result<()> {
    let args = ["clippy", "--release", "--workspace", "--all-targets", "--", "-D", "warnings"];
    cmd::run(&mut cmd::cargo(&args))
}

fn tests() -> Result<()> {
    test::run(&[])
}

/// A few seconds of each fuzz target, with the same mutations each time: the targets do not rot,
/// and kept inputs are mutated. Searching is another command's.
fn fuzz_targets() -> Result<()> {
    fuzz::run(&["--seconds".into(), "3".into()])
}

/// Runs the benches of one op once, so that they do not rot. All of them are model-sized, which
/// takes a software driver many minutes: `cargo bench -p kernels-bench -- --test` runs them.
fn benches() -> Result<()> {
    let mut environment = vulkan::prepare()?;
    if environment.iter().any(|(name, _)| *name == "VK_DRIVER_FILES") {
        // Mesa's software driver is taken only where it is named.
        environment.push(("EDGE_BENCH_DEVICE", "llvmpipe".into()));
    }
    // One package alone has other features of its dependencies, which would be built again.
    let args = ["bench", "--workspace", "--bench", "ops", "--", "--test", "rms_norm"];
    cmd::run(cmd::cargo(&args).envs(environment))
}

/// All records can be read and drawn.
fn page() -> Result<()> {
    dashboard::run(&[])
}

fn doc() -> Result<()> {
    let args = ["doc", "--release", "--workspace", "--no-deps", "--document-private-items"];
    cmd::run(cmd::cargo(&args).env("RUSTDOCFLAGS", "-D warnings"))?;
    // As those who embed the library read it: without private items, links to them lead nowhere.
    let args = ["doc", "--release", "-p", "edge-runtime", "--no-deps"];
    cmd::run(cmd::cargo(&args).env("RUSTDOCFLAGS", "-D warnings"))
}

fn shader_index() -> Result<()> {
    shaders::run(&["--check".into()])
}

/// The two commands of the README that this one does not run already: `devices`, and `tune`
/// without arguments apart from a bound on its length. The program is that of the tests; that it
/// compiles with its own features alone is seen when its documentation is made.
fn readme_commands() -> Result<()> {
    let program = || cmd::tested("edge-runtime");
    let environment = vulkan::quiet_environment();
    cmd::run(program()?.arg("devices").envs(environment.clone()))?;
    let out = "target/ci/run";
    if Path::new(out).exists() {
        std::fs::remove_dir_all(out).with_context(|| format!("{out} cannot be removed"))?;
    }
    std::fs::create_dir_all("target/ci").context("target/ci cannot be made")?;
    cmd::run(program()?.args(["tune", "--steps", "3", "--out", out]).envs(environment))?;
    for command in ["tune", "eval", "generate"] {
        cmd::run(program()?.args([command, "--help"]))?;
    }
    Ok(())
}
