//! `cargo xtask dashboard`: the page of all records, by a binary of `kernels-bench`.

use anyhow::Result;

use crate::cmd;

pub(crate) fn run(args: &[String]) -> Result<()> {
    let run = ["run", "--quiet", "--release", "-p", "kernels-bench", "--bin", "dashboard", "--"];
    cmd::run(cmd::cargo(&run).args(args))
}
