//! The command line: flags, the file that can stand for them, reports, progress.

pub mod args;
pub mod options;
pub mod report;

/// Exit status of a command that failed; clap itself exits 2 for wrong usage.
pub const EXIT_FAILED: i32 = 1;
