//! The directory that a run writes, and nothing outside it.

use std::collections::HashMap;
use std::ffi::OsStr;
use std::fmt::Display;
use std::fs::{self, File, TryLockError};
use std::io::{ErrorKind, Write};
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result, bail};
use safetensors::View;
use serde::Serialize;
use serde_json::{Map, Value, json};

/// Writes a file so that at any moment it is whole or not there: a neighbour, flushed to the
/// disk, then renamed.
///
/// # Errors
/// The disk is full or the directory cannot be written.
pub fn write_atomically(path: &Path, bytes: &[u8]) -> Result<()> {
    let mut name = path.file_name().unwrap_or_default().to_owned();
    name.push(".tmp");
    let temporary = path.with_file_name(name);
    let write = || {
        let mut file = File::create(&temporary)?;
        file.write_all(bytes)?;
        file.sync_all()?;
        fs::rename(&temporary, path)?;
        match path.parent().filter(|parent| !parent.as_os_str().is_empty()) {
            Some(parent) => sync_dir(parent),
            None => Ok(()),
        }
    };
    write().map_err(|error: std::io::Error| {
        // Nothing more can be done about a neighbour that cannot be removed either.
        let _ = fs::remove_file(&temporary);
        anyhow::anyhow!(
            "cannot write {} ({error}): check free space and permissions",
            path.display()
        )
    })
}

/// As [`write_atomically`], for a safetensors file whose tensors are made one by one when they are
/// written. `check` says, behind the last one, whether all could be made.
///
/// # Errors
/// As [`write_atomically`], or `check`.
pub(crate) fn write_tensors_atomically<N: AsRef<str> + Ord + Display, V: View>(
    path: &Path,
    tensors: Vec<(N, V)>,
    check: impl FnOnce() -> Result<()>,
) -> Result<()> {
    let mut name = path.file_name().unwrap_or_default().to_owned();
    name.push(".tmp");
    let temporary = path.with_file_name(name);
    // transformers refuses files without this entry.
    let metadata = HashMap::from([("format".to_owned(), "pt".to_owned())]);
    let write = || -> Result<()> {
        safetensors::serialize_to_file(tensors, Some(metadata), &temporary)?;
        check()?;
        // Windows flushes only what is open for writing.
        File::options().write(true).open(&temporary)?.sync_all()?;
        fs::rename(&temporary, path)?;
        Ok(sync_dir(path.parent().unwrap_or(Path::new(".")))?)
    };
    write().map_err(|error| {
        // Nothing more can be done about a neighbour that cannot be removed either.
        let _ = fs::remove_file(&temporary);
        error.context(format!("cannot write {}: check free space and permissions", path.display()))
    })
}

/// Makes what was renamed in a directory last, which only Unix can ask for.
pub(crate) fn sync_dir(dir: &Path) -> std::io::Result<()> {
    #[cfg(unix)]
    File::open(dir)?.sync_all()?;
    #[cfg(not(unix))]
    let _ = dir;
    Ok(())
}

/// A run directory.
#[derive(Debug)]
pub struct RunDir {
    path: PathBuf,
    events: File,
    /// Locked as long as the run goes on, whatever ends it.
    _lock: File,
}

/// File that a run holds a lock on.
const LOCK: &str = "run.lock";

/// File with the options of a run.
pub const CONFIG: &str = "config.resolved.yaml";

/// File with what happened when.
pub const EVENTS: &str = "events.jsonl";

/// The event of a run that goes on.
const RESUME: &str = "resume";

/// Files that a run has before its options are written: one that ends there has left nothing.
const FIRST: [&str; 3] = [LOCK, EVENTS, "config.resolved.yaml.tmp"];

/// How a run stands.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum RunState {
    /// It goes on, as far as can be told.
    Running,
    /// It came to its end.
    Finished,
    /// Ctrl-C ended it; what was learned is kept.
    Interrupted,
    /// An error ended it.
    Failed(String),
    /// Its process ended without a word.
    Died,
}

impl RunState {
    /// That of the run in a directory.
    ///
    /// # Errors
    /// The directory is no run's.
    pub fn of(dir: &Path) -> Result<Self> {
        // Asked for before the events are read: a run that ends in between has written its end.
        let running = is_locked(dir);
        // What came before a resumption is no end.
        let mut since = events(dir)?.into_iter().rev().take_while(|event| event["event"] != RESUME);
        let end = since.find(|event| event["event"] == "end");
        Ok(match end {
            None if running => Self::Running,
            None => Self::Died,
            Some(end) => match end["status"].as_str() {
                Some("interrupted") => Self::Interrupted,
                Some("failed") => Self::Failed(end["error"].as_str().unwrap_or("").to_owned()),
                _ => Self::Finished,
            },
        })
    }

