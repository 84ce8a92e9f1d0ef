//! The throughput table: every bench case of every op, with every variant that the device can
//! run. `cargo xtask bench [FILTER] [--json] [--device NAME] [--samples N]`
#![allow(clippy::print_stdout, reason = "a command line tool talks on stdout")]

use std::collections::HashSet;
use std::process::ExitCode;

use anyhow::{Context, Result, bail};
use edge_gpu::Device;
use kernels_bench::Subject;
use kernels_bench::row::Row;
use kernels_bench::runner::{Prepared, default_selector, open_each};

struct Arguments {
    filter: String,
    json: bool,
    selector: String,
    samples: usize,
}

fn arguments() -> Result<Arguments> {
    let mut found =
        Arguments { filter: String::new(), json: false, selector: default_selector(), samples: 11 };
    let mut args = std::env::args().skip(1);
    while let Some(arg) = args.next() {
        match arg.as_str() {
            "--json" => found.json = true,
            "--device" => {
                found.selector =
                    args.next().context("`--device` wants auto, cpu, index or name")?;
            }
            "--samples" => {
                let count = args.next().and_then(|text| text.parse().ok());
                found.samples =
                    count.filter(|count| *count > 0).context("`--samples` wants 1 or more")?;
            }
            flag if flag.starts_with('-') => {
                bail!(
                    "there is no flag `{flag}`: FILTER, --json, --device NAME and --samples N are"
                )
            }
            filter => found.filter = filter.into(),
        }
    }
    Ok(found)
}

/// Rows of a subject: one for each variant that some set of features leads to.
fn rows(subject: &Subject, devices: &[Device], samples: usize) -> Result<Vec<Row>> {
    let mut seen = HashSet::new();
    let mut rows = Vec::new();
    let variants = subject.op.variants(subject.call()).len();
    // With one variant there is nothing that another set of features could change.
    for device in if variants > 1 { devices } else { &devices[..1] } {
        let prepared = Prepared::new(subject, device)?;
        if !seen.insert(prepared.variant.clone()) {
            continue;
        }
        let times = (0..samples).map(|_| prepared.sample()).collect::<Result<Vec<f64>>>()?;
        let name = device.info().name.clone();
        rows.push(Row::new(subject, prepared.variant.clone(), name, &times));
    }
    Ok(rows)
}

fn run() -> Result<()> {
    let arguments = arguments()?;
    let subjects = Subject::all(&arguments.filter);
    if subjects.is_empty() {
        bail!("no bench case's op/format/shape contains `{}`", arguments.filter);
    }
    let devices = open_each(&arguments.selector)?;
    if !arguments.json {
        let clock = if devices[0].info().timestamps { "device timestamps" } else { "wall time" };
        println!("{}, {clock}, {} samples\n", devices[0].info().name, arguments.samples);
        println!("{}", Row::title());
    }
    let mut wrong = 0;
    for subject in &subjects {
        match rows(subject, &devices, arguments.samples) {
            Ok(rows) => {
                for row in rows {
                    println!("{}", if arguments.json { row.json() } else { row.line() });
                }
            }
            Err(error) => {
                // The other rows are worth having all the same; the exit code tells.
                eprintln!("error: {error:#}");
                wrong += 1;
            }
        }
    }
    if wrong > 0 {
        bail!("{wrong} of {} bench cases failed", subjects.len());
    }
    Ok(())
}

fn main() -> ExitCode {
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}
