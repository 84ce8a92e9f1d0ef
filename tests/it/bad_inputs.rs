//! Bad input at the boundary of every command, from tables (`bad_inputs/*.yaml`): the program ends
//! with the right status and one sentence that names the file and the cause, prints no panic, and
//! leaves the folder as it found it.
//!
//! A case has a command line, what is done to a copy of the valid folder first, the exit status,
//! and words that the sentence has to hold. `$NAME` in a command line stands for the flags below.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::OnceLock;

use edge_tests::folders;
use rayon::prelude::*;
use serde::Deserialize;
use serde_json::Value;
use tempfile::TempDir;

use crate::commands::program;

/// Fewest cases: all commands together.
const CASES: usize = 150;

/// The tables.
const TABLES: [&str; 5] = [
    include_str!("bad_inputs/models.yaml"),
    include_str!("bad_inputs/data.yaml"),
    include_str!("bad_inputs/options.yaml"),
    include_str!("bad_inputs/runs.yaml"),
    include_str!("bad_inputs/commands.yaml"),
];

/// The commands, of which each has cases.
const COMMANDS: [&str; 14] = [
    "tune",
    "plan",
    "compare",
    "compress",
    "eval",
    "generate",
    "export",
    "data",
    "devices",
    "inspect",
    "watch",
    "report",
    "completions",
    "man",
];

/// What `$NAME` stands for; `%20` is a space, and a flag that is given again behind it wins.
const FLAGS: [(&str, &str); 9] = [
    ("$tune", "tune --model model --data a.txt --out out --device cpu --steps 1 $small"),
    ("$plan", "plan --model model --device cpu --windows 2"),
    ("$compare", "compare --model model --data a.txt --out out --device cpu $few"),
    ("$compress", "compress --model model --calibration a.txt --out out --device cpu"),
    ("$eval", "eval --device cpu --seq-len 8"),
    ("$generate", "generate --device cpu --max-new-tokens 2 --prompt cat"),
    ("$export", "export --device cpu --out out --data a.txt"),
    ("$few", "--windows 2 --seq-len 8"),
    ("$small", "--seq-len 8 --batch-size 1 --windows 2 --rank 2"),
];

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Case {
    run: String,
    /// As in [`change`].
    #[serde(default)]
    files: Vec<String>,
    exit: i32,
    says: Vec<String>,
}

/// A folder of valid files of every kind, made once: `model/` with data, `run/`, `packed/` with
/// `wide/` that it was made of, `sharded/`, `model.gguf`, `policy.json`, `options.yaml`.
fn valid() -> &'static Path {
    static DIR: OnceLock<TempDir> = OnceLock::new();
    let dir = DIR.get_or_init(|| {
        let dir = TempDir::new().expect("a folder");
        make(dir.path()).expect("valid files");
        dir
    });
    dir.path()
}

fn make(root: &Path) -> anyhow::Result<()> {
    let place = |name: &str| root.join(name);
    folders::packed(root)?;
    std::fs::rename(place("model"), place("wide"))?;
    std::fs::copy(place("packed/policy.json"), place("policy.json"))?;
    folders::sharded(root)?;
    std::fs::rename(place("model"), place("sharded"))?;
    folders::gguf_file(root)?;
    folders::run(root)?;
    std::fs::write(place("options.yaml"), "lr: 1e-3\nsteps: 1\n")?;
    // The run names its model by a path that is the same in every copy.
    let options = place("run/config.resolved.yaml");
    let text = std::fs::read_to_string(&options)?;
    let shown = root.display().to_string();
    std::fs::write(options, text.replace(&format!("{shown}/"), ""))?;
    Ok(())
}

fn copy(from: &Path, to: &Path) -> std::io::Result<()> {
    std::fs::create_dir_all(to)?;
    for file in std::fs::read_dir(from)? {
        let file = file?;
        let to = to.join(file.file_name());
        match file.file_type()?.is_dir() {
            true => copy(&file.path(), &to)?,
            false => std::fs::copy(file.path(), to).map(|_| ())?,
        }
    }
    Ok(())
}

/// Text with `\n`, `\t`, `\0`, `\\` and `\xHH`, as bytes.
fn bytes(text: &str) -> Vec<u8> {
    let mut out = Vec::new();
    let mut rest = text.as_bytes();
    while let Some((&first, tail)) = rest.split_first() {
        let (byte, used) = match (first, tail.first()) {
            (b'\\', Some(b'n')) => (b'\n', 1),
            (b'\\', Some(b't')) => (b'\t', 1),
            (b'\\', Some(b'0')) => (0, 1),
            (b'\\', Some(b'\\')) => (b'\\', 1),
            (b'\\', Some(b'x')) => {
                let digits = std::str::from_utf8(&tail[1..3]).expect("two digits");
                (u8::from_str_radix(digits, 16).expect("two hexadecimal digits"), 3)
            }
            (byte, _) => (byte, 0),
        };
        out.push(byte);
        rest = &tail[used..];
    }
    out
}