    /// Whether nothing more will come.
    pub fn is_over(&self) -> bool {
        *self != Self::Running
    }
}

/// What happened in a run so far: the objects of `events.jsonl`. A line that is not whole, as a run
/// that dies may leave, is left out.
///
/// # Errors
/// There is no such file.
pub fn events(dir: &Path) -> Result<Vec<Value>> {
    let path = dir.join(EVENTS);
    let text = crate::whole_file::text(&path, crate::whole_file::LARGE).with_context(|| {
        format!("cannot read {}: give a directory that tune wrote", path.display())
    })?;
    Ok(text.lines().filter_map(|line| serde_json::from_str(line).ok()).collect())
}

/// Whether the process of a run is there. Where the file system has no locks, it is taken to be.
fn is_locked(dir: &Path) -> bool {
    let Ok(file) = File::open(dir.join(LOCK)) else { return false };
    match file.try_lock_shared() {
        Ok(()) => false,
        Err(TryLockError::WouldBlock | TryLockError::Error(_)) => true,
    }
}

impl RunDir {
    /// Checks that [`RunDir::create`] may use `out`, before any work is put into a run.
    ///
    /// # Errors
    /// `out` has files already or is a file.
    pub fn check(out: Option<&Path>) -> Result<()> {
        let Some(path) = out else { return Ok(()) };
        let shown = path.display();
        match fs::read_dir(path) {
            Ok(files) => {
                let first = |name: &OsStr| FIRST.iter().any(|first| *first == name);
                let mut names = files.flatten().map(|file| file.file_name());
                if let Some(name) = names.find(|name| !first(name)) {
                    let run = path.join(CONFIG).exists();
                    let resume = if run { ", or resume its run with --resume" } else { "" };
                    bail!(
                        "{shown} has files already, such as {}: give --out a new or empty \
                         directory{resume}",
                        name.display()
                    );
                }
            }
            Err(_) if path.exists() => bail!("{shown} is no directory: give --out another path"),
            Err(_) => {}
        }
        Ok(())
    }

    /// Creates `out`, or `runs/<UTC time>-<method>` in the current directory.
    ///
    /// # Errors
    /// `out` has files already, is a file, or cannot be created.
    pub fn create(out: Option<&Path>, method: &str) -> Result<Self> {
        let path = match out {
            Some(path) => path.to_owned(),
            None => claim(Path::new("runs"), &format!("{}-{method}", utc(SystemTime::now())))?,
        };
        Self::check(Some(&path))?;
        fs::create_dir_all(&path).with_context(|| {
            format!("cannot create {}: give --out another path", path.display())
        })?;
        Self::open(path)
    }

    /// Opens the directory of a run that is to go on.
    ///
    /// # Errors
    /// Another process runs it, or it cannot be written.
    pub fn resume(path: &Path, step: u64) -> Result<Self> {
        let mut run = Self::open(path.to_owned())?;
        run.event(RESUME, json!({"step": step}))?;
        Ok(run)
    }

    fn open(path: PathBuf) -> Result<Self> {
        let log = |name: &str| {
            let path = path.join(name);
            // Windows locks nothing that is open for appending alone.
            let open = File::options().read(true).create(true).append(true).open(&path);
            open.with_context(|| {
                format!("cannot write {}: give --out another path", path.display())
            })
        };
        let lock = log(LOCK)?;
        match lock.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => bail!(
                "{} is in use by another process: wait for it, or give --out another path",
                path.display()
            ),
            // Without locks nobody can see whether the run goes on, which is no reason not to
            // start.
            Err(TryLockError::Error(error)) => tracing::debug!(%error, "the run's lock"),
        }
        let events = log(EVENTS)?;
        Ok(Self { path, events, _lock: lock })
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Writes a file of the directory atomically.
    ///
    /// # Errors
    /// As [`write_atomically`]; or `name` is a path that leaves the directory.
    pub fn write(&self, name: &str, bytes: &[u8]) -> Result<()> {
        let mut parts = Path::new(name).components();
        let plain = matches!(parts.next(), Some(std::path::Component::Normal(_)));
        if !plain || parts.next().is_some() {
            bail!("{name} is no file of the run directory: this is a mistake in the program");
        }
        write_atomically(&self.path.join(name), bytes)
    }

