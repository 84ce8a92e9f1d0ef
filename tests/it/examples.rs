//! Data with answers: the head on the rows that count, and the commands that such data go through.

use std::collections::BTreeMap;

use edge_kernels::Format;
use edge_runtime::batch::{Batch, IGNORE};
use edge_runtime::exits::Vote;
use edge_runtime::tune::trainer::{AdamW, Trainer};
use edge_scheduler::{Job, Trained};
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::commands::{demo, refused, run};
use crate::model::{batch, devices, lora, tiny};

/// The batch with the targets of these rows alone.
pub(crate) fn only(keep: impl Fn(usize) -> bool) -> Batch {
    let mut batch = batch();
    for (row, target) in batch.targets.iter_mut().enumerate().filter(|(row, _)| !keep(*row)) {
        *target = if keep(row) { *target } else { IGNORE };
    }
    batch.trained_tokens = batch.targets.iter().filter(|target| **target != IGNORE).count();
    batch
}

/// Sum of losses, count of tokens, gradients.
type Found = ([f32; 2], BTreeMap<String, Vec<f32>>);

fn gradients(trainer: &mut Trainer, window: usize, batches: &[Batch]) -> Found {
    trainer.gradients(window, batches, 46).expect("gradients");
    let loss = trainer.model.device.read_f32(&trainer.model.workspace.loss).expect("a loss");
    let found = trainer.read_gradients(window).expect("gradients");
    ([loss[0], loss[1]], found.into_iter().map(|(name, (_, values))| (name, values)).collect())
}

/// Gradients are sums over tokens, so those of some rows, which are gathered, and those of the
/// others add up to those of all, which are not.
fn check_sums(trainer: &mut Trainer, window: usize, what: &str) {
    let (all_loss, all) = gradients(trainer, window, &[batch()]);
    type Keep = fn(usize) -> bool;
    let choices: [(&str, Keep); 4] = [
        ("one row", |row| row == 30),
        ("the last rows of the second sequence", |row| row >= 41),
        ("some of both", |row| row % 3 == 1 && row < 40),
        ("one sequence", |row| row < 24),
    ];
    for (name, keep) in choices {
        let place = format!("{what}, window {window}, {name}");
        let (few, rest) = (only(keep), only(|row| !keep(row)));
        let (few_loss, few_sums) = gradients(trainer, window, std::slice::from_ref(&few));
        let (rest_loss, rest_sums) = gradients(trainer, window, std::slice::from_ref(&rest));
        assert_eq!(few_loss[1] + rest_loss[1], all_loss[1], "{place}");
        assert_eq!(few_loss[1] as usize, few.trained_tokens, "{place}");
        let sum = few_loss[0] + rest_loss[0];
        assert!((sum - all_loss[0]).abs() < 1e-5 * all_loss[0], "{place}: {sum} {all_loss:?}");
        for (tensor, want) in &all {
            let scale = want.iter().fold(0f32, |most, x| most.max(x.abs()));
            assert!(scale > 0.0, "{place}: nothing flows to {tensor}");
            let sums = few_sums[tensor].iter().zip(&rest_sums[tensor]);
            for ((few, rest), want) in sums.zip(want) {
                let error = (few + rest - want).abs();
                assert!(error <= 2e-5 * scale, "{place}, {tensor}: {few} + {rest} is not {want}");
            }
        }
        // A micro-batch without a target that counts changes nothing, bit by bit.
        let with = gradients(trainer, window, &[few.clone(), only(|_| false), rest.clone()]);
        assert!(with == gradients(trainer, window, &[few, rest]), "{place}: an empty micro-batch");
    }
}

