//! Devices that fail on purpose, at the start, in forward, in backward, in the optimizer and in a
//! checkpoint: the run ends like one without a fault, or stops with a sentence and can be resumed.

use std::path::Path;
use std::process::{Command, Output};

use edge_tests::gpu;
use serde_json::Value;
use tempfile::TempDir;

use crate::commands::{demo, program};
use crate::resume::results;

/// Places of a step, an op or what else the device is asked for, and how often until it fails: in
/// the second step or later.
const PLACES: [(&str, &str); 7] = [
    ("start", "buffer:25"),
    ("forward", "residual_rms_norm:24"),
    ("attention", "attention_forward:24"),
    ("loss", "cross_entropy_forward:14"),
    ("backward", "attention_backward_q:8"),
    ("optimizer", "adamw:4"),
    ("checkpoint", "read:60"),
];

/// Runs `tune` with faults.
fn tune(out: &Path, device: &str, faults: &str, more: &[&str]) -> Output {
    let fixed = "tune --steps 6 --batch-size 2 --seq-len 16 --windows 2 --lr 1e-2 --semantics \
                 progressive --window-shares 1,1 --val-fraction 0.02 --checkpoint-every 2 --json";
    let mut command = Command::new(program());
    command.args(fixed.split_whitespace()).args(more).env("EDGE_FAULT", faults);
    command.args(["--model", &demo("model"), "--data", &demo("valid.txt"), "--device", device]);
    command.arg("--out").arg(out).output().expect("the program starts")
}