/// One change of a copy: `write FILE TEXT`, `append FILE TEXT`, `repeat FILE COUNT TEXT`,
/// `set FILE.json POINTER JSON`, `put FILE BYTE TEXT`, `cut FILE BYTES`, `replace FILE FROM TO`
/// (no spaces in FROM), `copy FROM TO`, `move FROM TO`, `remove PATH`, `folder PATH`, `pipe PATH`.
fn change(root: &Path, line: &str) {
    let words: Vec<&str> = line.splitn(3, ' ').collect();
    let (verb, path) = (words[0], root.join(words[1]));
    let rest = words.get(2).copied().unwrap_or_default();
    let two = || rest.split_once(' ').unwrap_or_else(|| panic!("{line}: two words"));
    let read = || std::fs::read(&path).unwrap_or_else(|error| panic!("{line}: {error}"));
    let write = |bytes: &[u8]| std::fs::write(&path, bytes).expect("a file");
    match verb {
        "write" => write(&bytes(rest)),
        "append" => write(&[read(), bytes(rest)].concat()),
        "repeat" => {
            let (count, text) = two();
            write(&bytes(text).repeat(count.parse().expect("a count")));
        }
        "set" => {
            let (pointer, json) = two();
            let mut value: Value = serde_json::from_slice(&read()).expect("JSON");
            let (parent, key) = pointer.rsplit_once('/').expect("a pointer");
            let parent = value.pointer_mut(parent).unwrap_or_else(|| panic!("{line}: no parent"));
            parent[key] = serde_json::from_str(json).expect("JSON");
            write(value.to_string().as_bytes());
        }
        "put" => {
            let (at, text) = two();
            let (at, text, mut all) = (at.parse::<usize>().expect("a place"), bytes(text), read());
            all[at..at + text.len()].copy_from_slice(&text);
            write(&all);
        }
        "cut" => write(&read()[..rest.parse::<usize>().expect("a length")]),
        "replace" => {
            let (from, to) = two();
            let text = String::from_utf8(read()).expect("UTF-8");
            assert!(text.contains(from), "{line}: nothing to replace");
            write(text.replacen(from, to, 1).as_bytes());
        }
        "copy" if path.is_dir() => copy(&path, &root.join(rest)).expect("a copy"),
        "copy" => std::fs::copy(&path, root.join(rest)).map(|_| ()).expect("a copy"),
        "move" => std::fs::rename(&path, root.join(rest)).expect("moved"),
        "remove" if path.is_dir() => std::fs::remove_dir_all(&path).expect("removed"),
        "remove" => std::fs::remove_file(&path).expect("removed"),
        "folder" => std::fs::create_dir_all(&path).expect("a folder"),
        "pipe" => {
            let made = Command::new("mkfifo").arg(&path).status();
            assert!(made.is_ok_and(|status| status.success()), "{line}");
        }
        _ => panic!("{line}: no change"),
    }
}

/// Every file below a folder with its length.
fn listing(dir: &Path) -> BTreeMap<PathBuf, u64> {
    let mut found = BTreeMap::new();
    let mut open = vec![dir.to_owned()];
    while let Some(dir) = open.pop() {
        for file in std::fs::read_dir(dir).into_iter().flatten().flatten() {
            let about = file.metadata().expect("a file");
            if about.is_dir() {
                open.push(file.path());
                found.insert(file.path(), u64::MAX);
            } else {
                found.insert(file.path(), about.len());
            }
        }
    }
    found
}

/// The words of a command line; of a flag that is there twice the last counts.
fn words(line: &str) -> Vec<String> {
    let mut line = line.to_owned();
    for (name, flags) in FLAGS {
        line = line.replace(name, flags);
    }
    let all: Vec<&str> = line.split(' ').filter(|word| !word.is_empty()).collect();
    let flag = |word: &str| word.split('=').next().unwrap_or_default().to_owned();
    let mut out: Vec<String> = Vec::new();
    let mut dropped = false;
    for (index, word) in all.iter().enumerate() {
        if word.starts_with("--") {
            dropped = all[index + 1..].iter().any(|later| flag(later) == flag(word));
        }
        if !dropped {
            out.push(word.replace("%20", " "));
        }
    }
    out
}