    /// Appends a line to `events.jsonl`: time, kind, then `details` (an object, or null for none).
    ///
    /// # Errors
    /// The file cannot be written.
    pub fn event(&mut self, kind: &str, details: Value) -> Result<()> {
        let mut line = Map::new();
        line.insert("unix_ms".to_owned(), json!(since_epoch(SystemTime::now()).as_millis() as u64));
        line.insert("event".to_owned(), json!(kind));
        match details {
            Value::Object(details) => line.extend(details),
            Value::Null => {}
            other => {
                line.insert("details".to_owned(), other);
            }
        }
        append(&mut self.events, &self.path.join(EVENTS), &line)
    }
}

fn append(file: &mut File, path: &Path, line: &impl Serialize) -> Result<()> {
    let mut text = serde_json::to_string(line).context("cannot lay out a log line")?;
    text.push('\n');
    // One write a line, so that a run that dies leaves whole lines.
    file.write_all(text.as_bytes())
        .with_context(|| format!("cannot write {}: check free space", path.display()))
}

/// What `README.md` says about a run: enough to judge the adapter and to load it elsewhere.
#[derive(Clone, Debug, Default)]
pub struct ModelCard {
    /// The base model, as the user named it.
    pub base_model: String,
    /// `lora`, `full` or `edge`.
    pub method: String,
    /// Rows of the table of settings and results, in order.
    pub facts: Vec<(String, String)>,
}

/// Writes the options of a run, `config.resolved.yaml`, into a directory.
///
/// # Errors
/// As [`write_atomically`].
pub fn write_config(dir: &Path, options: &impl Serialize) -> Result<()> {
    let text = serde_norway::to_string(options).context("cannot lay out the options")?;
    write_atomically(&dir.join(CONFIG), text.as_bytes())
}

/// Puts the directory `from` in the place of `to`, which at any moment is whole, the old or the new
/// one. Where the system cannot exchange two names at once, `to` is away for a moment, and then
/// complete beside it as `NAME.old`.
///
/// # Errors
/// The parent directory cannot be written.
pub(crate) fn replace_dir(from: &Path, to: &Path) -> Result<()> {
    let replace = || -> std::io::Result<()> {
        if !to.exists() {
            fs::rename(from, to)?;
        } else if exchange(from, to) {
            fs::remove_dir_all(from)?;
        } else {
            swap(from, to)?;
        }
        sync_dir(to.parent().filter(|dir| !dir.as_os_str().is_empty()).unwrap_or(Path::new(".")))
    };
    replace()
        .with_context(|| format!("cannot write {}: check free space and permissions", to.display()))
}

/// Removes a directory, if there is one.
///
/// # Errors
/// It cannot be removed.
pub(crate) fn remove_dir(dir: &Path) -> Result<()> {
    match fs::remove_dir_all(dir) {
        Err(error) if error.kind() != ErrorKind::NotFound => Err(error)
            .with_context(|| format!("cannot remove {}: check permissions", dir.display())),
        _ => Ok(()),
    }
}

/// Exchanges two names at once, if the system can.
#[cfg(any(target_os = "linux", target_os = "android"))]
fn exchange(a: &Path, b: &Path) -> bool {
    use rustix::fs::{CWD, RenameFlags, renameat_with};
    renameat_with(CWD, a, CWD, b, RenameFlags::EXCHANGE).is_ok()
}

#[cfg(not(any(target_os = "linux", target_os = "android")))]
fn exchange(_: &Path, _: &Path) -> bool {
    false
}

/// As [`replace_dir`], by two renames.
fn swap(from: &Path, to: &Path) -> std::io::Result<()> {
    let old = to.with_extension("old");
    match fs::remove_dir_all(&old) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    fs::rename(to, &old)?;
    fs::rename(from, to)?;
    fs::remove_dir_all(&old)
}

impl ModelCard {
    /// Writes the card, `README.md`, into a directory.
    ///
    /// # Errors
    /// As [`write_atomically`].
    pub fn save(&self, dir: &Path) -> Result<()> {
        write_atomically(&dir.join("README.md"), self.render().as_bytes())
    }