#[test]
fn gathered_rows_have_the_gradients_of_all_rows() {
    let tiny = tiny();
    for device in devices() {
        let mut edge = tiny.edge(&device, Format::F32);
        // B starts at zero, and A then has no gradient.
        for window in 0..2 {
            edge.step(window, &[batch()], 1e-2).expect("a step");
        }
        for window in 0..2 {
            check_sums(&mut edge, window, "edge");
        }
        let job = tiny.job(Format::F32, Format::F32, Trained::Full, 1);
        let mut full = Trainer::new(tiny.load(&device, &job), AdamW::default());
        check_sums(&mut full, 0, "full");
        let job = Job { recompute: true, ..tiny.job(Format::Q8, Format::Q8, lora(), 1) };
        let mut recomputed = Trainer::new(tiny.load(&device, &job), AdamW::default());
        recomputed.step(0, &[batch()], 1e-2).expect("a step");
        check_sums(&mut recomputed, 0, "recomputed");
    }
}

#[test]
fn gathered_rows_are_evaluated_and_voted_on_alike() {
    let tiny = tiny();
    for device in devices() {
        let model = tiny.edge(&device, Format::F32).model;
        let votes = [Vote::Mean, Vote::Max, Vote::Last];
        let losses = |batches: Vec<Batch>| {
            let found = model.evaluate_all(batches.into_iter(), &votes, |_| ()).expect("losses");
            let votes = found.votes.iter().map(|voted| voted.val_loss);
            let all = found.exits.iter().copied().chain(votes);
            all.map(|loss| loss * found.tokens as f64).collect::<Vec<f64>>()
        };
        let keep = |row: usize| row % 5 == 2;
        let (few, rest) = (only(keep), only(|row| !keep(row)));
        let all = losses(vec![batch()]);
        let apart = losses(vec![few.clone(), only(|_| false), rest.clone()]);
        let sums = losses(vec![few.clone()]).into_iter().zip(losses(vec![rest]));
        for (((few, rest), apart), all) in sums.zip(apart).zip(all) {
            let sum = few + rest;
            assert!(
                (sum - all).abs() < 1e-5 * all && (apart - all).abs() < 1e-5 * all,
                "{sum} {all}"
            );
        }
        let scores = model.score_exits([few.clone()].into_iter(), || ()).expect("scores");
        let few_tokens = few.trained_tokens as f64;
        for (exit, loss) in losses(vec![few]).into_iter().take(2).enumerate() {
            assert!((scores.exit_loss(exit) - loss / few_tokens).abs() < 1e-5, "exit {exit}");
        }
    }
}

/// What a command with `--json` reports, and its stderr.
pub(crate) fn report(args: &[&str]) -> (Value, String) {
    let output = run(args);
    let errors = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.success(), "{args:?}: {errors}");
    let text = String::from_utf8(output.stdout).expect("UTF-8");
    (serde_json::from_str(text.lines().last().expect("a line")).expect("JSON"), errors)
}

/// Ten conversations in the manner of `{messages}`, of which the last has a long question.
fn conversations(dir: &TempDir) -> String {
    let talk = |question: &str, answer: &str| {
        json!({"messages": [{"role": "user", "content": question},
            {"role": "assistant", "content": answer}]})
    };
    let mut all: Vec<Value> =
        (0..9).map(|_| talk("Who is it?", "The fox is at the mill.")).collect();
    all.push(talk(&"Where does it go? ".repeat(40), "Home."));
    let path = dir.path().join("talk.json");
    std::fs::write(&path, Value::from(all).to_string()).expect("a file");
    path.display().to_string()
}

