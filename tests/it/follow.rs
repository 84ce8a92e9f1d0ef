//! A run that one can follow, as a person does: what it leaves behind, `watch`, `report`,
//! `--dry-run`, configuration files.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use serde_json::Value;
use tempfile::TempDir;

use crate::commands::{demo, program, refused, run};

/// Runs what must succeed; returns stdout and stderr.
pub(crate) fn done(args: &[&str]) -> (String, String) {
    let output = run(args);
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    let (out, errors) = (text(&output.stdout), text(&output.stderr));
    assert!(output.status.success(), "{args:?}: {errors}");
    (out, errors)
}

/// Tunes the demo into `out` on the `cpu` device, with small steps.
pub(crate) fn tune(out: &Path, more: &str) -> Vec<String> {
    let common = "tune --device cpu --batch-size 2 --seq-len 32 --out";
    let mut args: Vec<String> = common.split(' ').map(str::to_owned).collect();
    args.push(out.display().to_string());
    args.extend(more.split_whitespace().map(str::to_owned));
    args
}

fn strs(args: &[String]) -> Vec<&str> {
    args.iter().map(String::as_str).collect()
}

fn lines(path: &Path) -> Vec<Value> {
    let text = std::fs::read_to_string(path).expect("a file");
    text.lines().map(|line| serde_json::from_str(line).expect("JSON")).collect()
}

fn configs() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../crates/edge-runtime/examples/configs")
}

#[test]
fn a_run_leaves_metrics_the_best_checkpoint_and_a_page() {
    let dir = TempDir::new().expect("a folder");
    let out = dir.path().join("run");
    let args = tune(&out, "--method edge --windows 2 --steps 9 --eval-every 3 --lr 1e-2 --json");
    let (text, errors) = done(&strs(&args));
    for line in ["device     cpu", "windows    2 of blocks", "plan       9 steps of 2 x 32 tokens"]
    {
        assert!(errors.contains(line), "no {line} in: {errors}");
    }
    let report: Value = serde_json::from_str(text.lines().last().expect("a line")).expect("JSON");
    let rows = lines(&out.join("metrics.jsonl"));
    let (steps, validations): (Vec<_>, Vec<_>) =
        rows.iter().partition(|row| row["val_exits"].is_null());
    // Before, behind 3 and 6 steps, after.
    assert_eq!((steps.len(), validations.len()), (9, 4));
    assert_eq!(steps[8]["tokens"], report["tokens"]);
    assert_eq!(steps[8]["device_bytes"], report["peak_device_bytes"]);
    assert_eq!((&steps[8]["done"], &steps[3]["window"]), (&Value::from(1.0), &Value::from(2)));
    let csv = std::fs::read_to_string(out.join("metrics.csv")).expect("a file");
    assert_eq!(csv.lines().count(), 1 + rows.len());
    let names = std::fs::read_dir(&out).expect("a folder");
    let names: Vec<String> = names
        .map(|entry| entry.expect("an entry").file_name().to_string_lossy().into_owned())
        .collect();
    assert!(names.iter().any(|name| name.starts_with("events.out.tfevents.")), "{names:?}");
    assert!(!names.iter().any(|name| name.contains(".tmp") || name.contains(".old")), "{names:?}");
    let page = std::fs::read_to_string(out.join("report.html")).expect("a page");
    assert!(page.contains("Finished: 9 steps") && !page.contains("http:"), "{page}");
    // The best checkpoint is a run directory of its own, and as good as was said.
    let best = &report["best"];
    let losses = validations[1..].iter().map(|row| row["val_loss"].as_f64().expect("a loss"));
    let least = losses.fold(f64::INFINITY, f64::min);
    assert_eq!(best["val_loss"].as_f64(), Some(least));
    let (folder, data) = (out.join("best").display().to_string(), demo("valid.txt"));
    let args = ["eval", "--run", &folder, "--data", &data, "--device", "cpu", "--json"];
    let args = [&args[..], &["--seq-len", "32"]].concat();
    let seen: Value = serde_json::from_str(done(&args).0.trim()).expect("JSON");
    let seen = seen["exits"].as_array().and_then(|exits| exits.last()).expect("exits");
    let seen = seen["val_loss"].as_f64().expect("a loss");
    assert!((seen - least).abs() < 1e-4, "{seen} {least}");
    let shown = out.display().to_string();
    let (_, watched) = done(&["watch", &shown]);
    assert!(watched.contains("the run has ended after 9 steps"), "{watched}");
    assert!(watched.contains("100 %: step 9") && watched.contains("step 6: validation loss"));
    std::fs::remove_file(out.join("report.html")).expect("removed");
    done(&["report", &shown]);
    assert_eq!(std::fs::read_to_string(out.join("report.html")).expect("a page"), page);
}

