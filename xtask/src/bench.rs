//! `cargo xtask bench`: the throughput table, by the binary of `kernels-bench`.

use anyhow::Result;

use crate::{cmd, vulkan};

pub(crate) fn run(args: &[String]) -> Result<()> {
    let run = ["run", "--quiet", "--release", "-p", "kernels-bench", "--bin", "kernels-bench"];
    let environment = vulkan::quiet_environment();
    cmd::run(cmd::cargo(&run).arg("--").args(args).envs(environment))
}
