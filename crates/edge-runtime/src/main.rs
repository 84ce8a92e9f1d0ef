//! The command line; see `edge_runtime::cli`.

use std::process::ExitCode;

fn main() -> ExitCode {
    edge_runtime::cli::main()
}
