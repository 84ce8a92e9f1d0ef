//! The program as a person runs it, on the bundled demo model: what it writes, and how it refuses
//! bad input: one sentence that names the culprit, exit code 1 or 2, nothing left behind.

use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::OnceLock;

use serde_json::Value;
use tempfile::TempDir;

/// The program, built once.
pub(crate) fn program() -> &'static Path {
    static PROGRAM: OnceLock<PathBuf> = OnceLock::new();
    PROGRAM.get_or_init(|| {
        let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
        let build =
            Command::new(cargo).args(["tested", "edge-runtime"]).current_dir(root()).status();
        assert!(build.expect("cargo runs").success(), "the program does not build");
        // These tests lie in `release/deps/` or `debug/deps/` of the same folder.
        let tests = std::env::current_exe().expect("a path of this program");
        let target = tests.ancestors().nth(3).expect("tests lie in a folder of cargo's");
        target.join("release").join(format!("edge-runtime{}", std::env::consts::EXE_SUFFIX))
    })
}

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

pub(crate) fn demo(file: &str) -> String {
    root().join("crates/edge-runtime/demo").join(file).display().to_string()
}

pub(crate) fn run(args: &[&str]) -> Output {
    Command::new(program()).args(args).output().expect("the program starts")
}

/// Runs what must fail; returns its stderr.
pub(crate) fn refused(args: &[&str], code: i32) -> String {
    let output = run(args);
    let text = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(code), "{args:?}: {text}");
    assert!(!text.contains("panicked"), "{args:?}: {text}");
    text
}

fn copy_model(to: &Path) {
    for name in ["config.json", "tokenizer.json", "tokenizer_config.json", "model.safetensors"] {
        std::fs::copy(demo(&format!("model/{name}")), to.join(name)).expect("a copy");
    }
}

/// Tunes on a given folder with few steps into `out`.
fn tune<'a>(model: &'a str, data: &'a str, out: &'a str) -> Vec<&'a str> {
    vec![
        "tune",
        "--model",
        model,
        "--data",
        data,
        "--out",
        out,
        "--device",
        "cpu",
        "--steps",
        "2",
        "--batch-size",
        "2",
        "--seq-len",
        "32",
        "--lr",
        "1e-3",
        "--json",
    ]
}

#[test]
fn each_method_writes_a_run_that_can_be_used() {
    let dir = TempDir::new().expect("a folder");
    let (model, data) = (demo("model"), demo("valid.txt"));
    for (method, files) in [
        ("lora", &["adapter_config.json", "adapter_model.safetensors"][..]),
        ("edge", &["adapter_config.json", "adapter_model.safetensors", "exits.json"]),
        ("full", &["model.safetensors", "config.json", "tokenizer.json"]),
    ] {
        let out = dir.path().join(method);
        let out = out.to_str().expect("UTF-8");
        let mut args = tune(&model, &data, out);
        args.extend(["--method", method]);
        let output = run(&args);
        let errors = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{method}: {errors}");
        let text = String::from_utf8(output.stdout).expect("UTF-8");
        let report: Value =
            serde_json::from_str(text.lines().last().expect("a line")).expect("JSON");
        assert_eq!(report["method"], method);
        assert_eq!(report["steps"], 2);
        let (peak, planned) =
            (&report["peak_device_bytes"], &report["predicted_peak_device_bytes"]);
        assert_eq!(peak, planned, "{method}: the plan is exact");
        let common = ["config.resolved.yaml", "metrics.jsonl", "README.md", "result.json"];
        for file in files.iter().chain(&common) {
            assert!(Path::new(out).join(file).is_file(), "{method} wrote no {file}");
        }
        // The loss that tune saw is the loss that eval sees of what tune wrote.
        let args = ["eval", "--run", out, "--data", &data, "--device", "cpu", "--json"];
        let seen = run(&args);
        let errors = String::from_utf8_lossy(&seen.stderr).into_owned();
        assert!(seen.status.success(), "{method}: {errors}");
        let line = String::from_utf8(seen.stdout).expect("UTF-8");
        let seen: Value = serde_json::from_str(line.trim()).expect("JSON");
        assert!(seen["loss"].as_f64().is_some_and(f64::is_finite));
        let prompt = ["generate", "--run", out, "--device", "cpu", "--prompt", "The", "--quiet"];
        let text = run(&[&prompt[..], &["--max-new-tokens", "4"]].concat());
        assert!(text.status.success(), "{}", String::from_utf8_lossy(&text.stderr));
        assert!(String::from_utf8_lossy(&text.stdout).starts_with("The"));
    }
}