#[test]
fn conversations_are_shown_tuned_and_evaluated() {
    let dir = TempDir::new().expect("a folder");
    let (data, model) = (conversations(&dir), demo("model"));
    let look = ["data", "--model", &model, "--data", &data, "--seq-len", "64", "--json"];
    let (shown, text) = report(&look);
    assert_eq!((&shown["kind"], &shown["sequences"]), (&json!("examples"), &json!(10)));
    assert_eq!((&shown["skipped"], &shown["cut"]), (&json!(1), &json!(0)));
    let sample = shown["sample"].as_str().expect("a sample");
    assert!(sample.contains("### Assistant:\n[The fox is at the mill."), "{sample}");
    assert!(text.contains("no chat template") && text.contains("[The fox"), "{text}");
    let histogram = shown["histogram"].as_array().expect("buckets");
    let counts: Vec<u64> = histogram.iter().filter_map(|bucket| bucket["count"].as_u64()).collect();
    assert_eq!((counts[0], counts.iter().sum::<u64>()), (9, 10), "{histogram:?}");
    let bar = format!("{} ", 9) + &"#".repeat(40);
    assert!(text.contains(&bar) && text.contains("left out, since no answer"), "{text}");
    let trained = shown["trained_tokens"].as_u64().expect("a number");
    let whole = report(&[&look[..], &["--train-on-prompt"]].concat()).0;
    assert!(whole["trained_tokens"].as_u64().expect("a number") > 2 * trained, "{whole}");

    let out = dir.path().join("run").display().to_string();
    let tune = ["tune", "--model", &model, "--data", &data, "--seq-len", "64", "--device", "cpu"];
    let more = ["--steps", "8", "--batch-size", "4", "--micro-batch", "2", "--lr", "1e-2"];
    let flags = ["--val-items", "3", "--method", "lora", "--json", "--out", &out];
    let (tuned, text) = report(&[&tune[..], &more, &flags].concat());
    assert!(text.contains("no chat template"), "{text}");
    // The last three, of which one is too long, are validated on.
    let left_out = "0 of 3 examples are cut at 64 tokens (--seq-len), 1 are left out";
    assert!(text.contains(&format!("validated  {left_out}")), "{text}");
    assert_eq!(tuned["peak_device_bytes"], tuned["predicted_peak_device_bytes"], "{tuned}");
    let loss = |key: &str| tuned[key].as_f64().expect("a loss");
    assert!(loss("val_loss") < loss("val_loss_before") - 0.5, "{tuned}");
    // 32 sequences, all with the same answer.
    assert_eq!(tuned["trained_tokens"].as_u64(), Some(32 * trained / 9));
    let eval = ["eval", "--run", &out, "--data", &data, "--seq-len", "64", "--device", "cpu"];
    let (seen, text) = report(&[&eval[..], &["--json"]].concat());
    assert_eq!((&seen["cut"], &seen["skipped"]), (&json!(0), &json!(1)));
    assert!(text.contains("0 of 10 examples are cut at 64 tokens (--seq-len), 1 are"), "{text}");
    assert_eq!(seen["tokens"].as_u64(), Some(trained));
    let seen = seen["loss"].as_f64().expect("a loss");
    assert!((seen - loss("val_loss")).abs() < 1e-3, "{seen} {tuned}");
}

