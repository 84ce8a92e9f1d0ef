//! Running other programs.

use std::path::PathBuf;
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};

/// `cargo ARGS`, the cargo that runs us.
pub(crate) fn cargo(args: &[&str]) -> Command {
    let mut command = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    command.args(args);
    command
}

/// `edge-runtime ARGS`, built first if need be, without cargo's own lines.
pub(crate) fn edge_runtime(args: &[&str]) -> Command {
    let mut command = cargo(&["run", "--quiet", "--release", "-p", "edge-runtime", "--"]);
    command.args(args);
    command
}

/// A program of the workspace, built first if need be by the alias `tested`: next to nothing is
/// compiled behind the tests.
pub(crate) fn tested(name: &str) -> Result<Command> {
    run(&mut cargo(&["tested", name]))?;
    // This program is below `debug/` or `release/` of the same folder.
    let me = std::env::current_exe().context("the path of xtask itself cannot be read")?;
    let target = me.ancestors().nth(2).context("xtask lies in no folder of cargo's")?;
    let program = format!("{name}{}", std::env::consts::EXE_SUFFIX);
    Ok(Command::new(target.join("release").join(program)))
}

/// The command as a person would type it.
fn typed(command: &Command) -> String {
    let program = PathBuf::from(command.get_program());
    let program = program.file_stem().unwrap_or(command.get_program()).to_string_lossy();
    let mut text = program.into_owned();
    for arg in command.get_args() {
        let arg = arg.to_string_lossy();
        text.push(' ');
        if arg.contains(char::is_whitespace) || arg.is_empty() {
            text.push_str(&format!("'{arg}'"));
        } else {
            text.push_str(&arg);
        }
    }
    text
}

/// Says what it runs, runs it with our own output and no input, and fails when it fails.
pub(crate) fn run(command: &mut Command) -> Result<()> {
    let text = typed(command);
    eprintln!("$ {text}");
    let status = command
        .stdin(Stdio::null())
        .status()
        .with_context(|| format!("`{text}` cannot be started"))?;
    if !status.success() {
        bail!("`{text}` failed ({status})");
    }
    Ok(())
}

/// Whether it can be started and succeeds; its output is thrown away.
pub(crate) fn succeeds(command: &mut Command) -> bool {
    let quiet = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    quiet.status().is_ok_and(|status| status.success())
}

/// What it prints on stdout, or `None` when it cannot be started or fails.
pub(crate) fn output(command: &mut Command) -> Option<String> {
    let out = command.stdin(Stdio::null()).stderr(Stdio::null()).output().ok()?;
    out.status.success().then(|| String::from_utf8_lossy(&out.stdout).into_owned())
}

/// The full path of a program in `PATH`.
pub(crate) fn find_program(name: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH")?;
    let name = format!("{name}{}", std::env::consts::EXE_SUFFIX);
    std::env::split_paths(&path).map(|dir| dir.join(&name)).find(|full| full.is_file())
}

/// Fails on arguments that a command without any does not take.
pub(crate) fn no_arguments(command: &str, args: &[String]) -> Result<()> {
    match args.first() {
        None => Ok(()),
        Some(arg) => bail!("`cargo xtask {command}` takes no arguments, so remove `{arg}`"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn commands_read_as_typed() {
        let mut command = Command::new("/usr/bin/git");
        command.args(["log", "two words"]);
        assert_eq!(typed(&command), "git log 'two words'");
    }

    #[test]
    fn a_failure_names_the_command() {
        let error = run(&mut Command::new("no-such-program-here")).expect_err("cannot start");
        assert!(error.to_string().contains("no-such-program-here"), "{error}");
        let error = run(cargo(&["no-such-subcommand"]).stderr(Stdio::null()));
        let error = error.expect_err("cargo fails");
        assert!(error.to_string().contains("cargo no-such-subcommand"), "{error}");
    }
}