#[test]
fn a_profile_adds_up_to_the_steps() {
    let dir = TempDir::new().expect("a folder");
    let (model, data, out) = (demo("model"), demo("valid.txt"), dir.path().join("run"));
    let mut args = tune(&model, &data, out.to_str().expect("UTF-8"));
    args.extend(["--profile", "--optimizer", "adamw-8bit", "--method", "lora"]);
    let output = run(&args);
    let table = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.success(), "{table}");
    assert!(table.contains("time of 2 steps by op"), "{table}");
    let text = String::from_utf8(output.stdout).expect("UTF-8");
    let report: Value = serde_json::from_str(text.lines().last().expect("a line")).expect("JSON");
    let profile = &report["profile"];
    let ops = profile["ops"].as_array().expect("ops");
    let calls = |name: &str| {
        let row = ops.iter().find(|row| row["op"] == name);
        row.map_or(0, |row| row["calls"].as_u64().expect("calls"))
    };
    // Two steps, one arena. Validation also takes losses, which must not be counted.
    assert_eq!((calls("adamw_8bit"), calls("adamw")), (2, 0));
    assert_eq!(calls("cross_entropy_loss"), 2);
    let shares = |rows: &Value| -> f64 {
        rows.as_array().expect("rows").iter().filter_map(|row| row["share"].as_f64()).sum()
    };
    assert!((0.2..1.01).contains(&shares(&profile["ops"])), "{profile}");
    assert!((0.99..1.01).contains(&shares(&profile["families"])), "{profile}");
}

#[test]
fn an_existing_run_is_not_overwritten() {
    let dir = TempDir::new().expect("a folder");
    let out = dir.path().join("run");
    std::fs::create_dir(&out).expect("a folder");
    std::fs::write(out.join("precious.txt"), "mine").expect("a file");
    let text = refused(&tune(&demo("model"), &demo("valid.txt"), out.to_str().expect("UTF-8")), 1);
    assert!(text.contains("run"), "{text}");
    assert_eq!(std::fs::read_to_string(out.join("precious.txt")).expect("kept"), "mine");
    assert_eq!(std::fs::read_dir(&out).expect("a folder").count(), 1);
}

#[test]
fn damaged_models_are_named() {
    let dir = TempDir::new().expect("a folder");
    let model = dir.path().to_str().expect("UTF-8");
    let (data, out) = (demo("valid.txt"), dir.path().join("run"));
    let out = out.to_str().expect("UTF-8");
    let args = tune(model, &data, out);
    let expect = |names: &[&str]| {
        let text = refused(&args, 1);
        for name in names {
            assert!(text.contains(name), "no {name} in: {text}");
        }
        assert_eq!(text.trim().lines().filter(|line| line.starts_with("error")).count(), 1);
        assert!(!Path::new(out).join("adapter_model.safetensors").exists());
    };
    expect(&["config.json"]);
    copy_model(dir.path());
    let weights = dir.path().join("model.safetensors");
    let bytes = std::fs::read(&weights).expect("weights");
    std::fs::write(&weights, &bytes[..bytes.len() / 2]).expect("a cut file");
    expect(&["model.safetensors"]);
    std::fs::remove_file(&weights).expect("removed");
    expect(&["model.safetensors"]);
    std::fs::write(&weights, &bytes).expect("restored");
    let config = std::fs::read_to_string(dir.path().join("config.json")).expect("a config");
    let mut value: Value = serde_json::from_str(&config).expect("JSON");
    value["intermediate_size"] = 353.into();
    std::fs::write(dir.path().join("config.json"), value.to_string()).expect("a config");
    expect(&["gate_proj", "353"]);
    value["architectures"] = serde_json::json!(["MambaForCausalLM"]);
    std::fs::write(dir.path().join("config.json"), value.to_string()).expect("a config");
    expect(&["MambaForCausalLM", "LlamaForCausalLM"]);
}

#[test]
fn unusable_data_and_options_are_named() {
    let dir = TempDir::new().expect("a folder");
    let model = demo("model");
    let out = dir.path().join("run");
    let out = out.to_str().expect("UTF-8");
    let file = |name: &str, bytes: &[u8]| {
        let path = dir.path().join(name);
        std::fs::write(&path, bytes).expect("a file");
        path.to_str().expect("UTF-8").to_string()
    };
    for (data, named) in [
        (file("empty.txt", b""), "empty.txt"),
        (file("latin1.txt", b"caf\xe9 and more"), "latin1.txt"),
        (file("lines.jsonl", b"{\"text\": \"fine\"}\n{\"body\": \"not\"}\n"), "2"),
        (dir.path().join("absent.txt").display().to_string(), "absent.txt"),
    ] {
        let text = refused(&tune(&model, &data, out), 1);
        assert!(text.contains(named), "no {named} in: {text}");
    }
    let valid = demo("valid.txt");
    let with = |extra: &[&str], code| {
        let mut args = tune(&model, &valid, out);
        args.extend(extra);
        refused(&args, code)
    };
    assert!(with(&["--method", "magic"], 2).contains("magic"));
    let mut args = tune(&model, &valid, out);
    let device = args.iter().position(|arg| *arg == "cpu").expect("a device");
    args[device] = "no-such-gpu";
    assert!(refused(&args, 1).contains("no-such-gpu"));
    assert!(with(&["--windows", "99"], 1).contains("99"));
    assert!(with(&["--memory-budget", "1KiB"], 3).contains("--memory-budget"));
    let long = ["eval", "--model", &model, "--data", &valid, "--seq-len", "99999"];
    assert!(refused(&long, 1).contains("99999"));
}
