//! Every family on a small random checkpoint, without any reference data: gradients against slopes
//! of the loss, a cache against whole sequences, streaming and recomputation against neither, and
//! what commands write.

use std::collections::BTreeMap;
use std::path::Path;

use edge_gpu::Slice;
use edge_kernels::Format;
use edge_runtime::checkpoint::Checkpoint;
use edge_runtime::exits::Vote;
use edge_runtime::family;
use edge_runtime::tune::trainer::{AdamW, Trainer};
use edge_scheduler::{Job, Path as Way, Trained};
use edge_tests::{cpu, largest_difference, tiny};
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::commands::{demo, refused, run};
use crate::model::{Tiny, batch, check_cache, check_recomputed, devices, lora, tiny_of};
use crate::{calibrate, stream};

/// Change of the loss that slopes are taken over, where the gradient is large.
const STEP: f32 = 1e-2;

/// Configurations of all families but Llama's, which the other tests have.
fn configs() -> impl Iterator<Item = (&'static str, Value)> {
    let others = family::ALL.iter().filter(|family| family.name != "Llama");
    others.map(|family| (family.name, tiny::config_of(family.architecture)))
}

fn loss(trainer: &Trainer) -> f64 {
    let losses = trainer.model.evaluate([batch()].into_iter(), Vote::Last, |_| ());
    losses.expect("a loss").last()
}

/// Each tensor moved along its own gradient: the loss must change as the gradient's norm says.
fn check_slopes(name: &str, tiny: &Tiny, trained: Trained) {
    let job = tiny.job(Format::F32, Format::F32, trained, 1);
    let mut trainer = Trainer::new(tiny.load(&cpu(), &job), AdamW::default());
    // An update first: with B = 0 nothing flows back through A.
    trainer.step(0, &[batch()], 3e-2).expect("a step");
    trainer.gradients(0, &[batch()], batch().trained_tokens).expect("gradients");
    let gradients = trainer.read_gradients(0).expect("gradients");
    let mut compared = 0;
    for entry in trainer.model.plan.groups[0].entries.clone() {
        let (_, gradient) = &gradients[&format!("{:?}", entry.owner)];
        let norm = gradient.iter().map(|g| f64::from(*g).powi(2)).sum::<f64>().sqrt();
        if norm < 1e-3 {
            continue;
        }
        let arena: &Slice = &trainer.model.groups[0].values[entry.arena];
        let place = arena.buffer().slice(entry.offset, entry.words());
        let values = trainer.model.device.read_f32(&place).expect("values");
        let at = |step: f32| {
            let along = gradient.iter().map(|g| step * g / norm as f32);
            let moved: Vec<f32> = values.iter().zip(along).map(|(v, step)| v + step).collect();
            let words = bytemuck::cast_slice(&moved);
            trainer.model.device.write(&place, words).expect("written");
            loss(&trainer)
        };
        let step = STEP / norm.max(1.0) as f32;
        let slope = (at(step) - at(-step)) / (2.0 * f64::from(step));
        at(0.0);
        let apart = (slope - norm).abs();
        let owner = entry.owner;
        assert!(apart < 2e-2 * norm + 2e-4, "{name}: {owner:?}: slope {slope} for {norm}");
        compared += 1;
    }
    let entries = gradients.len();
    assert!(4 * compared > 3 * entries, "{name}: {compared} of {entries} tensors have a gradient");
}

#[test]
fn gradients_are_the_slopes_of_the_loss() {
    for (name, config) in configs() {
        let tiny = tiny_of(&config);
        check_slopes(name, &tiny, Trained::Full);
        check_slopes(name, &tiny, lora());
    }
}

#[test]
fn devices_agree_and_caches_continue_whole_sequences() {
    let devices = devices();
    for (name, config) in configs() {
        let tiny = tiny_of(&config);
        let mut losses: Vec<Vec<f64>> = Vec::new();
        for device in &devices {
            check_cache(&tiny, device);
            for (trained, windows) in [(Trained::Full, 1), (lora(), 2)] {
                let job = tiny.job(Format::F32, Format::F32, trained, windows);
                let mut trainer = Trainer::new(tiny.load(device, &job), AdamW::default());
                let step = |window| trainer.step(window, &[batch()], 1e-2).expect("a step").loss;
                let windows = [0, windows as usize - 1, 0];
                losses.push(windows.into_iter().map(step).collect());
            }
        }
        let (first, others) = losses.split_at(2);
        for other in others.chunks(2) {
            for (a, b) in first.iter().flatten().zip(other.iter().flatten()) {
                assert!((a - b).abs() < 2e-4, "{name}: {a} {b}");
            }
        }
    }
}

#[test]
fn recomputed_and_streamed_blocks_are_kept_ones() {
    for (name, config) in configs() {
        let tiny = tiny_of(&config);
        check_recomputed(&tiny, &cpu());
        let device = cpu();
        for (path, recompute) in [(Way::Rows, false), (Way::Columns, true)] {
            let job: Job = stream::job(&tiny, path, recompute);
            let want = stream::train(&tiny, &device, &job);
            let staged = device.stages_uploads();
            let streamed = stream::streamed(&job, [false, true, false, false], 2, staged);
            let got = stream::train(&tiny, &device, &streamed);
            assert!(got == want, "{name}: {path:?}");
        }
    }
}

