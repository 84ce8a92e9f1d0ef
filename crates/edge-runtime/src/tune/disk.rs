//! Whether the disk has room for what a run will write.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};

use super::{cache, checkpoints};
use crate::cli::args::Method;
use crate::cli::options::TuneOptions;
use crate::model::Model;
use crate::session::mebibytes;

/// Logs, report and what else does not grow with the model.
const OTHER_BYTES: u64 = 16 << 20;

/// Bytes that a run will have on the disk at most, beside a trunk cache, which counts its own.
fn needed(options: &TuneOptions, model: &Model) -> u64 {
    let groups = model.groups.iter().flat_map(|group| &group.values);
    let values: u64 = groups.map(|slice| 4 * slice.words()).sum();
    let between = options.eval_every > 0 || options.evals > 0;
    // The adapter, or with method full the model; the best one; and one that is being written.
    let results = values * if between { 3 } else { 2 };
    let own = match options.method {
        Method::Full => 0,
        _ => values,
    };
    let checkpoints = match options.checkpoint_every {
        // One where the run is interrupted.
        0 => 1,
        _ => options.keep_checkpoints as u64 + 1,
    };
    results + checkpoints * (checkpoints::bytes(model) + own) + OTHER_BYTES
}

/// Bytes of the files in a folder and in those below it, without trunk caches.
pub(super) fn held(dir: &Path) -> u64 {
    let files = std::fs::read_dir(dir).into_iter().flatten().flatten();
    let bytes = files.map(|file| match file.metadata() {
        Ok(about) if about.is_file() => about.len(),
        Ok(about) if about.is_dir() && file.file_name() != cache::DIR => held(&file.path()),
        _ => 0,
    });
    bytes.sum()
}

/// Makes sure that what a run will write fits where it goes; one that goes on in `run` has part of
/// it there.
///
/// # Errors
/// It does not.
pub(super) fn check(options: &TuneOptions, model: &Model, run: Option<&Path>) -> Result<()> {
    let runs = PathBuf::from("runs");
    let out = run.or(options.out.as_deref()).unwrap_or(&runs);
    let place = existing(out);
    let needed = needed(options, model).saturating_sub(run.map_or(0, held));
    let free = fs4::available_space(&place)
        .with_context(|| format!("cannot tell the free space of {}", place.display()))?;
    ensure!(
        needed <= free,
        "the run will write up to {} in {} and {} are free there: free space, give --out another \
         place, or lower --keep-checkpoints",
        mebibytes(needed),
        out.display(),
        mebibytes(free)
    );
    Ok(())
}

/// The path, or the nearest folder above it that there is.
fn existing(path: &Path) -> PathBuf {
    let parents = path.ancestors().filter(|parent| !parent.as_os_str().is_empty());
    parents.into_iter().find(|parent| parent.exists()).unwrap_or(Path::new(".")).to_owned()
}
