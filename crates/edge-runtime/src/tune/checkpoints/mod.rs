//! Checkpoints of a run, `checkpoints/step-N/`: all that the rest of the run depends on, so that a
//! run which was killed goes on and ends bit for bit like one that was not.
//!
//! A checkpoint is a folder that is written beside its place, flushed and renamed. Behind its other
//! files comes `checksums.txt`, a line `CRC-32 BYTES NAME` for each: a folder whose files are not
//! as it says is damaged, and the one before it is used.

mod state;
mod tensors;

use std::fs;
use std::io::Read;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail, ensure};

pub(super) use self::state::{Order, State};
pub(super) use self::tensors::{bytes, restore, save};
use crate::run_dir::{remove_dir, replace_dir, sync_dir, write_atomically};
use crate::whole_file::{self, LARGE, SETTINGS};

/// Folder of the checkpoints in a run directory.
pub const DIR: &str = "checkpoints";

/// File with the state beside what is trained.
const STATE: &str = "state.json";

/// File with values and moments of what is trained.
const TENSORS: &str = "state.safetensors";

/// File that says what the others must be.
pub(crate) const SUMS: &str = "checksums.txt";

/// Beginning of a checkpoint's name.
const STEP: &str = "step-";

/// A checkpoint that was found whole.
#[derive(Debug)]
pub(super) struct Checkpoint {
    /// Its folder.
    pub(super) path: PathBuf,
    /// What it says beside its tensors.
    pub(super) state: State,
}

impl Checkpoint {
    /// Reads a checkpoint.
    ///
    /// # Errors
    /// A file is damaged or of another version.
    fn open(path: &Path) -> Result<Self> {
        verify(path)?;
        let file = path.join(STATE);
        let text = whole_file::text(&file, LARGE)
            .with_context(|| format!("cannot read {}", file.display()))?;
        let state: State = serde_json::from_str(&text)
            .with_context(|| format!("{} is of another version", file.display()))?;
        state.check_version().with_context(|| file.display().to_string())?;
        Ok(Self { path: path.to_owned(), state })
    }

    /// Its file with values and moments.
    pub(super) fn tensors(&self) -> PathBuf {
        self.path.join(TENSORS)
    }
}

/// The newest checkpoint of a run that is whole, and why newer ones are not used; `None` where
/// there is none.
///
/// # Errors
/// The folder cannot be read.
pub(super) fn newest(run: &Path) -> Result<(Option<Checkpoint>, Vec<String>)> {
    let mut refused = Vec::new();
    for (_, path) in all(run)?.into_iter().rev() {
        match Checkpoint::open(&path) {
            Ok(found) => return Ok((Some(found), refused)),
            Err(error) => {
                refused.push(format!("{} is damaged and not used ({error:#})", path.display()))
            }
        }
    }
    Ok((None, refused))
}

/// The checkpoint in a folder that was named.
///
/// # Errors
/// It is none, or damaged.
pub(super) fn named(path: &Path) -> Result<Checkpoint> {
    Checkpoint::open(path).with_context(|| {
        format!("{} is damaged: give --resume its run directory, or another", path.display())
    })
}

/// Steps and folders of a run's checkpoints, rising.
pub(crate) fn all(run: &Path) -> Result<Vec<(u64, PathBuf)>> {
    let dir = run.join(DIR);
    if !dir.exists() {
        return Ok(Vec::new());
    }
    let files =
        fs::read_dir(&dir).with_context(|| format!("cannot read {}", dir.display()))?.flatten();
    let mut found: Vec<_> =
        files.filter_map(|file| Some((step_of(&file.path())?, file.path()))).collect();
    found.sort();
    Ok(found)
}

/// The step that a checkpoint's name says.
pub(crate) fn step_of(path: &Path) -> Option<u64> {
    path.file_name()?.to_str()?.strip_prefix(STEP)?.parse().ok()
}

/// Where the checkpoint of a step is.
pub(super) fn path(run: &Path, step: u64) -> PathBuf {
    run.join(DIR).join(format!("{STEP}{step}"))
}

/// Writes a checkpoint of a run and removes older ones, so that `keep` are left. `fill` writes its
/// files into a folder.
///
/// # Errors
/// The disk is full: what was there before stays.
pub(super) fn write(
    run: &Path,
    state: &State,
    keep: usize,
    fill: impl FnOnce(&Path) -> Result<()>,
) -> Result<PathBuf> {
    let dir = run.join(DIR);
    let step = state.step();
    let (path, next) = (path(run, step), dir.join(format!("{STEP}{step}.tmp")));
    // What a run that was killed left of it.
    clear(&dir)?;
    fs::create_dir_all(&next)
        .with_context(|| format!("cannot make {}: check free space", next.display()))?;
    let written = fill(&next).and_then(|()| {
        let text = serde_json::to_string_pretty(state).context("laying out the state")?;
        write_atomically(&next.join(STATE), text.as_bytes())?;
        let sums = sums(&next)?;
        write_atomically(&next.join(SUMS), sums.as_bytes())?;
        replace_dir(&next, &path)
    });
    if let Err(error) = written {
        // The error is to be reported, and what is left is removed by the next run too.
        let _ = fs::remove_dir_all(&next);
        return Err(error);
    }
    let mut old = all(run)?;
    old.retain(|(other, _)| *other < step);
    old.truncate(old.len().saturating_sub(keep.max(1) - 1));
    for (_, path) in old {
        remove_dir(&path)?;
    }
    Ok(path)
}

/// Removes checkpoints behind a step: a run that went back to it will write its own.
pub(super) fn remove_behind(run: &Path, step: u64) -> Result<()> {
    clear(&run.join(DIR))?;
    for (_, path) in all(run)?.into_iter().filter(|(other, _)| *other > step) {
        remove_dir(&path)?;
    }
    Ok(())
}

