//! Windows of layers through the program: which tensors move, and the cache of hidden states.

use std::path::Path;

use edge_runtime::adapter;
use edge_runtime::batch::Batch;
use edge_runtime::config::ModelConfig;
use edge_runtime::session::{Source, Tuned};
use edge_tests::{cpu, largest_difference};
use serde_json::Value;
use tempfile::TempDir;

use crate::commands::{demo, refused, run};

/// Tunes the demo model on its validation text, with further flags; the report.
fn tune(out: &Path, flags: &[&str]) -> Value {
    tune_with(out, &demo("model"), flags)
}

/// The same with another model.
fn tune_with(out: &Path, model: &str, flags: &[&str]) -> Value {
    let data = demo("valid.txt");
    let out = out.display().to_string();
    let base = ["tune", "--model", model, "--data", &data, "--out", &out, "--device", "cpu"];
    let sizes = ["--batch-size", "2", "--seq-len", "32", "--json", "--quiet"];
    let own = flags.contains(&"--lr");
    let lr: &[&str] = if own { &[] } else { &["--lr", "1e-2"] };
    let output = run(&[&base[..], &sizes, lr, flags].concat());
    let text = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.success(), "{flags:?}: {text}");
    let line = String::from_utf8(output.stdout).expect("UTF-8");
    serde_json::from_str(line.lines().last().expect("a line")).expect("a report")
}

fn losses(report: &Value) -> Vec<f64> {
    let exits = report["exits"].as_array().expect("exits").iter();
    exits.map(|exit| exit["val_loss"].as_f64().expect("a loss")).collect()
}

fn close(a: &[f64], b: &[f64], tolerance: f64) -> bool {
    a.len() == b.len() && a.iter().zip(b).all(|(a, b)| (a - b).abs() <= tolerance)
}

#[test]
fn a_cached_trunk_gives_the_losses_of_one_that_is_run() {
    let dir = TempDir::new().expect("a folder");
    let mut flags = vec!["--semantics", "progressive", "--window-shares", "1,1,1", "--epochs", "2"];
    // With large steps AdamW makes much of roundings, whichever they are.
    flags.extend(["--lr", "2e-3"]);
    let with = |name: &str, cache: &str| {
        tune(&dir.path().join(name), &[&flags[..], &["--trunk-cache", cache]].concat())
    };
    let (cached, run) = (with("cached", "auto"), with("run", "off"));
    // Hidden states in f16 move a loss by less than what a step does.
    assert!(close(&losses(&cached), &losses(&run), 2e-4), "{cached} {run}");
    assert_eq!(run["trunk_cache"], Value::Null);
    let report = &cached["trunk_cache"];
    let count = |key: &str| report[key].as_u64().expect("a number");
    assert!(count("computed") > 0 && count("peak_disk_bytes") > 0, "{report}");
    assert!(!dir.path().join("cached/trunk").exists(), "the cache outlives its run");
}

#[test]
fn isolated_windows_keep_one_trunk_for_the_whole_run() {
    let dir = TempDir::new().expect("a folder");
    let mut flags = vec!["--semantics", "isolated", "--window-shares", "1,1,1", "--epochs", "2"];
    flags.extend(["--rank", "8"]);
    let with = |name: &str, cache: &str| {
        tune(&dir.path().join(name), &[&flags[..], &["--trunk-cache", cache]].concat())
    };
    let (cached, plain) = (with("cached", "auto"), with("run", "off"));
    assert!(close(&losses(&cached), &losses(&plain), 2e-3), "{cached} {plain}");
    let run_dir = dir.path().join("cached").display().to_string();
    let data = demo("valid.txt");
    let flags = ["--data", &data, "--device", "cpu", "--all-votes", "--json", "--quiet"];
    let output = run_program(&[&["eval", "--run", &run_dir][..], &flags].concat());
    let votes = output["votes"].as_array().expect("votes").len();
    assert_eq!((votes, output["vote"]["rule"].as_str()), (4, Some("learned")));
    let prompt = ["--prompt", "The ", "--max-new-tokens", "5", "--device", "cpu"];
    let output = run(&[&["generate", "--run", &run_dir][..], &prompt].concat());
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let mut fit = vec!["eval", "--run", &run_dir, "--data", &data, "--device", "cpu"];
    fit.extend(["--fit-vote", "--json", "--quiet"]);
    let fitted = run_program(&fit);
    let loss = |exit: &Value| exit["val_loss"].as_f64().expect("a loss");
    let best = fitted["exits"].as_array().expect("exits").iter().map(loss).fold(9.0, f64::min);
    assert!(fitted["loss"].as_f64().expect("a loss") <= best + 1e-4, "{fitted}");
}

