//! Questions with answers to choose from.

use edge_kernels::Format;
use edge_runtime::batch::{Batch, IGNORE};
use edge_runtime::exits::Vote;
use serde_json::Value;
use tempfile::TempDir;

use crate::commands::{demo, refused, run};
use crate::examples::only;
use crate::model::{batch, devices, tiny};

/// Sums over each sequence's targets that count of the logarithm of their probabilities
/// `[rows, vocab]`.
fn sums(batch: &Batch, probabilities: &[Vec<f64>]) -> Vec<f64> {
    let mut sums = vec![0.0; batch.sequences];
    for (row, &target) in batch.targets.iter().enumerate().filter(|(_, t)| **t != IGNORE) {
        sums[row / batch.seq_len] += probabilities[row][target as usize].ln();
    }
    sums
}

fn softmax(logits: &[f32]) -> Vec<f64> {
    let exp: Vec<f64> = logits.iter().map(|&z| f64::from(z).exp()).collect();
    let sum: f64 = exp.iter().sum();
    exp.iter().map(|e| e / sum).collect()
}

#[test]
fn sequences_score_what_their_logits_say() {
    let tiny = tiny();
    for device in devices() {
        let model = tiny.edge(&device, Format::F32).model;
        let vocab = model.shape.vocab_size as usize;
        // Rows that are gathered, of both sequences, and all rows.
        for batch in [only(|row| (20..23).contains(&row) || row >= 44), batch()] {
            let batches = std::iter::once(batch.clone());
            let got = model.score_sequences(batches, &[Vote::Mean], || ()).expect("scores");
            let exits = model.exit_logits(&batch).expect("logits");
            let exits: Vec<Vec<Vec<f64>>> =
                exits.iter().map(|logits| logits.chunks(vocab).map(softmax).collect()).collect();
            let mean = |row: usize| -> Vec<f64> {
                let sum = |v: usize| exits.iter().map(|rows| rows[row][v]).sum::<f64>();
                (0..vocab).map(|v| sum(v) / exits.len() as f64).collect()
            };
            let voted: Vec<Vec<f64>> = (0..batch.targets.len()).map(mean).collect();
            let want = exits.iter().chain([&voted]).map(|rows| sums(&batch, rows));
            for (got, want) in got.exits.iter().chain(&got.votes).zip(want) {
                assert_eq!(got.len(), 2);
                for (got, other) in got.iter().zip(&want) {
                    let off = (got - other).abs();
                    assert!(off < 1e-4 * want[0].abs(), "{got:?} {want:?}");
                }
            }
        }
    }
}

#[test]
fn eval_counts_right_answers() {
    let dir = TempDir::new().expect("a folder");
    let file = dir.path().join("questions.jsonl");
    let questions = "{\"question\": \"The sky is\", \"choices\": [\"blue\", \"of stone\"], \
                     \"answer\": 0}\n\n{\"input\": \"Which one?\\nA. this\\nB. that\\nAnswer:\", \
                     \"output\": \"B\"}\n";
    std::fs::write(&file, questions).expect("a file");
    let shown = file.display().to_string();
    let out = dir.path().join("run").display().to_string();
    let data = demo("valid.txt");
    let tune = ["tune", "--model", &demo("model"), "--data", &data, "--out", &out, "--steps", "2"];
    let flags = ["--device", "cpu", "--json", "--quiet"];
    let output = run(&[&tune[..], &["--seq-len", "32", "--windows", "2"], &flags].concat());
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));

    let eval = ["eval", "--run", &out, "--choices", &shown, "--all-votes"];
    let output = run(&[&eval[..], &["--seq-len", "64"], &flags].concat());
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let text = String::from_utf8(output.stdout).expect("UTF-8");
    let report: Value = serde_json::from_str(text.lines().last().expect("a line")).expect("JSON");
    assert_eq!((&report["items"], &report["chance"]), (&2.into(), &0.5.into()));
    assert_eq!(report["exits"].as_array().map(Vec::len), Some(2));
    let last = report["votes"].as_array().expect("votes").iter().find(|v| v["rule"] == "last");
    assert_eq!(last.expect("a rule")["accuracy"], report["exits"][1]);

    // The second question is longer than 16 tokens and is cut from the left.
    let output = run(&[&eval[..], &["--seq-len", "16"], &flags].concat());
    let text = String::from_utf8(output.stdout).expect("UTF-8");
    let report: Value = serde_json::from_str(text.lines().last().expect("a line")).expect("JSON");
    assert!(report["cut"].as_u64().is_some_and(|cut| cut >= 1), "{report}");

    std::fs::write(&file, "{\"question\": \"?\", \"choices\": [\"a\", \"b\"], \"answer\": 5}\n")
        .expect("a file");
    let text = refused(&eval, 1);
    assert!(text.contains("line 1") && text.contains("number from 0"), "{text}");
    let text = refused(&[&eval[..], &["--data", &data]].concat(), 2);
    assert!(text.contains("--data"), "{text}");
}
