//! The command line: flags, the file that can stand for them, commands, reports, progress.
//!
//! What is meant for a person goes to stderr, what is meant for a program (and generated text) to
//! stdout.

pub mod args;
pub mod compare;
pub mod compress;
mod data;
mod devices;
mod eval;
pub mod export;
mod generate;
mod inspect;
pub mod listen;
pub mod options;
mod parts;
mod plan;
pub mod report;
mod resume;
pub mod schema;
mod tune;
mod values;
mod watch;

use std::process::ExitCode;

use clap::Parser;
use edge_gpu::{Device, Options};
use tracing_subscriber::EnvFilter;

use self::args::{Cli, Command};
use crate::interrupt::{EXIT_INTERRUPTED, Interrupted};
use crate::session;

/// Opens the device that a command runs on, with the kernels that were chosen for it.
fn open_device(selector: &str, options: &Options) -> Result<Device, edge_gpu::Error> {
    let (device, notice) = session::open_device(selector, options)?;
    if let Some(notice) = notice {
        eprintln!("{notice}");
    }
    Ok(device)
}

/// Exit status of a command that failed.
pub const EXIT_FAILED: i32 = 1;

/// Exit status of wrong usage, as clap has it.
pub const EXIT_USAGE: i32 = 2;

/// Flags that do not go with what they are given for, which clap cannot know.
#[derive(Debug)]
pub struct Usage(pub String);

impl std::fmt::Display for Usage {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for Usage {}

/// Exit status where a run does not fit its memory budget.
pub const EXIT_MISFIT: i32 = 3;

/// A run that does not fit its memory budget, whatever the schedule.
#[derive(Debug)]
pub struct Misfit(pub String);

impl std::fmt::Display for Misfit {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for Misfit {}

/// Characters of a sentence at most: names come from files, and may be as long as these.
const SENTENCE: usize = 1000;

/// An error for a terminal: on one line, without what moves the cursor or changes colours, however
/// a file names its tensors.
fn sentence(error: &str) -> String {
    let mut shown = String::new();
    for (count, c) in error.chars().enumerate() {
        match c {
            _ if count == SENTENCE => return shown + "\u{2026}",
            '\n' | '\r' | '\t' => shown.push(' '),
            // Those that reverse the direction of writing, too.
            '\u{200E}'..='\u{200F}' | '\u{202A}'..='\u{202E}' | '\u{2066}'..='\u{2069}' => {
                shown.extend(c.escape_unicode());
            }
            c if c.is_control() => shown.extend(c.escape_unicode()),
            c => shown.push(c),
        }
    }
    shown
}

/// Runs the program: parses the arguments, runs the command, prints what went wrong.
pub fn main() -> ExitCode {
    let filter = EnvFilter::try_from_env("EDGE_LOG").unwrap_or_else(|_| EnvFilter::new("error"));
    tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).init();
    let result = match Cli::parse().command {
        Command::Tune(args) => tune::run(*args),
        Command::Plan(args) => plan::run(*args),
        Command::Compare(args) => compare::run(*args),
        Command::Eval(args) => eval::run(&args).map(|()| 0),
        Command::Export(args) => export::run(&args).map(|()| 0),
        Command::Generate(args) => generate::run(&args).map(|()| 0),
        Command::Compress(args) => compress::run(&args).map(|()| 0),
        Command::Data(args) => data::run(&args).map(|()| 0),
        Command::Devices(args) => devices::run(&args).map(|()| 0),
        Command::Inspect(args) => inspect::run(&args).map(|()| 0),
        Command::Watch(args) => watch::run(&args).map(|()| 0),
        Command::Report(args) => watch::rebuild(&args).map(|()| 0),
        Command::Schema => schema::run().map(|()| 0),
        Command::Completions(args) => schema::completions(&args).map(|()| 0),
        Command::Man(args) => schema::man(&args).map(|()| 0),
    };
    match result {
        Ok(code) => ExitCode::from(code),
        Err(error) => {
            eprintln!("error: {}", sentence(&format!("{error:#}")));
            let status = if error.is::<Interrupted>() {
                EXIT_INTERRUPTED
            } else if error.is::<Usage>() {
                EXIT_USAGE
            } else if error.is::<Misfit>() {
                EXIT_MISFIT
            } else {
                EXIT_FAILED
            };
            ExitCode::from(status as u8)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn errors_are_one_line_whatever_a_file_says() {
        assert_eq!(sentence("tensor a\nb\u{1b}[31m\u{202e}"), "tensor a b\\u{1b}[31m\\u{202e}");
        let long = sentence(&"\u{e9}".repeat(SENTENCE + 1));
        assert_eq!(long.chars().count(), SENTENCE + 1);
        assert!(long.ends_with('\u{2026}'));
        assert_eq!(sentence("caf\u{e9}"), "caf\u{e9}");
    }
}
