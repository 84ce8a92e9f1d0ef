//! `plan` and memory budgets as a person meets them.

use std::path::Path;

use serde_json::Value;
use tempfile::TempDir;

use crate::commands::{demo, refused, run};

/// The demo model in 16 bits, whose blocks can be streamed as they are, on a device that is not
/// here.
fn flags<'a>(more: &[&'a str]) -> Vec<&'a str> {
    let mut all = vec!["plan", "--device-profile", "raspberry-pi-5", "--method", "lora", "--json"];
    all.extend(["--batch-size", "4", "--seq-len", "32"]);
    all.extend(more);
    all
}

fn report(args: &[&str], code: i32) -> (Value, String) {
    let output = run(args);
    let stderr = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(code), "{stderr}");
    let stdout = String::from_utf8(output.stdout).expect("text");
    (serde_json::from_str(stdout.lines().last().expect("a line")).expect("JSON"), stderr)
}

fn bytes(report: &Value) -> u64 {
    report["predicted_peak_device_bytes"].as_u64().expect("bytes")
}

#[test]
fn a_plan_says_what_a_run_takes_and_what_fits() {
    let dir = TempDir::new().expect("a folder");
    let trace = dir.path().join("trace.json").display().to_string();
    let (whole, text) = report(&flags(&["--trace", &trace]), 0);
    assert_eq!((&whole["fits"], &whole["order"]), (&Value::Bool(true), &Value::from("rows")));
    assert_eq!(whole["streamed_blocks"], 0);
    let parts = whole["predicted_peak_device_bytes_by_category"].as_object().expect("categories");
    let sum: u64 = parts.values().filter_map(Value::as_u64).sum();
    assert_eq!(sum, bytes(&whole));
    assert!(text.contains("VideoCore") && text.contains("in all"), "{text}");
    let events = std::fs::read_to_string(&trace).expect("a trace");
    let events: Vec<Value> = serde_json::from_str(&events).expect("JSON");
    assert!(events.iter().any(|event| event["name"] == "loss, micro-batch 0"));

    let (least, _) = report(&flags(&["--goal", "memory"]), 0);
    assert!(bytes(&least) < bytes(&whole));
    assert!(least["streamed_blocks"].as_u64() > Some(0), "{least}");
    let budget = ((bytes(&least) + bytes(&whole)) / 2).to_string();
    let (within, _) = report(&flags(&["--memory-budget", &budget]), 0);
    assert!(bytes(&within) <= budget.parse::<u64>().expect("bytes"));
    let time = |report: &Value| report["predicted_step_ms"].as_f64().expect("a time");
    assert!(time(&whole) <= time(&within) && time(&within) <= time(&least));

    let (misfit, text) = report(&flags(&["--memory-budget", "100000"]), 3);
    assert_eq!((&misfit["fits"], bytes(&misfit)), (&Value::Bool(false), bytes(&least)));
    assert!(text.contains("nothing fits 0.1 MiB"), "{text}");
}

#[test]
fn parts_of_a_plan_can_be_fixed() {
    let fixed = "path=columns,resident=2,slots=1,ahead=off";
    let (report, _) = report(&flags(&["--micro-batch", "1", "--plan", fixed]), 0);
    assert_eq!((&report["order"], &report["recompute"]), (&"columns".into(), &true.into()));
    assert_eq!((&report["slots"], &report["resident_blocks"]), (&1.into(), &2.into()));
    let text = refused(&flags(&["--plan", "path=up"]), 2);
    assert!(text.contains("path=rows|mixed|columns"), "{text}");
    let one = ["--micro-batch", "4", "--plan", "path=mixed"];
    let text = refused(&flags(&one), 2);
    assert!(text.contains("no schedule with --plan path=mixed"), "{text}");
    let text = refused(&flags(&["--bits", "4", "--plan", "resident=1"]), 2);
    assert!(text.contains("weights lie in the file"), "{text}");
    let text = refused(&["plan", "--device-profile", "abacus"], 2);
    assert!(text.contains("apple-m2"), "{text}");
}

#[test]
fn the_papers_claim_is_printed_beside_what_it_comes_to() {
    let output = run(&["plan", "--paper"]);
    let text = String::from_utf8_lossy(&output.stdout);
    assert_eq!(output.status.code(), Some(0));
    for word in ["2.92", "depth", "exit", "bits", "sparsity", "scheduling"] {
        assert!(text.contains(word), "{word}: {text}");
    }
}

/// A run within a budget that not all blocks fit is the run without one.
#[test]
fn a_budget_streams_blocks_and_changes_no_bit() {
    let dir = TempDir::new().expect("a folder");
    let path = |name: &str| dir.path().join(name).display().to_string();
    let tune = |out: &str, plan: &str| {
        let (out, data) = (path(out), demo("train.txt"));
        let flags = ["tune", "--method", "lora", "--data", &data, "--out", &out, "--device", "cpu"];
        let more = ["--steps", "3", "--batch-size", "2", "--seq-len", "32", "--lr", "1e-3"];
        let plan = ["--micro-batch", "1", "--plan", plan, "--json", "--trace"];
        report(&[&flags[..], &more, &plan].concat(), 0).0
    };
    let streamed = tune("streamed", "path=mixed,recompute=off,resident=1,slots=2");
    let resident = tune("resident", "path=mixed,recompute=off,resident=6");
    assert_eq!(streamed["val_loss"], resident["val_loss"]);
    let adapter = |out: &str| {
        std::fs::read(Path::new(&path(out)).join("adapter_model.safetensors")).expect("an adapter")
    };
    assert!(adapter("streamed") == adapter("resident"));
    let peak = |report: &Value| report["peak_device_bytes"].as_u64().expect("bytes");
    assert!(peak(&streamed) < peak(&resident));
    assert_eq!(streamed["peak_device_bytes"], streamed["predicted_peak_device_bytes"]);
    assert!(streamed["streaming"]["loads"].as_u64() > Some(0), "{streamed}");
    let timeline = std::fs::read_to_string(Path::new(&path("streamed")).join("timeline.json"));
    let events: Vec<Value> = serde_json::from_str(&timeline.expect("a timeline")).expect("JSON");
    let named = |name: &str| events.iter().filter(|event| event["args"]["name"] == name).count();
    assert_eq!((named("measured"), named("predicted")), (1, 1));

    // The same weights through the same slots at inference, and a budget that nothing fits.
    let adapter = path("streamed");
    let eval = |budget: &'static str| {
        let flags = ["eval", "--adapter", &adapter, "--data", &demo("valid.txt"), "--json"];
        let more = ["--seq-len", "32", "--max-windows", "4", "--device", "cpu"];
        let model = demo("model");
        let args = [&flags[..], &more, &["--model", &model, "--memory-budget", budget]].concat();
        let output = run(&args);
        let stdout = String::from_utf8_lossy(&output.stdout).into_owned();
        (output.status.code(), stdout.lines().last().map(str::to_owned))
    };
    let loss = |(code, line): (Option<i32>, Option<String>)| {
        assert_eq!(code, Some(0));
        let report: Value = serde_json::from_str(&line.expect("a line")).expect("JSON");
        report["loss"].as_f64().expect("a loss")
    };
    assert_eq!(loss(eval("1GiB")), loss(eval("2500KiB")));
    assert_eq!(eval("1KiB").0, Some(3));
}