/// Runs what must succeed; its report.
fn run_program(args: &[&str]) -> Value {
    let output = run(args);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let line = String::from_utf8(output.stdout).expect("UTF-8");
    serde_json::from_str(line.lines().last().expect("a line")).expect("a report")
}

#[test]
fn a_kept_cache_serves_later_runs_on_the_same_data_alone() {
    let dir = TempDir::new().expect("a folder");
    let cache = dir.path().join("cache").display().to_string();
    let partial = |name: &str, more: &[&str]| {
        let flags = ["--method", "partial", "--windows", "2", "--epochs", "1"];
        let cache = ["--trunk-cache", &cache];
        tune(&dir.path().join(name), &[&flags[..], &cache, more].concat())
    };
    let first = partial("first", &[]);
    let count = |report: &Value, key: &str| report["trunk_cache"][key].as_u64().expect("a number");
    let sequences = count(&first, "computed");
    assert!(sequences > 0 && count(&first, "read") == 0, "{first}");
    let second = partial("second", &["--seed", "0"]);
    assert_eq!((count(&second, "computed"), count(&second, "read")), (0, sequences));
    assert_eq!(first["val_loss"], second["val_loss"]);
    for other in [["--bits", "4"], ["--val-fraction", "0.3"]] {
        let report = partial(&other.concat(), &other);
        assert_eq!(count(&report, "read"), 0, "{other:?}");
    }
}

#[test]
fn a_compressed_base_has_a_trunk_cache_too() {
    let dir = TempDir::new().expect("a folder");
    let small = dir.path().join("small").display().to_string();
    let (model, data) = (demo("model"), demo("valid.txt"));
    let base = ["compress", "--model", &model, "--calibration", &data, "--out", &small];
    let sizes = ["--policy", "uniform", "--target-bits", "8", "--sequences", "2"];
    let flags = ["--seq-len", "32", "--fast", "--device", "cpu", "--json", "--quiet"];
    run_program(&[&base[..], &sizes, &flags].concat());
    let cache = dir.path().join("cache").display().to_string();
    let partial = |name: &str| {
        let flags = ["--method", "partial", "--windows", "2", "--epochs", "1"];
        let cache = ["--trunk-cache", &cache];
        tune_with(&dir.path().join(name), &small, &[&flags[..], &cache].concat())
    };
    let (first, second) = (partial("first"), partial("second"));
    assert_eq!(second["trunk_cache"]["read"], first["trunk_cache"]["computed"]);
    assert_eq!(first["val_loss"], second["val_loss"]);
}

#[test]
fn partial_trains_the_top_window_alone() {
    let dir = TempDir::new().expect("a folder");
    let out = dir.path().join("run");
    let report = tune(&out, &["--method", "partial", "--windows", "2", "--steps", "3"]);
    assert!(report["exits"].as_array().is_some_and(|exits| exits.len() == 1), "{report}");
    let model = ModelConfig::load(demo("model").as_ref()).expect("a config");
    let (_, tensors) = adapter::load(&out, &model).expect("an adapter");
    let blocks = model.num_hidden_layers;
    let lowest = tensors.keys().map(|(layer, _)| *layer).min();
    assert_eq!(lowest, Some(blocks / 2));
    let text = std::fs::read_to_string(out.join("adapter_config.json")).expect("a file");
    let config: Value = serde_json::from_str(&text).expect("JSON");
    let layers: Vec<usize> = (blocks / 2..blocks).collect();
    assert_eq!(config["layers_to_transform"], Value::from(layers));
    assert!(tensors.values().all(|(_, b)| b.iter().any(|b| *b != 0.0)));
    let run_dir = out.display().to_string();
    let output = run(&["eval", "--run", &run_dir, "--device", "cpu", "--json", "--quiet"]);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}

