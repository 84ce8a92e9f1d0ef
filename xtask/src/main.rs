//! `cargo xtask COMMAND`: the project's commands. One file a command; this one only chooses.
#![allow(clippy::print_stdout, reason = "a command line tool talks on stdout")]

mod bench;
mod browser;
mod ci;
mod cmd;
mod dashboard;
mod dist;
mod fuzz;
mod interop;
mod models;
mod quickstart;
mod sanitize;
mod shaders;
mod test;
mod tidy;
mod vulkan;

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Context, Result};

const HELP: &str = "\
cargo xtask COMMAND

  quickstart              builds the program, says which device it found, adapts the demo model
  test [CARGO] [-- TEST]  the whole suite with the GPU tests required; installs Mesa's software
                          Vulkan driver where there is none and it may; CARGO: arguments of
                          `cargo test` (`-p NAME` instead of all), TEST: of the test binaries
  test --swiftshader      shaders against references on Chromium's software driver instead
  ci                      what continuous integration runs, in its order
  interop [peft|gguf [MODEL...]]
                          what transformers, peft and llama.cpp make of our files, by default of
                          the demo model's; installs them into target/interop (3 GB)
  fuzz [TARGET...] [--seconds N] [--seed S] [--guided]
                          runs damaged files through what reads them, 60 s a target; --guided:
                          by coverage, with libFuzzer (needs a C++ compiler)
  sanitize [miri|thread]  Miri over the pure crates, the thread sanitizer over streaming; installs a
                          nightly compiler where there is none
  tidy                    the checks of the source text alone (they are also part of `test`)
  shaders [--check] [--dump]
                          writes shaders/README.md; --check: only compares it; --dump: also
                          writes every assembled variant to target/shaders/
  bench [WORD...] [--quick|--full] [--record] [--check] [--against[=FILE]] [--targets] [...]
                          checks and times every registered kernel whose name contains all words;
                          `bench --help` has the rest
  dashboard [compare A B|export RECORD] [...]
                          writes target/dashboard/index.html, a page of all records; compares two;
                          prints one for other programs; `dashboard --help` has the rest
  dist                    the released program with its licences, as an archive in target/dist
  demo-model              makes the bundled demo model and its texts again
  synth-model --config FILE --out DIR [...]
                          writes a checkpoint of random weights with the shapes of a config.json
";

type Run = fn(&[String]) -> Result<()>;

/// The commands, for `main` and for the check of the README.
const COMMANDS: &[(&str, Run)] = &[
    ("quickstart", quickstart::run),
    ("test", test::run),
    ("ci", ci::run),
    ("interop", interop::run),
    ("fuzz", fuzz::run),
    ("sanitize", sanitize::run),
    ("tidy", tidy::run),
    ("shaders", shaders::run),
    ("bench", bench::run),
    ("dashboard", dashboard::run),
    ("dist", dist::run),
    ("demo-model", models::demo_model),
    ("synth-model", models::synth_model),
];

/// The folder of the workspace: cargo names this package's at run time; the build-time path is
/// for a binary that is started directly.
fn root() -> PathBuf {
    let manifest = std::env::var_os("CARGO_MANIFEST_DIR")
        .map_or_else(|| PathBuf::from(env!("CARGO_MANIFEST_DIR")), PathBuf::from);
    manifest.join("..")
}

fn chosen(name: &str, rest: &[String]) -> Result<()> {
    let Some((_, command)) = COMMANDS.iter().find(|(known, _)| *known == name) else {
        eprintln!("error: there is no command `{name}`\n\n{HELP}");
        std::process::exit(2);
    };
    let root = root();
    std::env::set_current_dir(&root)
        .with_context(|| format!("the workspace {} cannot be entered", root.display()))?;
    command(rest)
}

fn main() -> ExitCode {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let Some((name, rest)) = args.split_first() else {
        eprint!("{HELP}");
        return ExitCode::from(2);
    };
    if matches!(name.as_str(), "help" | "-h" | "--help") {
        print!("{HELP}");
        return ExitCode::SUCCESS;
    }
    match chosen(name, rest) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn help_names_every_command() {
        for (name, _) in COMMANDS {
            assert!(HELP.contains(&format!("\n  {name}")), "`{name}` is missing in HELP");
        }
    }
}
