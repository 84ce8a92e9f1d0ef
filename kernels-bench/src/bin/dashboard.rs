//! `cargo xtask dashboard`: the page of all records, two of them compared, and one in the forms
//! that other programs read. `cargo xtask dashboard --help`
//!
//! Started in the root of the workspace.
#![allow(clippy::print_stdout, reason = "a command line tool talks on stdout")]

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};

use anyhow::{Context, Result, bail};
use clap::{Parser, Subcommand, ValueEnum};
use kernels_bench::history::History;
use kernels_bench::measure::Better;
use kernels_bench::{dashboard, judge, record, report};

/// Writes one page that shows all records: what moved, each row over commits, ratios, rooflines,
/// formats and shapes, and any two records beside each other.
#[derive(Parser)]
#[command(name = "cargo xtask dashboard", disable_version_flag = true)]
struct Args {
    /// Folder with the records of each device.
    #[arg(long, value_name = "DIR", default_value = record::FOLDER, global = true)]
    records: PathBuf,
    /// Where the page is written.
    #[arg(long, value_name = "FILE", default_value = "target/dashboard/index.html")]
    out: PathBuf,
    /// The project's page on the web, for links to commits [else git's `origin`].
    #[arg(long, value_name = "URL")]
    repository: Option<String>,
    #[command(subcommand)]
    command: Option<Task>,
}

#[derive(Subcommand)]
enum Task {
    /// Judges each row of record B by the fence of its history up to A; exits with 1 where one is
    /// worse. A record is a file, or the only one whose name contains the text.
    Compare {
        /// The record before.
        before: String,
        /// The record now.
        now: String,
        /// For a terminal, or for a comment under a pull request.
        #[arg(long, value_enum, default_value_t = Form::Text)]
        format: Form,
        /// Only rows that production takes count.
        #[arg(long)]
        production: bool,
    },
    /// Prints a record in the form of another program.
    Export {
        /// The record.
        record: String,
        /// Which form.
        #[arg(long, value_enum)]
        format: Foreign,
    },
}

#[derive(Clone, Copy, ValueEnum)]
enum Form {
    Text,
    Markdown,
}

#[derive(Clone, Copy, ValueEnum)]
enum Foreign {
    /// github-action-benchmark's `customSmallerIsBetter`: times, bytes, losses.
    Smaller,
    /// Its `customBiggerIsBetter`: rates and ratios.
    Bigger,
    /// Bencher Metric Format.
    Bencher,
}

/// The one record that a person means.
fn find(history: &History, text: &str) -> Result<usize> {
    let stem = Path::new(text).file_stem().map(|stem| stem.to_string_lossy().into_owned());
    let stem = stem.filter(|_| text.ends_with(".csv")).unwrap_or_else(|| text.to_string());
    let folder = Path::new(text).parent().and_then(Path::file_name);
    let folder = folder.map(|name| name.to_string_lossy().into_owned());
    let mut found = Vec::new();
    for (index, entry) in history.entries.iter().enumerate() {
        let here = folder.as_ref().is_none_or(|folder| *folder == entry.device);
        if here && entry.name.contains(&stem) {
            found.push(index);
        }
    }
    match found[..] {
        [one] => Ok(one),
        [] => bail!("no record is named like `{text}`: `ls {}/*`", record::FOLDER),
        _ => {
            let names: Vec<&str> =
                found.iter().map(|&index| history.entries[index].name.as_str()).collect();
            bail!("`{text}` is part of several records, name one: {}", names.join(", "))
        }
    }
}

fn page(args: &Args, history: &History) -> Result<()> {
    let origin = || {
        let output = Command::new("git").args(["remote", "get-url", "origin"]).output().ok()?;
        dashboard::web(&String::from_utf8_lossy(&output.stdout))
    };
    let repository = match &args.repository {
        Some(url) => {
            let web = dashboard::web(url);
            Some(web.with_context(|| format!("`{url}` is no https://HOST/OWNER/NAME"))?)
        }
        None => origin(),
    };
    let text = dashboard::page(history, repository.as_deref());
    let folder = args.out.parent().filter(|folder| !folder.as_os_str().is_empty());
    if let Some(folder) = folder {
        fs::create_dir_all(folder)
            .with_context(|| format!("{} cannot be made", folder.display()))?;
    }
    fs::write(&args.out, text)
        .with_context(|| format!("{} cannot be written", args.out.display()))?;
    println!("{} records are drawn in {}", history.entries.len(), args.out.display());
    Ok(())
}

/// The comparison; whether something that counts became worse.
fn compare(history: &History, names: [&str; 2], format: Form, production: bool) -> Result<bool> {
    let [before, now] = [find(history, names[0])?, find(history, names[1])?];
    let both = [&history.entries[before], &history.entries[now]];
    if both[0].device != both[1].device {
        bail!("{} and {} are of different devices", both[0].device, both[1].device);
    }
    let mut judgement = judge::judge(history, before, now);
    if production {
        judgement.changes.retain(|change| change.production);
    }
    match format {
        Form::Text => print!("{}", report::text(&judgement, both)),
        Form::Markdown => print!("{}", report::markdown(&judgement, both)),
    }
    Ok(!judgement.regressions().is_empty())
}

fn run(args: &Args) -> Result<bool> {
    let history = History::read(&args.records)?;
    match &args.command {
        None => page(args, &history)?,
        Some(Task::Compare { before, now, format, production }) => {
            return compare(&history, [before, now], *format, *production);
        }
        Some(Task::Export { record, format }) => {
            let record = find(&history, record)?;
            let value = match format {
                Foreign::Smaller => report::github(&history, record, Better::Lower),
                Foreign::Bigger => report::github(&history, record, Better::Higher),
                Foreign::Bencher => report::bencher(&history, record),
            };
            println!("{value:#}");
        }
    }
    Ok(false)
}

fn main() -> ExitCode {
    match run(&Args::parse()) {
        Ok(false) => ExitCode::SUCCESS,
        Ok(true) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::from(2)
        }
    }
}