/// Removes folders that were not finished.
fn clear(dir: &Path) -> Result<()> {
    let Ok(files) = fs::read_dir(dir) else { return Ok(()) };
    for path in files.flatten().map(|file| file.path()) {
        if path.extension().is_some_and(|end| end == "tmp") {
            remove_dir(&path)?;
        }
    }
    sync_dir(dir).with_context(|| format!("cannot write {}", dir.display()))
}

/// CRC-32 and length of a file, read in pieces.
fn sum(path: &Path) -> Result<(u32, u64)> {
    let read = || -> std::io::Result<(u32, u64)> {
        let (mut file, mut hasher) = (whole_file::open(path)?, crc32fast::Hasher::new());
        let (mut buffer, mut len) = (vec![0; 1 << 16], 0);
        loop {
            let count = file.read(&mut buffer)?;
            if count == 0 {
                return Ok((hasher.finalize(), len));
            }
            hasher.update(&buffer[..count]);
            len += count as u64;
        }
    };
    read().with_context(|| format!("cannot read {}", path.display()))
}

/// The lines for all files of a folder.
fn sums(dir: &Path) -> Result<String> {
    let mut names: Vec<_> = fs::read_dir(dir)
        .with_context(|| format!("cannot read {}", dir.display()))?
        .flatten()
        .map(|file| file.file_name().to_string_lossy().into_owned())
        .collect();
    names.sort();
    let mut text = String::new();
    for name in names {
        let (crc, len) = sum(&dir.join(&name))?;
        text.push_str(&format!("{crc:08x} {len} {name}\n"));
    }
    Ok(text)
}

/// Checks the files of a folder against its sums.
fn verify(dir: &Path) -> Result<()> {
    let path = dir.join(SUMS);
    let text = whole_file::text(&path, SETTINGS)
        .with_context(|| format!("cannot read {}", path.display()))?;
    let mut state = false;
    for line in text.lines() {
        let parts: Vec<&str> = line.splitn(3, ' ').collect();
        let [crc, len, name] = parts[..] else { bail!("{} is no list of sums", path.display()) };
        ensure!(!name.contains(['/', '\\']), "{} names a file outside it", path.display());
        let (found, found_len) = sum(&dir.join(name))?;
        ensure!(
            format!("{found:08x}") == crc && found_len.to_string() == len,
            "{name} is not what was written"
        );
        state |= name == STATE;
    }
    ensure!(state, "{} lacks {STATE}", path.display());
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::message;

    fn put(run: &Path, step: u64, keep: usize) -> PathBuf {
        let state = State::at_step(step);
        let fill = |dir: &Path| Ok(fs::write(dir.join(TENSORS), [step as u8; 1000])?);
        write(run, &state, keep, fill).expect("a checkpoint")
    }

    fn steps(run: &Path) -> Vec<u64> {
        all(run).expect("a list").into_iter().map(|(step, _)| step).collect()
    }

    #[test]
    fn the_newest_are_kept_and_the_newest_whole_one_is_found() {
        let dir = tempfile::tempdir().expect("a folder");
        let run = dir.path();
        assert!(newest(run).expect("none").0.is_none());
        for step in [5, 50, 100] {
            put(run, step, 2);
        }
        assert_eq!(steps(run), [50, 100]);
        let found = newest(run).expect("found").0.expect("one");
        assert_eq!(found.state.step(), 100);
        // A run that is killed while it writes, and one that goes back.
        fs::create_dir(run.join(DIR).join("step-150.tmp")).expect("a folder");
        assert_eq!(newest(run).expect("found").0.expect("one").state.step(), 100);
        remove_behind(run, 50).expect("removed");
        assert_eq!(steps(run), [50]);
        assert!(!run.join(DIR).join("step-150.tmp").exists());
        put(run, 50, 2);
        assert_eq!(steps(run), [50]);
    }

    #[test]
    fn each_damage_is_seen() {
        let dir = tempfile::tempdir().expect("a folder");
        let run = dir.path();
        put(run, 1, 3);
        let path = put(run, 2, 3);
        for name in [TENSORS, STATE, SUMS] {
            let file = path.join(name);
            let whole = fs::read(&file).expect("a file");
            let mut flipped = whole.clone();
            flipped[whole.len() / 2] ^= 1;
            for damaged in [&flipped[..], &whole[..whole.len() - 3], &[]] {
                fs::write(&file, damaged).expect("written");
                let (found, refused) = newest(run).expect("read");
                assert_eq!(found.expect("the one before").state.step(), 1, "{name}");
                assert!(refused[0].contains("step-2 is damaged"), "{refused:?}");
                assert!(message(named(&path)).contains("damaged"));
            }
            fs::remove_file(&file).expect("removed");
            assert_eq!(newest(run).expect("read").0.expect("one").state.step(), 1, "{name}");
            fs::write(&file, whole).expect("written");
        }
        assert_eq!(newest(run).expect("read").0.expect("one").state.step(), 2);
    }

    #[test]
    fn what_cannot_be_written_leaves_what_was_there() {
        let dir = tempfile::tempdir().expect("a folder");
        let run = dir.path();
        put(run, 1, 1);
        let fill = |dir: &Path| {
            fs::write(dir.join(TENSORS), [0; 10])?;
            bail!("the disk is full")
        };
        assert!(message(write(run, &State::at_step(2), 1, fill)).contains("the disk is full"));
        assert_eq!(steps(run), [1]);
        assert_eq!(fs::read_dir(run.join(DIR)).expect("a folder").count(), 1);
    }
}
