//! `compare` as a person runs it: what it writes, and how it refuses bad input.

use std::path::Path;

use serde_json::Value;
use tempfile::TempDir;

use crate::commands::{demo, refused, run};

/// The demo model on the `cpu` device with tiny budgets, into `out`.
fn compare<'a>(model: &'a str, data: &'a str, out: &'a str) -> Vec<&'a str> {
    let common = "--device cpu --batch-size 2 --seq-len 32 --lr 1e-3 --windows 2 --evals 2 --json";
    let mut args = vec!["compare", "--model", model, "--data", data, "--out", out];
    args.extend(common.split(' '));
    args
}

#[test]
fn methods_are_compared_under_both_budgets() {
    let dir = TempDir::new().expect("a folder");
    let (model, data, out) = (demo("model"), demo("valid.txt"), dir.path().join("out"));
    let out = out.to_str().expect("UTF-8");
    let mut args = compare(&model, &data, out);
    // 4 steps of 64 tokens. The last method has no room: it fails, and the others go on.
    let own = "--methods lora,edge,one=edge,full --seeds 0,7 --max-tokens 256 \
               --set one.semantics=progressive --set one.rank=4 --set full.memory-budget=1KiB";
    args.extend(own.split_whitespace());
    let output = run(&args);
    let errors = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{errors}");
    assert!(errors.contains("[16/16]") && errors.contains("loss difference"), "{errors}");
    let text = String::from_utf8(output.stdout).expect("UTF-8");
    let report: Value = serde_json::from_str(text.lines().last().expect("a line")).expect("JSON");
    let runs = report["methods"].as_array().expect("runs");
    // Four methods, two seeds, two budgets.
    assert_eq!((runs.len(), report["failed"].as_u64()), (16, Some(4)));
    let mut peaks = std::collections::BTreeMap::new();
    for run in runs {
        let (method, budget) = (run["method"].as_str().expect("a name"), &run["budget"]);
        if method == "full" {
            assert!(run["error"].as_str().expect("a sentence").contains("--memory-budget"));
            continue;
        }
        assert!(run["error"].is_null(), "{run}");
        let curve = run["curve"].as_array().expect("a curve");
        assert!(curve.len() >= 2 && curve[0]["tokens"] == 0, "{run}");
        assert_eq!(curve.last().expect("a point")["tokens"], run["tokens"]);
        if budget == "tokens" {
            assert_eq!((run["tokens"].as_u64(), run["steps"].as_u64()), (Some(256), Some(4)));
            // Before, in the middle, after.
            assert_eq!(curve.len(), 3);
        } else {
            let limit = report["max_seconds"].as_f64().expect("a limit");
            assert!(run["seconds"].as_f64().expect("a time") >= limit);
        }
        assert_eq!(run["vote_val_loss"].is_null(), method == "lora");
        // A run's peak is its own, whatever ran before it.
        let peak = run["peak_device_bytes"].as_u64().expect("bytes");
        let result = Path::new(run["run_dir"].as_str().expect("a folder")).join("result.json");
        let result = std::fs::read_to_string(result).expect("a result");
        let result: Value = serde_json::from_str(&result).expect("JSON");
        assert_eq!(result["predicted_peak_device_bytes"].as_u64(), Some(peak), "{method}");
        assert_eq!(*peaks.entry(method.to_owned()).or_insert(peak), peak, "{method}");
    }
    assert!(peaks["one"] < peaks["edge"], "its rank is smaller: {peaks:?}");
    for ratio in ["speed_ratio", "memory_ratio", "quality_ratio"] {
        assert!(report[ratio].as_f64().is_some_and(|ratio| ratio > 0.0), "{ratio}");
    }
    let kept = std::fs::read_to_string(Path::new(out).join("compare.json")).expect("a report");
    assert_eq!(serde_json::from_str::<Value>(&kept).expect("JSON"), report);
    let page = std::fs::read_to_string(Path::new(out).join("compare.html")).expect("a page");
    assert!(page.matches("<svg").count() == 4 && page.contains("class=\"failed\""));
    // What is there is not overwritten.
    let text = refused(&compare(&model, &data, out), 1);
    assert!(text.contains("has files already"), "{text}");
}

#[test]
fn what_cannot_be_compared_is_refused() {
    let dir = TempDir::new().expect("a folder");
    let (model, data, out) = (demo("model"), demo("valid.txt"), dir.path().join("out"));
    let out = out.to_str().expect("UTF-8");
    for (own, code, named) in [
        ("--methods lora,dora", 1, "dora"),
        ("--seeds 0,x", 1, "--seeds"),
        ("--set edge.rnak=4", 1, "edge.rnak"),
        ("--set full.rank=4", 1, "full"),
        ("--set edge.seq-len=4", 1, "edge.seq-len"),
        ("--val-fraction 0", 1, "--val-fraction"),
        ("--set edge.windows=99", 1, "--windows"),
        ("--steps 3", 2, "--max-tokens"),
        ("--methods edge", 2, "--max-seconds"),
        ("--budget seconds", 2, "--max-seconds"),
    ] {
        let mut args = compare(&model, &data, out);
        args.extend(own.split(' '));
        let text = refused(&args, code);
        assert!(text.contains(named) && text.trim().lines().count() == 1, "{own}: {text}");
        assert!(!Path::new(out).exists(), "{own}: something was left behind");
    }
}