    fn render(&self) -> String {
        let mut text = format!(
            "---\nbase_model: {}\ntags:\n- edge-llm\n- {}\n---\n\n# {} of {}\n\n\
             | | |\n| --- | --- |\n",
            json!(self.base_model),
            self.method,
            self.method,
            self.base_model
        );
        for (name, value) in &self.facts {
            let cell = |text: &str| text.replace('|', "\\|").replace('\n', " ");
            text.push_str(&format!("| {} | {} |\n", cell(name), cell(value)));
        }
        if self.method != "full" {
            text.push_str(
                "\nThe adapter is in the format of PEFT:\n\n```python\n\
                 from peft import PeftModel\n\
                 from transformers import AutoModelForCausalLM\n\n\
                 base = AutoModelForCausalLM.from_pretrained(\"BASE_MODEL\")\n\
                 model = PeftModel.from_pretrained(base, \"THIS_DIRECTORY\")\n```\n",
            );
        }
        text
    }
}

/// `parent/name`, with a number behind it where that exists.
pub(crate) fn unused(parent: &Path, name: &str) -> PathBuf {
    numbered(parent, name).find(|path| !path.exists()).expect("an endless iterator")
}

/// `name`, `name-2`, `name-3` and so on.
fn numbered(parent: &Path, name: &str) -> impl Iterator<Item = PathBuf> {
    let further = (2..).map(move |number| format!("{name}-{number}"));
    std::iter::once(name.to_owned()).chain(further).map(|name| parent.join(name))
}

/// Makes the directory `name`, or the first free one numbered after it, for this caller alone: runs
/// that start in the same second must not meet in one.
fn claim(parent: &Path, name: &str) -> Result<PathBuf> {
    let failed = |path: &Path| format!("cannot create {}: give --out a path", path.display());
    fs::create_dir_all(parent).with_context(|| failed(parent))?;
    let made = numbered(parent, name).find_map(|path| match fs::create_dir(&path) {
        Err(error) if error.kind() == ErrorKind::AlreadyExists => None,
        made => Some(made.with_context(|| failed(&path)).map(|()| path)),
    });
    made.expect("an endless iterator")
}

fn since_epoch(time: SystemTime) -> std::time::Duration {
    // A clock before 1970 is only a wrong name.
    time.duration_since(UNIX_EPOCH).unwrap_or_default()
}

