//! `cargo xtask interop`: what other programs make of our files. Outside `test`, because it
//! installs PyTorch, transformers, peft and llama.cpp (some 3 GB) into `target/interop`.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};

use crate::{cmd, vulkan};

/// Where the packages are installed.
const FOLDER: &str = "target/interop";

/// The bundled model and a text in its language.
const DEMO: [&str; 2] = ["crates/edge-runtime/demo/model", "crates/edge-runtime/demo/valid.txt"];

/// A program in `tests/interop`.
struct Check {
    name: &'static str,
    script: &'static str,
    requirements: &'static str,
    /// How many of [`DEMO`] it is given where the caller names nothing.
    arguments: usize,
}

const CHECKS: [Check; 2] = [
    Check {
        name: "peft",
        script: "tests/interop/peft_check.py",
        requirements: "tests/interop/requirements-peft.txt",
        arguments: 2,
    },
    Check {
        name: "gguf",
        script: "tests/interop/gguf_check.py",
        requirements: "tests/interop/requirements.txt",
        arguments: 1,
    },
];

/// Runs all checks on the bundled model, or the one that is named, with the arguments behind it.
pub(crate) fn run(args: &[String]) -> Result<()> {
    let build = ["build", "--release", "-p", "edge-runtime", "--bins", "--example", "logits"];
    let named = args.first().map(String::as_str);
    if let Some(name) = named.filter(|name| CHECKS.iter().all(|check| check.name != *name)) {
        bail!("there is no check `{name}`: name peft or gguf, or nothing for both");
    }
    cmd::run(&mut cmd::cargo(&build))?;
    for check in CHECKS.iter().filter(|check| named.is_none_or(|name| name == check.name)) {
        let python = environment(check)?;
        let given = args.get(1..).unwrap_or_default();
        let mut command = Command::new(&python);
        command.arg(check.script);
        match given {
            [] => command.args(&DEMO[..check.arguments]),
            given => command.args(given),
        };
        cmd::run(command.envs(vulkan::quiet_environment()))?;
    }
    Ok(())
}

/// A virtual environment with what a check needs; its interpreter.
fn environment(check: &Check) -> Result<PathBuf> {
    let folder = Path::new(FOLDER).join(check.name);
    let bin = if cfg!(windows) { "Scripts/python.exe" } else { "bin/python" };
    let python = folder.join(bin);
    if !python.exists() {
        let interpreter = if cfg!(windows) { "python" } else { "python3" };
        let mut make = Command::new(interpreter);
        cmd::run(make.args(["-m", "venv"]).arg(&folder))
            .context("Python 3 with its module venv is needed: install python3-venv")?;
    }
    let install = ["-m", "pip", "install", "--quiet", "--disable-pip-version-check", "-r"];
    cmd::run(Command::new(&python).args(install).arg(check.requirements))
        .context("the packages cannot be had here: see requirements.txt beside the script")?;
    Ok(python)
}
