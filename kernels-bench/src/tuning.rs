//! Short runs of tuning for a record: `edge-runtime compare` on the bundled model and text, and
//! what it reports of each method.

use std::path::Path;
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail, ensure};
use serde_json::Value;

use crate::measure::{Better, Measure};

/// Name of the case in records: a change of [`ARGUMENTS`] is another case.
const CASE: &str = "demo_2x64_2048_tokens";

/// Few tokens, since a software driver runs them too; the first method is what the others are
/// compared with. What `edge` is, is said, so that other defaults do not change what is recorded.
const ARGUMENTS: &str = "--model crates/edge-runtime/demo/model \
    --data crates/edge-runtime/demo/valid.txt --methods lora,edge --windows 2 --seeds 0 \
    --rank 8 --set edge.semantics=stacked \
    --max-tokens 2048 --batch-size 2 --seq-len 64 --lr 1e-3 --evals 1 --quiet";

/// The seed in [`ARGUMENTS`].
const SEED: u64 = 0;

/// The method that ratios are to.
const VANILLA: &str = "lora";

/// Tunes by each method with the program at `program` on a device, and returns speeds, peaks,
/// losses and the ratios to vanilla LoRA.
///
/// # Errors
/// The program cannot be started or fails: its last words are in the error.
pub fn measures(program: &Path, device: &str) -> Result<Vec<Measure>> {
    let out = std::env::temp_dir().join(format!("edge-bench-{}", std::process::id()));
    let mut command = Command::new(program);
    command.args(["compare", "--json", "--device", device]).args(ARGUMENTS.split_whitespace());
    command.arg("--out").arg(&out).stdin(Stdio::null());
    let output = command
        .output()
        .with_context(|| format!("{} cannot be started: build edge-runtime", program.display()));
    // Only the numbers are wanted, and what cannot be removed is in the folder for such things.
    let _ = std::fs::remove_dir_all(&out);
    let output = output?;
    if !output.status.success() {
        let text = String::from_utf8_lossy(&output.stderr);
        let last = text.lines().rev().find(|line| !line.trim().is_empty()).unwrap_or("no message");
        bail!("`edge-runtime compare` failed ({}): {last}", output.status);
    }
    let text = String::from_utf8_lossy(&output.stdout);
    let line = text.lines().rev().find(|line| line.starts_with('{'));
    let line = line.context("`edge-runtime compare --json` printed no JSON")?;
    let report = serde_json::from_str(line).context("what `edge-runtime compare` printed")?;
    parse(&report, device)
}

/// The measures in what `compare --json` prints.
fn parse(report: &Value, device: &str) -> Result<Vec<Measure>> {
    let repeat = format!(
        "cargo run --release -p edge-runtime -- compare --device '{device}' {ARGUMENTS} --out DIR"
    );
    let runs = report["methods"].as_array().context("`methods` is missing")?;
    let runs: Vec<&Value> = runs.iter().filter(|run| run["budget"] == "tokens").collect();
    let vanilla = runs.iter().find(|run| run["method"] == VANILLA);
    let vanilla = vanilla.with_context(|| format!("method {VANILLA} is missing"))?;
    let mut found = Vec::new();
    for run in &runs {
        let method = run["method"].as_str().context("`method` is missing")?;
        ensure!(run["error"].is_null(), "method {method} failed: {}", run["error"]);
        let measure =
            |(kind, unit, better): (&str, &str, Better), metric: &str, value: f64| Measure {
                kind: kind.into(),
                op: "compare".into(),
                format: method.into(),
                shape: CASE.into(),
                metric: metric.into(),
                value,
                unit: unit.into(),
                better,
                repeat: repeat.clone(),
                seed: Some(SEED),
            };
        let bytes = ("tuning", "B", Better::Lower);
        let loss = ("quality", "nats", Better::Lower);
        let ratio = ("tuning", "", Better::Higher);
        for (kind, metric) in [
            (("tuning", "1/s", Better::Higher), "tokens_per_second"),
            (bytes, "peak_device_bytes"),
            (loss, "val_loss"),
            (loss, "best_exit_val_loss"),
        ] {
            let value = number(run, metric).with_context(|| format!("method {method}"))?;
            found.push(measure(kind, metric, value));
        }
        // One exit has no vote.
        if let Ok(value) = number(run, "vote_val_loss") {
            found.push(measure(loss, "vote_val_loss", value));
        }
        let categories = run["peak_device_bytes_by_category"].as_object();
        for (category, value) in categories.context("the peak by category is missing")? {
            let value = value.as_f64().context("a peak is no number")?;
            found.push(measure(bytes, &format!("peak_{category}_bytes"), value));
        }
        if method != VANILLA {
            let speed = number(run, "tokens_per_second")? / number(vanilla, "tokens_per_second")?;
            found.push(measure(ratio, "speed_ratio_to_lora", speed));
            let memory = number(vanilla, "peak_device_bytes")? / number(run, "peak_device_bytes")?;
            found.push(measure(ratio, "memory_ratio_to_lora", memory));
        }
    }
    Ok(found)
}

fn number(run: &Value, key: &str) -> Result<f64> {
    run[key].as_f64().with_context(|| format!("`{key}` is missing or no number"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn run(method: &str, speed: f64, peak: f64) -> Value {
        json!({"method": method, "budget": "tokens", "error": null, "tokens_per_second": speed,
               "peak_device_bytes": peak, "val_loss": 3.0, "best_exit_val_loss": 2.5,
               "vote_val_loss": null, "peak_device_bytes_by_category": {"weights": 5.0}})
    }

    #[test]
    fn ratios_are_to_vanilla_and_above_one_where_it_loses() {
        let mut timed = run("edge", 900.0, 1.0);
        timed["budget"] = json!("seconds");
        let report =
            json!({"methods": [run("edge", 300.0, 20.0), run("lora", 100.0, 50.0), timed]});
        let found = parse(&report, "cpu").expect("complete");
        let value = |method: &str, metric: &str| {
            let mut all = found.iter().filter(|one| one.format == method && one.metric == metric);
            let value = all.next().map(|one| one.value);
            assert!(all.next().is_none(), "{method} {metric} twice");
            value
        };
        assert_eq!(value("edge", "speed_ratio_to_lora"), Some(3.0));
        assert_eq!(value("edge", "memory_ratio_to_lora"), Some(2.5));
        assert_eq!(value("lora", "speed_ratio_to_lora"), None);
        assert_eq!(value("edge", "peak_weights_bytes"), Some(5.0));
        assert_eq!(value("edge", "vote_val_loss"), None);
        assert!(found.iter().all(|one| one.repeat.contains("--seeds 0") && one.seed == Some(0)));
    }

    #[test]
    fn a_method_that_failed_is_named() {
        let mut failed = run("edge", 1.0, 1.0);
        failed["error"] = json!("out of memory");
        let report = json!({"methods": [run("lora", 1.0, 1.0), failed]});
        let error = parse(&report, "cpu").expect_err("edge failed");
        assert_eq!(error.to_string(), "method edge failed: \"out of memory\"");
        assert!(parse(&json!({"methods": [run("edge", 1.0, 1.0)]}), "cpu").is_err());
    }

    #[test]
    fn a_program_that_is_not_there_is_named() {
        let error = measures(Path::new("no/such/program"), "cpu").expect_err("not there");
        assert!(error.to_string().contains("no/such/program"), "{error}");
    }
}
