//! `tune --resume`: which run goes on, and whether the other flags agree with it.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use serde_json::{Map, Value};

use super::Usage;
use super::args::TuneFlags;
use super::options::TuneOptions;
use crate::run_dir::{CONFIG, RunState};
use crate::tune::resume::{Resume, run_of};

/// Options that may differ from those that the run began with: where things are, which is checked
/// by what is there, and what does not change the run.
const FREE: [&str; 9] = [
    "model",
    "data",
    "valid",
    "out",
    "device",
    "checkpoint-every",
    "keep-checkpoints",
    "pause-below-battery",
    "pause-above-temperature",
];

/// What a run begins with.
#[derive(Debug)]
pub(super) enum Begin {
    /// A new run, with the flags that were given.
    New(Box<TuneFlags>),
    /// One that goes on, with its options.
    GoOn(Box<(TuneOptions, Resume)>),
    /// One that is finished, in this directory.
    Finished(PathBuf),
}

/// What `--resume WHERE` means, with the flags that were given beside it; `out`: that of the
/// command line, without a file's.
///
/// # Errors
/// There is no such run, or a flag differs from what the run began with.
pub(super) fn begin(whence: &str, flags: TuneFlags, out: Option<&Path>) -> Result<Begin> {
    let path = match whence {
        "auto" => match automatic(flags.out.as_deref()) {
            Some(path) => path,
            None => return Ok(Begin::New(Box::new(flags))),
        },
        path => PathBuf::from(path),
    };
    let Some(resume) = Resume::find(&path)? else {
        return Ok(Begin::Finished(run_of(&path).to_owned()));
    };
    let real = |path: &Path| path.canonicalize().unwrap_or_else(|_| path.to_owned());
    if let Some(out) = out.filter(|out| real(out) != real(resume.run())) {
        bail!(Usage(format!(
            "--out {} is not the run that --resume names, which goes on where it is: leave it out",
            out.display()
        )));
    }
    let options = options(resume.run(), flags)?;
    Ok(Begin::GoOn(Box::new((options, resume))))
}

/// The run in `out`; else the newest one below `runs/`, unless it is finished or goes on.
fn automatic(out: Option<&Path>) -> Option<PathBuf> {
    if let Some(out) = out {
        return out.join(CONFIG).is_file().then(|| out.to_owned());
    }
    let runs = std::fs::read_dir("runs").ok()?.flatten().map(|file| file.path());
    // Names begin with the time.
    let newest = runs.filter(|path| path.join(CONFIG).is_file()).max()?;
    match RunState::of(&newest).ok()? {
        RunState::Finished | RunState::Running => None,
        RunState::Interrupted | RunState::Failed(_) | RunState::Died => Some(newest),
    }
}

/// The options of the run in a directory, with those of the flags that may differ.
fn options(run: &Path, flags: TuneFlags) -> Result<TuneOptions> {
    let recorded = TuneFlags::load(&run.join(CONFIG))?;
    let mut merged = TuneFlags { out: None, ..flags }.or(recorded.clone());
    merged.choose_by_files()?;
    let (began, options) = (recorded.resolve()?, merged.resolve()?);
    let (old, new) = (keys(&began)?, keys(&options)?);
    for (key, value) in &new {
        let before = &old[key];
        if before != value && !FREE.contains(&key.as_str()) {
            bail!(Usage(format!(
                "--{key} is {value} and {} began with {before}: leave it out, or start a new run",
                run.display()
            )));
        }
    }
    Ok(options)
}

fn keys(options: &TuneOptions) -> Result<Map<String, Value>> {
    match serde_json::to_value(options).context("laying out the options")? {
        Value::Object(keys) => Ok(keys),
        _ => bail!("options are no object: this is a mistake in the program"),
    }
}