/// `YYYYMMDD-HHMMSS`, sortable.
pub(crate) fn utc(time: SystemTime) -> String {
    let seconds = since_epoch(time).as_secs();
    let (days, second) = (seconds / 86_400, seconds % 86_400);
    // Howard Hinnant's civil_from_days: years begin in March, so that the leap day is the last.
    let shifted = days + 719_468;
    let (era, day_of_era) = (shifted / 146_097, shifted % 146_097);
    let year = (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year + year / 4 - year / 100);
    let month = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * month + 2) / 5 + 1;
    let month = if month < 10 { month + 3 } else { month - 9 };
    let year = era * 400 + year + u64::from(month <= 2);
    let (hour, minute) = (second / 3600, second / 60 % 60);
    format!("{year:04}{month:02}{day:02}-{hour:02}{minute:02}{:02}", second % 60)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use tempfile::tempdir;

    use super::*;
    use crate::testing::message;

    #[test]
    fn times_are_those_of_the_calendar() {
        for (seconds, expected) in [
            (0, "19700101-000000"),
            (951_782_400, "20000229-000000"),
            (951_868_799, "20000229-235959"),
            (1_735_689_599, "20241231-235959"),
            (4_107_542_400, "21000301-000000"),
        ] {
            assert_eq!(utc(UNIX_EPOCH + Duration::from_secs(seconds)), expected);
        }
        let dir = tempdir().unwrap();
        assert_eq!(unused(dir.path(), "a"), dir.path().join("a"));
        fs::create_dir(dir.path().join("a")).unwrap();
        fs::create_dir(dir.path().join("a-2")).unwrap();
        assert_eq!(unused(dir.path(), "a"), dir.path().join("a-3"));
        assert_eq!(claim(dir.path(), "a").unwrap(), dir.path().join("a-3"));
        assert_eq!(claim(&dir.path().join("b"), "a").unwrap(), dir.path().join("b/a"));
    }

    #[test]
    fn only_an_empty_directory_is_taken() {
        let dir = tempdir().unwrap();
        let first = RunDir::create(Some(dir.path()), "lora").unwrap();
        let error = message(RunDir::create(Some(dir.path()), "lora"));
        assert!(error.contains("is in use by another process"), "{error}");
        // Ended before its options were written: it has left nothing.
        drop(first);
        let second = RunDir::create(Some(dir.path()), "lora").unwrap();
        write_config(second.path(), &json!({"method": "lora"})).unwrap();
        drop(second);
        let error = message(RunDir::create(Some(dir.path()), "lora"));
        assert!(error.contains("has files already") && error.contains("--resume"), "{error}");
        let file = dir.path().join(EVENTS);
        assert!(message(RunDir::create(Some(&file), "lora")).contains("no directory"));
        assert!(message(RunDir::create(Some(&file.join("x")), "lora")).contains("cannot create"));
        let deep = RunDir::create(Some(&dir.path().join("a/b")), "lora").unwrap();
        assert!(deep.path().join("events.jsonl").exists());
    }

    #[test]
    fn files_are_written_whole_and_only_inside() {
        let dir = tempdir().unwrap();
        let mut run = RunDir::create(Some(&dir.path().join("run")), "lora").unwrap();
        run.write("policy.json", b"one").unwrap();
        run.write("policy.json", b"two").unwrap();
        write_config(run.path(), &json!({"method": "lora"})).unwrap();
        let facts = vec![("a|b".to_owned(), "1".to_owned())];
        let card = ModelCard { base_model: "base".into(), method: "lora".into(), facts };
        card.save(run.path()).unwrap();
        for outside in ["../x", "/x", "a/b", ".."] {
            assert!(message(run.write(outside, b"")).contains(outside));
        }
        run.event("start", json!({"seed": 3})).unwrap();
        run.event("stop", Value::Null).unwrap();

        let read = |name: &str| fs::read_to_string(run.path().join(name)).unwrap();
        assert_eq!(read("policy.json"), "two");
        assert_eq!(read("config.resolved.yaml"), "method: lora\n");
        assert!(read("README.md").contains("| a\\|b | 1 |"));
        let events: Vec<Value> =
            read("events.jsonl").lines().map(|line| serde_json::from_str(line).unwrap()).collect();
        assert_eq!((&events[0]["event"], &events[0]["seed"]), (&json!("start"), &json!(3)));
        assert!(events[1]["unix_ms"].as_u64().unwrap() > 1_600_000_000_000);
        let names = fs::read_dir(run.path()).unwrap().count();
        assert_eq!(names, 5, "no temporary file stays");
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
        assert!(message(write_atomically(&dir.path().join("no/x"), b"")).contains("no/x"));
    }

    #[test]
    fn a_run_says_how_it_stands() {
        let dir = tempdir().unwrap();
        assert!(message(RunState::of(dir.path())).contains("directory that tune wrote"));
        let mut run = RunDir::create(Some(dir.path()), "lora").unwrap();
        run.event("start", Value::Null).unwrap();
        let state = || RunState::of(dir.path()).unwrap();
        assert_eq!((state(), state().is_over()), (RunState::Running, false));
        run.event("end", json!({"status": "failed", "error": "no disk"})).unwrap();
        assert_eq!(state(), RunState::Failed("no disk".into()));
        run.event("end", json!({"status": "interrupted"})).unwrap();
        assert_eq!(state(), RunState::Interrupted);
        run.event("end", json!({"status": "finished"})).unwrap();
        drop(run);
        assert_eq!(state(), RunState::Finished);
        fs::write(dir.path().join(EVENTS), "{\"event\":\"start\"}\n{\"eve").unwrap();
        assert_eq!((state(), state().is_over()), (RunState::Died, true));
    }

    #[test]
    fn directories_are_replaced_as_a_whole() {
        let dir = tempdir().unwrap();
        let (new, to) = (dir.path().join("best.tmp"), dir.path().join("best"));
        let make = |text: &str| {
            fs::create_dir(&new).unwrap();
            fs::write(new.join(text), text).unwrap();
        };
        let names = |path: &Path| -> Vec<_> {
            fs::read_dir(path).unwrap().map(|entry| entry.unwrap().file_name()).collect()
        };
        for text in ["first", "second"] {
            make(text);
            replace_dir(&new, &to).unwrap();
            assert_eq!((names(&to), names(dir.path())), (vec![text.into()], vec!["best".into()]));
        }
        make("third");
        fs::create_dir(dir.path().join("best.old")).unwrap();
        swap(&new, &to).unwrap();
        assert_eq!((names(&to), names(dir.path())), (vec!["third".into()], vec!["best".into()]));
        assert!(message(replace_dir(&new, &to)).contains("best"));
    }
}