#[test]
fn a_run_without_progress_ends_early() {
    let dir = TempDir::new().expect("a folder");
    let out = dir.path().join("run");
    // A step that large makes everything worse.
    let more = "--method lora --lr 300 --clip 0 --schedule constant --warmup-steps 1 --steps 40 \
                --eval-every 1 --early-stopping 2 --json";
    let (text, errors) = done(&strs(&tune(&out, more)));
    assert!(errors.contains("2 validations without improvement (--early-stopping)"), "{errors}");
    let report: Value = serde_json::from_str(text.lines().last().expect("a line")).expect("JSON");
    assert_eq!(report["stopped_early"], true);
    assert!(report["steps"].as_u64().is_some_and(|steps| steps < 40), "{report}");
    let page = std::fs::read_to_string(out.join("report.html")).expect("a page");
    assert!(page.contains("The run stopped early at step"), "{page}");
    let wrong = tune(&dir.path().join("x"), "--early-stopping 2");
    assert!(refused(&strs(&wrong), 1).contains("give --eval-every or --evals"));
    let wrong = tune(&dir.path().join("x"), "--early-stopping 2 --evals 2 --val-fraction 0");
    assert!(refused(&strs(&wrong), 1).contains("--early-stopping needs validation data"));
    assert!(!dir.path().join("x").exists());
}

#[test]
fn a_run_that_died_is_said_so() {
    let dir = TempDir::new().expect("a folder");
    let out = dir.path().join("run");
    let args = tune(&out, "--method lora --steps 1000000 --quiet");
    let mut child = Command::new(program())
        .args(&args)
        .stderr(Stdio::null())
        .spawn()
        .expect("the program starts");
    let started = Instant::now();
    let metrics = out.join("metrics.jsonl");
    let rows = || std::fs::read_to_string(&metrics).map_or(0, |text| text.lines().count());
    // Rows come without the run being asked for them, a few seconds after their steps.
    while rows() < 3 && started.elapsed() < Duration::from_secs(120) {
        std::thread::sleep(Duration::from_millis(100));
    }
    assert!(rows() >= 3, "the run writes no metrics");
    let shown = out.display().to_string();
    let mut watch = Command::new(program())
        .args(["watch", &shown, "--interval", "0.1"])
        .stderr(Stdio::piped())
        .spawn()
        .expect("the program starts");
    std::thread::sleep(Duration::from_millis(500));
    assert!(watch.try_wait().expect("a state").is_none(), "the run goes on");
    child.kill().expect("killed");
    child.wait().expect("it ends");
    let output = watch.wait_with_output().expect("it ends");
    let text = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{text}");
    assert!(text.contains("error: the run died after") && text.contains(&shown), "{text}");
    done(&["report", &shown]);
    let page = std::fs::read_to_string(out.join("report.html")).expect("a page");
    assert!(page.contains("ended without a word"), "{page}");
}

