//! `cargo xtask bench`: the throughput table, by the binary of `kernels-bench`.

use anyhow::Result;

use crate::{cmd, vulkan};

/// A workspace of its own, so that nobody builds what it depends on without asking.
const PEERS: &str = "kernels-bench/peers/Cargo.toml";

/// Where it is built: shared with nothing, and removed with everything else.
const PEERS_TARGET: &str = "target/peers";

pub(crate) fn run(args: &[String]) -> Result<()> {
    let program = format!("{PEERS_TARGET}/release/kernels-bench-peers");
    let program = format!("{program}{}", std::env::consts::EXE_SUFFIX);
    let passed = with_program(args, &program);
    if passed != args {
        eprintln!("building the peers: the first time this takes many minutes");
        let build = ["build", "--release", "--locked", "--manifest-path", PEERS];
        cmd::run(cmd::cargo(&build).args(["--target-dir", PEERS_TARGET]))?;
    }
    let run = ["run", "--quiet", "--release", "-p", "kernels-bench", "--bin", "kernels-bench"];
    let environment = vulkan::quiet_environment();
    cmd::run(cmd::cargo(&run).arg("--").args(passed).envs(environment))
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
