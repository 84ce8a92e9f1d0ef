//! `cargo xtask dashboard`: the page of all records, by a binary of `kernels-bench`.

use anyhow::Result;

use crate::cmd;

pub(crate) fn run(args: &[String]) -> Result<()> {
    cmd::run(cmd::tested("dashboard")?.args(args))
}