#[test]
fn what_is_no_run_or_damaged_is_named() {
    let dir = TempDir::new().expect("a folder");
    let shown = dir.path().display().to_string();
    for command in ["watch", "report"] {
        let text = refused(&[command, &shown], 1);
        assert!(text.contains("give a directory that tune wrote"), "{text}");
        assert_eq!(text.trim().lines().count(), 1, "{text}");
    }
    let out = dir.path().join("run");
    done(&strs(&tune(&out, "--method lora --steps 2 --quiet")));
    let path = out.join("metrics.jsonl");
    let good = std::fs::read_to_string(&path).expect("metrics");
    std::fs::write(&path, good.replacen("\"step\":1,", "\"step\":one,", 1)).expect("written");
    let shown = out.display().to_string();
    for command in ["watch", "report"] {
        let text = refused(&[command, &shown], 1);
        let errors = text.lines().filter(|line| line.starts_with("error")).count();
        assert!(
            text.contains("line 2 of") && text.contains("metrics.jsonl") && errors == 1,
            "{text}"
        );
    }
    std::fs::write(&path, &good).expect("written");
    std::fs::write(out.join("header.json"), "{").expect("written");
    assert!(refused(&["report", &shown], 1).contains("header.json is damaged"));
}

#[test]
fn a_dry_run_writes_nothing() {
    let dir = TempDir::new().expect("a folder");
    let out = dir.path().join("run");
    let args = tune(&out, "--method edge --windows 3 --dry-run --json");
    let (text, errors) = done(&strs(&args));
    let header: Value = serde_json::from_str(text.trim()).expect("JSON");
    assert_eq!(header["windows"].as_array().map(Vec::len), Some(3));
    assert!(header["train_tokens"].as_u64().is_some_and(|tokens| tokens > 20_000), "{header}");
    assert!(errors.contains("tokens to validate on") && errors.contains("of device memory"));
    assert_eq!(std::fs::read_dir(dir.path()).expect("a folder").count(), 0);
    // And says the same of memory as the run.
    let run = tune(&out, "--method edge --windows 3 --steps 1 --json");
    let (text, _) = done(&strs(&run));
    let report: Value = serde_json::from_str(text.lines().last().expect("a line")).expect("JSON");
    assert_eq!(report["peak_device_bytes"], header["planned_bytes"]);
}

#[test]
fn the_examples_run_as_they_stand() {
    let dir = TempDir::new().expect("a folder");
    let files = std::fs::read_dir(configs()).expect("examples");
    let files: Vec<PathBuf> = files.map(|entry| entry.expect("an entry").path()).collect();
    assert!(files.len() >= 5, "{files:?}");
    for file in &files {
        let name = file.file_stem().expect("a name").to_string_lossy().into_owned();
        let shown = file.display().to_string();
        // As they stand, as far as the plan; and a few steps.
        done(&["tune", "--config", &shown, "--device", "cpu", "--dry-run"]);
        let out = dir.path().join(&name).display().to_string();
        let few =
            "--device cpu --steps 2 --batch-size 2 --micro-batch 1 --seq-len 32 --quiet --out";
        let mut args = vec!["tune", "--config", &shown];
        args.extend(few.split(' '));
        args.push(&out);
        done(&args);
        assert!(Path::new(&out).join("report.html").is_file(), "{name}");
    }
    let wrong = dir.path().join("wrong.yaml");
    std::fs::write(&wrong, "rank: 4\nbatch_size: 2\n").expect("written");
    let text = refused(&["tune", "--config", &wrong.display().to_string()], 1);
    assert!(text.contains("`batch_size` at line 2") && text.contains("`batch-size`"), "{text}");
}

#[test]
fn the_definition_of_the_command_line_is_printed() {
    let dir = TempDir::new().expect("a folder");
    let schema: Value = serde_json::from_str(&done(&["schema"]).0).expect("JSON");
    assert_eq!(schema["properties"]["rank"]["type"][0], "integer");
    for shell in ["bash", "zsh", "fish", "powershell"] {
        assert!(done(&["completions", shell]).0.contains("early-stopping"), "{shell}");
    }
    let pages = dir.path().join("man");
    done(&["man", &pages.display().to_string()]);
    let page = std::fs::read_to_string(pages.join("edge-runtime-tune.1")).expect("a page");
    assert!(page.contains("early\\-stopping"), "{page}");
}