#[test]
fn windows_that_cannot_be_are_refused() {
    let dir = TempDir::new().expect("a folder");
    let (out, model) = (dir.path().join("run").display().to_string(), demo("model"));
    let (data, file) = (demo("valid.txt"), dir.path().join("file"));
    std::fs::write(&file, "x").expect("a file");
    let file = file.display().to_string();
    for (flags, part) in [
        (&["--semantics", "progressive", "--window-order", "random"][..], "--window-order"),
        (&["--method", "partial", "--windows", "99"], "--windows 99"),
        (&["--method", "partial", "--trunk-cache", &file], "--trunk-cache"),
        (&["--semantics", "progressive", "--window-shares", "1,0,1"], "1,1,2"),
    ] {
        let base = ["tune", "--model", &model, "--data", &data, "--out", &out, "--device", "cpu"];
        let code = if part == "1,1,2" { 2 } else { 1 };
        let text = refused(&[&base[..], &["--seq-len", "32"], flags].concat(), code);
        assert!(text.contains(part), "{flags:?}: {text}");
        assert!(!Path::new(&out).exists(), "{flags:?} left a run directory");
    }
}

#[test]
fn a_merged_export_has_the_logits_of_base_and_adapter() {
    let dir = TempDir::new().expect("a folder");
    for (name, flags) in [
        ("stacked", &["--windows", "2"][..]),
        ("progressive", &["--semantics", "progressive", "--windows", "2"]),
        ("partial", &["--method", "partial", "--windows", "2"]),
        // Of three windows the two lower ones are no part of the last exit.
        ("isolated", &["--semantics", "isolated", "--windows", "3"]),
        // The head, tied to the embedding, becomes a tensor of its own.
        ("terms", &["--semantics", "isolated", "--windows", "3", "--exit-rank", "3"]),
    ] {
        let (out, merged) = (dir.path().join(name), dir.path().join(format!("{name}-merged")));
        tune(&out, &[&["--bits", "16", "--steps", "8"][..], flags].concat());
        let (run_dir, into) = (out.display().to_string(), merged.display().to_string());
        let args = ["export", "--run", &run_dir, "--out", &into, "--dtype", "f32", "--json"];
        run_program(&args);
        let (want, got) = (logits(Some(&out), demo("model").as_ref()), logits(None, &merged));
        let off = largest_difference(&got, &want);
        assert!(off < 1e-3, "{name}: {off}");
        let plain = logits(None, demo("model").as_ref());
        let moved = plain.iter().zip(&got).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
        assert!(moved > 0.1, "{name}: the adapter does nothing ({moved})");
        let again = refused(&args, 1);
        assert!(again.contains("has files already"), "{again}");
    }
}

/// Logits at the last exit of a run, or of a model alone, in f32.
fn logits(run: Option<&Path>, model: &Path) -> Vec<f32> {
    let source = Source::open(model).expect("a model");
    let tuned = match run {
        Some(run) => Tuned::run(run, &source.config).expect("a run"),
        None => Tuned::default(),
    };
    let formats = source.formats(None, None).expect("formats");
    let mut job = source.job(formats, 1, 24);
    tuned.apply(&mut job);
    let model = tuned.load(&cpu(), &source, &job, &mut |_| ()).expect("a model");
    let ids = (0..24).map(|i| (i * 7 + 3) % 200).collect();
    model.all_logits(&Batch::new(ids, 24)).expect("logits")
}