fn text(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

#[test]
fn a_run_survives_a_device_that_fails() {
    let dir = TempDir::new().expect("a folder");
    let gpu = gpu().map(|device| device.info().name.clone());
    let devices = [Some("cpu".to_owned()), gpu];
    for device in devices.iter().flatten() {
        let whole = dir.path().join(format!("whole on {}", device == "cpu"));
        assert!(tune(&whole, device, "", &[]).status.success());
        let want = results(&whole);
        // Where shaders are compiled, a run takes long.
        let kinds = if device == "cpu" { &["lost", "hang", "driver"][..] } else { &["lost"] };
        for kind in kinds {
            for (name, place) in PLACES {
                let out = dir.path().join(format!("{kind} in {name} on {}", device == "cpu"));
                let output = tune(&out, device, &format!("{kind}@{place}"), &[]);
                let said = text(&output);
                assert!(output.status.success(), "{kind} in {name} on {device}: {said}");
                assert!(said.contains("the device is opened again"), "{kind} {name}: {said}");
                assert!(results(&out) == want, "{kind} in {name} on {device} ends otherwise");
            }
        }
    }
}

#[test]
fn a_device_that_fails_each_time_ends_the_run_which_can_be_resumed() {
    let dir = TempDir::new().expect("a folder");
    let (whole, out) = (dir.path().join("whole"), dir.path().join("run"));
    assert!(tune(&whole, "cpu", "", &[]).status.success());
    let faults = "lost@adamw:2,lost@adamw:3,lost@adamw:4,lost@adamw:5";
    let output = tune(&out, "cpu", faults, &[]);
    let said = text(&output);
    assert_eq!(output.status.code(), Some(1), "{said}");
    let last = said.lines().last().expect("a line");
    assert!(last.starts_with("error: the device failed 4 times"), "{said}");
    assert!(last.contains("--resume") && last.contains("the device was lost"), "{said}");
    let shown = out.display().to_string();
    let resumed = Command::new(program()).args(["tune", "--resume", &shown]).output();
    assert!(resumed.expect("the program starts").status.success());
    assert!(results(&out) == results(&whole));
}

#[test]
fn a_device_that_fails_while_blocks_are_streamed_is_survived() {
    let dir = TempDir::new().expect("a folder");
    let (whole, out) = (dir.path().join("whole"), dir.path().join("run"));
    let more = ["--method", "lora", "--plan", "resident=2,slots=1"];
    assert!(tune(&whole, "cpu", "", &more).status.success());
    let output = tune(&out, "cpu", "hang@upload:60", &more);
    let said = text(&output);
    assert!(output.status.success() && said.contains("the device is opened again"), "{said}");
    assert!(results(&out) == results(&whole));
}

#[test]
fn a_device_without_memory_ends_the_run_before_it_begins() {
    let dir = TempDir::new().expect("a folder");
    let out = dir.path().join("run");
    let output = tune(&out, "cpu", "memory@buffer:20", &[]);
    let said = text(&output);
    assert_eq!(output.status.code(), Some(1), "{said}");
    assert!(said.lines().last().expect("a line").contains("no device memory for buffer"), "{said}");
    assert!(!out.exists());
    let wrong = tune(&out, "cpu", "explodes@read:1", &[]);
    assert!(text(&wrong).contains("EDGE_FAULT is 'explodes@read:1'"), "{}", text(&wrong));
}

#[test]
fn a_shader_that_is_refused_has_a_substitute() {
    let Some(device) = gpu() else { return };
    let device = device.info().name.clone();
    let dir = TempDir::new().expect("a folder");
    let run = |name: &str, faults: &str| -> (f64, Value) {
        let output = tune(&dir.path().join(name), &device, faults, &["--profile"]);
        assert!(output.status.success(), "{name}: {}", text(&output));
        let line = String::from_utf8(output.stdout).expect("UTF-8");
        let report: Value =
            serde_json::from_str(line.lines().last().expect("a line")).expect("a report");
        let ops = report["profile"]["ops"].as_array().expect("ops");
        let op = ops.iter().find(|row| row["op"] == "matmul_nt_lora").expect("the op");
        (report["train_loss"].as_f64().expect("a loss"), op["variants"].clone())
    };
    let ((whole, first), (other, second)) =
        (run("whole", ""), run("refused", "shader@matmul_nt_lora:1"));
    assert_ne!(first, second, "other variants ran");
    assert!((whole - other).abs() < 1e-3 * whole, "{whole} {other}");
}

/// What a self-test finds wrong is left alone by every later run on the device.
// On Windows no variable says where the cache is.
#[cfg(not(windows))]
#[test]
fn a_kernel_that_answers_wrongly_is_replaced_and_remembered() {
    let Some(device) = gpu() else { return };
    let device = device.info().name.clone();
    let dir = TempDir::new().expect("a folder");
    let run = |faults: &str, args: &[&str]| {
        let mut command = Command::new(program());
        command.args(args).args(["--device", &device, "--json"]).env("EDGE_FAULT", faults);
        // The driver's compiled shaders stay where they are.
        if let Some(home) = std::env::home_dir() {
            command.env("MESA_SHADER_CACHE_DIR", home.join(".cache"));
        }
        // What is found is not to be remembered in the user's own cache, on macOS below HOME.
        command.env("XDG_CACHE_HOME", dir.path()).env("HOME", dir.path());
        command.output().expect("the program starts")
    };
    let report = |output: &Output| -> Value {
        assert!(output.status.success(), "{}", text(output));
        let out = String::from_utf8_lossy(&output.stdout);
        serde_json::from_str(out.lines().last().expect("a line")).expect("a report")
    };
    let found = run("wrong@rms_norm_forward:1", &["devices", "--selftest"]);
    let said = text(&found);
    assert!(said.contains("REPLACED") && said.contains("no run uses it"), "{said}");
    let list = &report(&found)["devices"][0]["selftest"];
    assert_eq!(list["wrong"].as_array().map(Vec::len), Some(0), "{list}");
    let replaced = list["replaced"][0].as_str().expect("a sentence");
    let names: Vec<&str> = replaced.split('\'').skip(1).step_by(2).collect();
    let [wrong, right] = names[..] else { panic!("{replaced}") };
    assert_ne!(wrong, right);
    let out = dir.path().join("run").display().to_string();
    let fixed = "tune --steps 1 --batch-size 1 --seq-len 16 --val-fraction 0.02 --profile --method \
                 lora --out";
    let (model, data) = (demo("model"), demo("valid.txt"));
    let mut args: Vec<&str> = fixed.split_whitespace().collect();
    args.extend([out.as_str(), "--model", &model, "--data", &data]);
    let profile = report(&run("", &args))["profile"]["ops"].clone();
    let ops = profile.as_array().expect("ops");
    let norm = ops.iter().find(|row| row["op"] == "rms_norm_forward").expect("the op");
    let ran: Vec<&str> =
        norm["variants"].as_array().into_iter().flatten().filter_map(Value::as_str).collect();
    assert_eq!(ran, [format!("f32 {right}")], "{replaced}");
}
