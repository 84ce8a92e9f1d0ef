//! `cargo xtask test`: the whole suite, with the GPU tests required.

use anyhow::Result;

use crate::{cmd, vulkan};

/// Arguments before `--` go to `cargo test`, those after it to the test binaries.
pub(crate) fn run(args: &[String]) -> Result<()> {
    let environment = vulkan::prepare()?;
    let mut command = cmd::cargo(&["test", "--release", "--no-fail-fast"]);
    command.args(cargo_arguments(args));
    command.envs(environment);
    // In this command a machine without an adapter is a failure, whatever the caller's shell says.
    command.env_remove("EDGE_ALLOW_NO_GPU");
    cmd::run(&mut command)
}

/// `args`, with `--workspace` in front unless they choose packages themselves.
fn cargo_arguments(args: &[String]) -> Vec<&str> {
    let ours = args.iter().map(String::as_str).take_while(|arg| *arg != "--");
    let mut chosen = ours.filter(|arg| {
        arg.starts_with("-p") || arg.starts_with("--package") || arg.starts_with("--exclude")
    });
    let only_excludes = chosen.all(|arg| arg.starts_with("--exclude"));
    let workspace = only_excludes.then_some("--workspace");
    workspace.into_iter().chain(args.iter().map(String::as_str)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn arguments(text: &str) -> String {
        let args: Vec<String> = text.split_whitespace().map(String::from).collect();
        cargo_arguments(&args).join(" ")
    }

    #[test]
    fn packages_are_chosen_by_the_caller_or_are_all() {
        assert_eq!(arguments(""), "--workspace");
        assert_eq!(arguments("-p edge-kernels"), "-p edge-kernels");
        assert_eq!(arguments("--exclude edge-tests"), "--workspace --exclude edge-tests");
        assert_eq!(arguments("-- -p norm"), "--workspace -- -p norm");
    }
}
