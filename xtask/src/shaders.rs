//! `cargo xtask shaders`: the index shaders/README.md, and the assembled text of every variant.
//!
//! The work is done by a binary of `kernels-bench`, which knows the registry; this package stays
//! free of dependencies.

use anyhow::Result;

use crate::cmd;

pub(crate) fn run(args: &[String]) -> Result<()> {
    cmd::run(cmd::tested("shader_index")?.args(args))
}
