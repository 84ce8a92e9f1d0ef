//! `cargo xtask dashboard`: the page of all records, by a binary of `kernels-bench`.

use anyhow::Result;

use crate::cmd;

pub(crate) fn run(args: &[String]) -> Result<()> {
    // Without `-p`: dependencies with the features of the whole workspace are there from its build.
    let run = ["run", "--quiet", "--release", "--bin", "dashboard", "--"];
    cmd::run(cmd::cargo(&run).args(args))
}