/// A model of which one block at a time is on the device takes windows and norms along.
#[test]
fn calibration_runs_blocks_one_by_one() {
    for (_, config) in configs() {
        calibrate::check_streamed(&calibrate::tiny_of(&config), &cpu());
    }
}

/// A model folder with the demo's tokenizer.
pub(crate) fn folder(config: &Value) -> TempDir {
    let dir = TempDir::new().expect("a temporary folder");
    let mut config = config.clone();
    config["vocab_size"] = json!(512);
    tiny::write_config(dir.path(), &config, 5).expect("a checkpoint");
    for name in ["tokenizer.json", "tokenizer_config.json"] {
        std::fs::copy(demo(&format!("model/{name}")), dir.path().join(name)).expect("a copy");
    }
    dir
}

/// Runs a command on `cpu`; returns its last line as JSON.
fn report(args: &[&str]) -> Value {
    let args = [args, &["--device", "cpu", "--json", "--quiet"]].concat();
    let output = run(&args);
    let text = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{args:?}: {text}");
    let text = String::from_utf8_lossy(&output.stdout);
    serde_json::from_str(text.lines().last().expect("a line")).expect("JSON")
}

fn tensors(dir: &Path) -> BTreeMap<String, (Vec<usize>, Vec<f32>)> {
    let checkpoint = Checkpoint::open(dir).expect("weights");
    let read = |name: &str| {
        let tensor = checkpoint.tensor(name).expect("a tensor");
        (name.to_owned(), (tensor.shape.clone(), tensor.to_f32().expect("values")))
    };
    checkpoint.names().map(read).collect()
}

/// What commands write is in the family's own names and shapes, and means the same.
#[test]
fn commands_write_what_they_read() {
    let text = demo("valid.txt");
    for (name, config) in configs() {
        let model = folder(&config);
        let dir = model.path().to_str().expect("a path");
        let out = TempDir::new().expect("a temporary folder");
        let path = |name: &str| out.path().join(name).to_str().expect("a path").to_owned();
        let evaluate = |more: &[&str]| {
            let args = ["eval", "--data", &text, "--max-windows", "4", "--seq-len", "24"];
            report(&[&args, more].concat())["loss"].as_f64().expect("a loss")
        };
        let tune = |out: &str, more: &[&str]| {
            let args = ["tune", "--data", &text, "--out", out, "--batch-size", "2"];
            report(&[&args[..], &["--seq-len", "24"], more].concat());
        };
        let before = evaluate(&["--model", dir]);

        let full = path("full");
        tune(&full, &["--model", dir, "--method", "full", "--lr", "1e-8", "--steps", "1"]);
        let (own, saved) = (tensors(model.path()), tensors(Path::new(&full)));
        assert_eq!(own.keys().collect::<Vec<_>>(), saved.keys().collect::<Vec<_>>(), "{name}");
        for (tensor, (shape, values)) in &own {
            let (got_shape, got) = &saved[tensor];
            let apart = largest_difference(values, got);
            assert!(shape == got_shape && apart < 1e-6, "{name}: {tensor}: {apart}");
        }

        let (adapter, merged) = (path("adapter"), path("merged"));
        tune(&adapter, &["--model", dir, "--method", "lora", "--lr", "2e-2", "--steps", "5"]);
        let adapted = evaluate(&["--run", &adapter]);
        let exported = run(&["export", "--run", &adapter, "--out", &merged, "--quiet"]);
        assert!(exported.status.success(), "{name}: {exported:?}");
        let alone = evaluate(&["--model", &merged]);
        assert!(before - adapted > 1e-2, "{name}: {adapted} after {before}");
        assert!((adapted - alone).abs() < 1e-4, "{name}: {alone} merged for {adapted}");

        let small = path("small");
        let args = ["compress", "--model", dir, "--calibration", &text, "--out", &small];
        let sizes = ["--sequences", "4", "--seq-len", "24", "--target-bits", "8", "--fast"];
        report(&[&args[..], &sizes, &["--policy", "uniform"]].concat());
        let compressed = evaluate(&["--model", &small]);
        assert!((compressed - before).abs() < 0.02, "{name}: {compressed} for {before}");
        let edge = path("edge");
        tune(&edge, &["--model", &small, "--windows", "2", "--steps", "4", "--lr", "1e-2"]);
        assert!(evaluate(&["--run", &edge]) < before, "{name}");
    }
}

#[test]
fn what_would_be_wrong_is_refused() {
    let text = demo("valid.txt");
    for (architecture, more, expected) in [
        ("Phi3ForCausalLM", &["--targets", "q,v"][..], "--targets has q_proj without k_proj"),
        ("Gemma3ForCausalLM", &["--method", "full", "--weight-decay", "0.1"], "--weight-decay"),
    ] {
        let model = folder(&tiny::config_of(architecture));
        let dir = model.path().to_str().expect("a path");
        let args = ["tune", "--model", dir, "--data", &text, "--device", "cpu", "--steps", "1"];
        let error = refused(&[&args, more].concat(), 1);
        assert!(error.contains(expected), "{error}");
    }
}