/// Columns of other names, in every command that reads such data.
#[test]
fn columns_are_named() {
    let dir = TempDir::new().expect("a folder");
    let path = dir.path().join("a.jsonl");
    let line = |at: usize| {
        let (query, said) = (format!("Where is fox {at}?"), "At the mill.".repeat(1 + at / 9 * 8));
        json!({"query": query, "reply": said, "text": "no"}).to_string() + "\n"
    };
    std::fs::write(&path, (0..10).map(line).collect::<String>()).expect("a file");
    let (data, model) = (path.display().to_string(), demo("model"));
    fn with<'a>(more: &[&'a str]) -> Vec<&'a str> {
        [more, &["--columns", "prompt=query,completion=reply"]].concat()
    }
    let look = ["data", "--model", &model, "--data", &data, "--seq-len", "32", "--json"];
    let (shown, _) = report(&with(&look));
    assert_eq!(shown["kind"], "examples");
    assert!(shown["sample"].as_str().expect("a sample").contains("fox 0?[At the mill."), "{shown}");
    assert_eq!(report(&look).0["kind"], "text");

    let out = |name: &str| dir.path().join(name).display().to_string();
    let (run_dir, config) = (out("run"), out("tune.yaml"));
    std::fs::write(&config, "columns: prompt=query,completion=reply\nsteps: 2\n").expect("a file");
    let common = ["--model", &model, "--data", &data, "--seq-len", "32", "--device", "cpu"];
    let own = ["tune", "--config", &config, "--val-items", "2", "--method", "lora", "--json"];
    let (_, text) = report(&[&own[..], &["--out", &run_dir], &common].concat());
    assert!(text.contains("validated  1 of 2 examples are cut at 32 tokens"), "{text}");
    let resolved = std::fs::read_to_string(dir.path().join("run/config.resolved.yaml"));
    assert!(resolved.expect("options").contains("columns: prompt=query,completion=reply"));
    let eval = ["eval", "--run", &run_dir, "--data", &data, "--seq-len", "32", "--device", "cpu"];
    let (seen, _) = report(&with(&[&eval[..], &["--json"]].concat()));
    assert_eq!((&seen["cut"], &seen["skipped"]), (&json!(1), &json!(0)));
    let own = ["compare", "--methods", "lora", "--seeds", "0", "--budget", "tokens", "--json"];
    let more = ["--max-tokens", "128", "--evals", "1", "--val-items", "2"];
    let (seen, text) = report(&with(&[&own[..], &more, &common, &["--out", &out("c")]].concat()));
    let cut = seen["cut"][0].as_str().expect("a sentence");
    assert!(cut.starts_with("validation: 1 of 2 examples are cut") && text.contains(cut), "{seen}");
    let own = ["compress", "--model", &model, "--calibration", &data, "--policy", "uniform"];
    let more = ["--sequences", "4", "--probe-sequences", "2", "--seq-len", "16", "--fast"];
    let small = out("small");
    let own = [&own[..], &more, &["--device", "cpu", "--json", "--out", &small]].concat();
    assert!(report(&with(&own)).0["bytes"].as_u64().expect("bytes") > 0);

    for (columns, code, part) in [
        ("prompt=qurey,completion=reply", 1, "did you mean \"query\"?"),
        ("promt=query,completion=reply", 2, "did you mean \"prompt\"?"),
        ("prompt=query,prompt=reply", 2, "\"prompt\" is given twice"),
    ] {
        let text = refused(&["data", "--data", &data, "--columns", columns], code);
        assert!(text.contains(part), "{text}");
    }
}

#[test]
fn what_is_no_conversation_is_named() {
    let dir = TempDir::new().expect("a folder");
    let path = dir.path().join("a.jsonl");
    let data = path.display().to_string();
    let look = |line: &str, flags: &[&str]| {
        std::fs::write(&path, format!("{{\"prompt\": \"a\", \"completion\": \"b\"}}\n{line}\n"))
            .expect("a file");
        refused(&[&["data", "--data", &data][..], flags].concat(), 1)
    };
    for (line, named) in [
        ("{\"messages\": [{\"role\": \"bard\", \"content\": \"a\"}]}", "role \"bard\""),
        ("{\"messages\": [{\"role\": \"user\", \"content\": \"a\"}]}", "has no answer"),
        ("{\"prompt\": \"a\", \"completion\": \"\"}", "empty \"completion\""),
        ("{\"prompt\": \"a\", ", "is no JSON"),
    ] {
        let text = look(line, &[]);
        assert!(text.contains("a.jsonl line 2") && text.contains(named), "{text}");
    }
    let fine = "{\"prompt\": \"c\", \"completion\": \"d\"}";
    assert!(look(fine, &["--sample", "9"]).contains("--sample is 9"));
    let long = format!("{{\"prompt\": \"{}\", \"completion\": \"b\"}}", "a b ".repeat(30));
    std::fs::write(&path, long).expect("a file");
    let text = refused(&["data", "--data", &data, "--seq-len", "16"], 1);
    assert!(text.contains("a.jsonl") && text.contains("raise --seq-len"), "{text}");
    let tune =
        ["tune", "--data", &data, "--seq-len", "16", "--device", "cpu", "--val-fraction", "0"];
    assert!(refused(&tune, 1).contains("raise --seq-len"));
}