fn run(case: &Case, root: &Path) -> Output {
    let (work, cache) = (root.join("work"), root.join("cache"));
    copy(valid(), &work).expect("a copy");
    for line in &case.files {
        change(&work, line);
    }
    Command::new(program())
        .args(words(&case.run))
        .current_dir(work)
        .env("XDG_CACHE_HOME", &cache)
        .env("HOME", &cache)
        .env("TMPDIR", root.join("tmp"))
        .env("XDG_RUNTIME_DIR", root)
        .env("RUST_BACKTRACE", "1")
        .output()
        .expect("the program starts")
}

/// What is wrong with how a case ends; nothing, if it is as the table says.
fn complaints(case: &Case) -> Vec<String> {
    let dir = TempDir::new().expect("a folder");
    std::fs::create_dir(dir.path().join("tmp")).expect("a folder");
    let mut found = Vec::new();
    let output = run(case, dir.path());
    let text = String::from_utf8_lossy(&output.stderr).into_owned();
    let mut expect = |holds: bool, what: &str| {
        if !holds {
            found.push(what.to_owned());
        }
    };
    expect(output.status.code() == Some(case.exit), &format!("ends with {}", output.status));
    let lines: Vec<&str> = text.lines().collect();
    let sentences: Vec<usize> =
        (0..lines.len()).filter(|index| lines[*index].starts_with("error: ")).collect();
    expect(sentences.len() == 1, "has not one sentence");
    let sentence = sentences.first().map_or("", |index| lines[*index]);
    // The parser of flags explains them behind its sentence.
    let usage = case.exit == 2 && text.contains("For more information, try '--help'");
    let last = sentences.last().copied() == lines.len().checked_sub(1);
    expect(usage || last, "says more behind its sentence");
    expect(!text.contains("panicked") && !text.contains("stack backtrace"), "panics");
    expect(sentence.len() < 1200, "has a sentence without end");
    for word in &case.says {
        // Paths of Windows have other slashes.
        let known = (if usage { &text } else { sentence }).replace('\\', "/");
        expect(known.contains(word), &format!("does not say {word:?}"));
    }
    let fresh = TempDir::new().expect("a folder");
    copy(valid(), fresh.path()).expect("a copy");
    for line in &case.files {
        change(fresh.path(), line);
    }
    let relative = |root: &Path| -> BTreeSet<(PathBuf, u64)> {
        let strip = |path: PathBuf| path.strip_prefix(root).expect("below").to_owned();
        listing(root).into_iter().map(|(path, bytes)| (strip(path), bytes)).collect()
    };
    let (before, after) = (relative(fresh.path()), relative(&dir.path().join("work")));
    let changed: Vec<_> = before.symmetric_difference(&after).map(|(path, _)| path).collect();
    expect(changed.is_empty(), &format!("changes {changed:?}"));
    let left = listing(&dir.path().join("tmp"));
    expect(left.is_empty(), &format!("leaves {left:?}"));
    if !found.is_empty() {
        found.push(format!("it said: {text}"));
    }
    found
}

fn cases() -> Vec<Case> {
    let read = |table: &&str| serde_norway::from_str::<Vec<Case>>(table).expect("a table");
    TABLES.iter().flat_map(read).collect()
}

#[test]
fn every_command_refuses_bad_input_in_one_sentence() {
    let cases = cases();
    assert!(cases.len() >= CASES, "{} cases", cases.len());
    for command in COMMANDS {
        let of = |case: &&Case| words(&case.run).first().is_some_and(|word| word == command);
        assert!(cases.iter().any(|case| of(&case)), "no case of {command}");
    }
    program();
    valid();
    let failed: Vec<String> = cases
        .par_iter()
        .filter_map(|case| {
            let complaints = complaints(case);
            let shown = format!("{} {:?}", case.run, case.files);
            (!complaints.is_empty()).then(|| format!("{shown}\n  {}", complaints.join("\n  ")))
        })
        .collect();
    assert!(failed.is_empty(), "{} of {}:\n{}", failed.len(), cases.len(), failed.join("\n"));
}

/// A refusal is worth something only where the same command takes the valid files.
#[test]
fn the_valid_folder_is_taken() {
    for line in [
        "$tune",
        "$eval --model model --data a.txt",
        "$eval --model model.gguf --data a.jsonl",
        "$eval --model packed --data a.txt",
        "$eval --model sharded --choices choices.jsonl",
        "$eval --run run --data a.txt",
        "$generate --model model --adapter run",
        "$export --model model --adapter run",
        "data --model model --data a.json --seq-len 16",
        "inspect run",
        "report run",
    ] {
        let dir = TempDir::new().expect("a folder");
        std::fs::create_dir(dir.path().join("tmp")).expect("a folder");
        let case = Case { run: line.into(), files: vec![], exit: 0, says: vec![] };
        let output = run(&case, dir.path());
        assert!(output.status.success(), "{line}: {}", String::from_utf8_lossy(&output.stderr));
    }
}
