//! `cargo xtask test`: the whole suite, with the GPU tests required. With `--swiftshader`, the
//! comparison of shaders and references alone, on a second software driver: its subgroups have 4
//! lanes, it has no f16, 256 invocations a workgroup and 10 storage buffers, so that it finds what
//! the first one hides.

use anyhow::Result;

use crate::{browser, cmd, vulkan};

/// Arguments before `--` go to `cargo test`, those after it to the test binaries.
pub(crate) fn run(args: &[String]) -> Result<()> {
    let second = args.first().is_some_and(|arg| arg == "--swiftshader");
    let of_ops: Vec<String> =
        ["--test", "it", "--", "ops::", "formats::"].map(String::from).to_vec();
    let args = if second { [of_ops.as_slice(), &args[1..]].concat() } else { args.to_vec() };
    let environment = if second { vulkan::swiftshader()? } else { vulkan::prepare()? };
    let pages = |arg: &&str| *arg == "--workspace" || arg.ends_with("edge-tests");
    if !second && cargo_arguments(&args).iter().any(pages) {
        browser::prepare();
    }
    let mut command = cmd::cargo(&["test", "--release", "--no-fail-fast"]);
    command.args(cargo_arguments(&args));
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
