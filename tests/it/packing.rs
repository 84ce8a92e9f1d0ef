//! Several examples in a sequence: the losses and gradients of the same examples alone, samples
//! that do not see each other, and runs of the program.

use std::collections::BTreeMap;

use edge_gpu::Device;
use edge_kernels::Format;
use edge_runtime::batch::{Batch, IGNORE, Sampler};
use edge_runtime::data::{Example, Stream};
use edge_runtime::tune::trainer::{AdamW, Trainer};
use edge_runtime::tune::trunk_cache::{Groups, TrunkCache};
use edge_runtime::tune::trunk_level::Sizes;
use edge_scheduler::{Job, Path, Trained};
use edge_tests::{largest_difference, tiny};
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::commands::{demo, run};
use crate::examples::report;
use crate::model::{Tiny, devices, lora, tiny_of};
use crate::stream::job;

const SEQ_LEN: usize = 24;

/// Examples that fill three sequences of 24 tokens but for one: 13 + 11, 9 + 8 + 7, and
/// 10 + 1 + 12, where the one of a single token is all prompt.
fn examples() -> Stream {
    examples_of(&[9, 13, 10, 2, 8, 11, 7, 11])
}

fn examples_of(lengths: &[usize]) -> Stream {
    let (mut examples, mut answers) = (Vec::new(), Vec::new());
    for &len in lengths {
        examples.push(Example { start: answers.len(), len, prompt: len / 3 });
        answers.extend((0..len).map(|at| u8::from(at >= len / 3)));
    }
    let ids = (0..answers.len()).map(|i| ((i * i * 7 + i * 13 + 5) % 139) as u32).collect();
    let text = Stream::text(ids, "a.jsonl".to_owned());
    Stream { examples: examples.into(), answers: answers.into(), ..text }
}

/// An epoch of the examples in batches of one or more sequences.
fn epoch(packing: bool, sequences: usize) -> Vec<Batch> {
    epoch_of(&Stream { packing, ..examples() }, sequences)
}

fn epoch_of(stream: &Stream, sequences: usize) -> Vec<Batch> {
    let mut sampler = Sampler::new(stream, SEQ_LEN, 5).expect("examples");
    let count = sampler.windows().div_ceil(sequences);
    let left = |batch: usize| sequences.min(sampler.windows() - batch * sequences);
    let sizes: Vec<usize> = (0..count).map(left).collect();
    sizes.into_iter().map(|size| sampler.next_batch(stream, size)).collect()
}

type Gradients = BTreeMap<String, Vec<f32>>;

/// Sum of losses, and gradients.
fn gradients(trainer: &mut Trainer, window: usize, batches: &[Batch]) -> (f32, Gradients) {
    trainer.gradients(window, batches, 40).expect("gradients");
    let loss = trainer.model.device.read_f32(&trainer.model.workspace.loss).expect("a loss");
    let trained: usize = batches.iter().map(|batch| batch.trained_tokens).sum();
    assert_eq!(loss[1] as usize, trained);
    let found = trainer.read_gradients(window).expect("gradients");
    (loss[0], found.into_iter().map(|(name, (_, values))| (name, values)).collect())
}

/// Largest difference of two gradients, of the largest value of each tensor.
fn apart(got: &Gradients, want: &Gradients) -> f32 {
    let largest = |values: &[f32]| values.iter().fold(0f32, |most, x| most.max(x.abs()));
    let each = want
        .iter()
        .map(|(name, want)| largest_difference(&got[name], want) / largest(want).max(1e-9));
    each.fold(0.0, f32::max)
}

/// A trainer behind one update: with B = 0 nothing would flow back through A.
fn begun(tiny: &Tiny, device: &Device, job: &Job) -> Trainer {
    let mut trainer = Trainer::new(tiny.load(device, job), AdamW::default());
    for window in 0..job.windows.len() {
        trainer.step(window, &epoch(true, 1), 1e-2).expect("a step");
    }
    trainer
}

/// Llama's model, and two whose blocks have a window of 9 tokens, shorter than most samples.
fn models() -> Vec<(&'static str, Tiny)> {
    let of = |architecture| (architecture, tiny_of(&tiny::config_of(architecture)));
    let llama = ("LlamaForCausalLM", tiny_of(&tiny::config()));
    vec![llama, of("MistralForCausalLM"), of("Gemma3ForCausalLM")]
}

#[test]
fn packed_examples_have_the_gradients_of_each_alone() {
    let (packed, alone) = (epoch(true, 2), epoch(false, 2));
    let sequences = |batches: &[Batch]| batches.iter().map(|b| b.sequences).sum::<usize>();
    assert_eq!((sequences(&packed), sequences(&alone)), (3, 8));
    for (name, tiny) in models() {
        for device in devices() {
            let edge = tiny.job(Format::F32, Format::F32, lora(), 2);
            let full = tiny.job(Format::F32, Format::F32, Trained::Full, 1);
            let recomputed = Job { recompute: true, ..edge.clone() };
            for (what, job) in [("edge", edge), ("full", full), ("recomputed", recomputed)] {
                let mut trainer = begun(&tiny, &device, &job);
                for window in 0..job.windows.len() {
                    let (want_loss, want) = gradients(&mut trainer, window, &alone);
                    let (loss, got) = gradients(&mut trainer, window, &packed);
                    let place = format!("{name}, {what}, window {window}, {device:?}");
                    assert!((loss - want_loss).abs() < 1e-5 * want_loss, "{place}: {loss}");
                    let apart = apart(&got, &want);
                    // Sums over other rows at once round otherwise.
                    assert!(apart < 5e-5, "{place}: {apart}");
                }
            }
        }
    }
}

/// The batch with targets in these rows alone, and other ids in those.
fn changed(batch: &Batch, trained: &[usize], others: &[usize]) -> [Batch; 2] {
    let mut before = batch.clone();
    for (row, target) in before.targets.iter_mut().enumerate() {
        *target = if trained.contains(&row) { *target } else { IGNORE };
    }
    before.trained_tokens = before.targets.iter().filter(|target| **target != IGNORE).count();
    let mut after = before.clone();
    for &row in others {
        after.ids[row] = (after.ids[row] + 11) % 139;
    }
    [before, after]
}

#[test]
fn samples_of_a_sequence_do_not_see_each_other() {
    for (name, tiny) in models() {
        let batch = epoch(true, 3).remove(0);
        // Of every sequence each sample against the rest of it.
        let rows = |sequence: usize, segment: [u32; 2]| {
            (sequence * SEQ_LEN + segment[0] as usize..sequence * SEQ_LEN + segment[1] as usize)
                .collect::<Vec<usize>>()
        };
        let mut samples = Vec::new();
        for (sequence, segments) in batch.segments.chunks_exact(SEQ_LEN).enumerate() {
            let segments = segments.chunk_by(|a, b| a == b).map(|run| run[0]);
            samples.extend(segments.map(|segment| rows(sequence, segment)));
        }
        // Eight, and a row of padding.
        assert_eq!(samples.len(), 9);
        for device in devices() {
            let job = tiny.job(Format::F32, Format::F32, Trained::Full, 1);
            let job = Job { batch: 3, eval_batch: 3, ..job };
            let mut trainer = begun(&tiny, &device, &job);
            for sample in samples.iter().filter(|sample| sample.len() > 1) {
                let others: Vec<usize> =
                    (0..batch.ids.len()).filter(|row| !sample.contains(row)).collect();
                let [before, after] = changed(&batch, sample, &others);
                let place = format!("{name}, rows {sample:?} on {device:?}");
                let logits = |batch: &Batch| trainer.model.all_logits(batch).expect("logits");
                let (want, got) = (logits(&before), logits(&after));
                let vocab = want.len() / batch.ids.len();
                for row in 0..batch.ids.len() {
                    let own = row * vocab..(row + 1) * vocab;
                    let same = want[own.clone()] == got[own];
                    assert_eq!(same, sample.contains(&row), "{place}: row {row}");
                }
                let (want, got) = (
                    gradients(&mut trainer, 0, std::slice::from_ref(&before)),
                    gradients(&mut trainer, 0, std::slice::from_ref(&after)),
                );
                assert!(want == got, "{place}: gradients see the others");
                assert!(want.1.values().flatten().any(|x| *x != 0.0), "{place}: no gradient");
            }
        }
    }
}

/// Micro-batches that wait for each other have samples of their own, and hidden states that are
/// kept are those of packed sequences.
#[test]
fn every_path_keeps_samples_apart() {
    let tiny = tiny_of(&tiny::config_of("MistralForCausalLM"));
    let packed = epoch(true, 1);
    let dir = TempDir::new().expect("a folder");
    let sizes = Sizes { sequences: 3, seq_len: SEQ_LEN as u64, hidden_size: 48 };
    for device in devices() {
        let mut rows = begun(&tiny, &device, &job(&tiny, Path::Rows, false));
        let (want_loss, want) = gradients(&mut rows, 1, &packed);
        for (path, recompute) in [(Path::Rows, true), (Path::Mixed, false), (Path::Columns, true)] {
            let job = job(&tiny, path, recompute);
            for cached in [false, true] {
                let mut trainer = begun(&tiny, &device, &job);
                let place = format!("{path:?}, cached {cached}, {device:?}");
                if cached {
                    let folder = dir.path().join(place.replace(['/', ' '], "-"));
                    let stream = Stream { packing: true, ..examples() };
                    let groups = Groups::new(&stream, SEQ_LEN, 5, 1).expect("examples");
                    let key = "packed".to_owned();
                    let cache = TrunkCache::new(&folder, false, key, sizes, groups);
                    trainer.cache = Some(cache.expect("a folder"));
                    trainer.begin(1).expect("a phase");
                }
                // Hidden states are kept in f16.
                let most = if cached { 5e-3 } else { 1e-5 };
                // Computed, and then read.
                for _ in 0..2 {
                    let (loss, got) = gradients(&mut trainer, 1, &packed);
                    assert!((loss - want_loss).abs() < most * want_loss, "{place}: {loss}");
                    let apart = apart(&got, &want);
                    assert!(apart < most, "{place}: {apart}");
                }
                let report = trainer.cache.as_ref().map(TrunkCache::report);
                let counts = report.map(|report| (report.computed, report.read));
                assert_eq!(counts, cached.then_some((3, 3)), "{place}");
            }
        }
    }
}

/// Sequences of a micro-batch of the first epoch are computed together whenever one of them comes
/// up: a cache has the same bytes whichever batches filled it.
#[test]
fn kept_states_do_not_depend_on_batches() {
    let tiny = tiny_of(&tiny::config());
    let stream = examples_of(&[9, 20, 10, 3, 8, 19, 24, 11]);
    let sizes = Sizes { sequences: 8, seq_len: SEQ_LEN as u64, hidden_size: 48 };
    let in_order = epoch_of(&stream, 2);
    let lens: Vec<usize> = in_order.iter().map(|batch| batch.seq_len).collect();
    assert!(lens.iter().any(|len| *len != lens[0]), "{lens:?}");
    let alone: Vec<Batch> = epoch_of(&stream, 1).into_iter().rev().collect();
    for device in devices() {
        let job = tiny.job(Format::F32, Format::F32, lora(), 2);
        let fill = |batches: &[Batch]| {
            let dir = TempDir::new().expect("a folder");
            let mut trainer = begun(&tiny, &device, &job);
            let groups = Groups::new(&stream, SEQ_LEN, 5, 2).expect("examples");
            let cache = TrunkCache::new(dir.path(), true, String::new(), sizes, groups);
            trainer.cache = Some(cache.expect("a folder"));
            trainer.begin(1).expect("a phase");
            for batch in batches {
                gradients(&mut trainer, 1, std::slice::from_ref(batch));
            }
            let report = trainer.cache.as_ref().map(TrunkCache::report).expect("a cache");
            let files: Vec<_> = std::fs::read_dir(dir.path()).expect("a folder").collect();
            assert_eq!(files.len(), 1);
            let path = files[0].as_ref().expect("a file").path();
            ((report.computed, report.read), std::fs::read(path).expect("states"))
        };
        let (in_order, alone) = (fill(&in_order), fill(&alone));
        assert_eq!(in_order.0, (8, 0), "{device:?}");
        // The second one of each pair was there.
        assert_eq!(alone.0, (8, 4), "{device:?}");
        assert!(in_order.1 == alone.1, "{device:?}: other bytes");
    }
}

#[test]
fn a_run_packs_what_the_data_command_says() {
    let dir = TempDir::new().expect("a folder");
    let path = dir.path().join("a.jsonl");
    let line = |at: usize| {
        let (prompt, said) = (format!("Where is fox {at}?"), " At the mill.".repeat(1 + at % 4));
        json!({"prompt": prompt, "completion": said}).to_string() + "\n"
    };
    std::fs::write(&path, (0..40).map(line).collect::<String>()).expect("a file");
    let (data, model) = (path.display().to_string(), demo("model"));
    let common = ["--model", &model, "--data", &data, "--seq-len", "128", "--json"];
    let packing = report(&[&["data"], &common[..]].concat()).0["packing"].clone();
    let number = |value: &Value, key: &str| value[key].as_f64().expect("a number");
    assert_eq!(number(&packing, "examples"), 40.0);
    assert!(number(&packing, "sequences") < 20.0, "{packing}");
    assert!(number(&packing, "padding_share") < 0.2, "{packing}");
    assert!(number(&packing, "unpacked_padding_share") > 0.2, "{packing}");

    let config = dir.path().join("tune.yaml");
    std::fs::write(&config, "packing: true\nmethod: edge\nwindows: 2\n").expect("a file");
    let config = config.display().to_string();
    let tune = |name: &str, more: &[&str]| {
        let out = dir.path().join(name);
        let shown = out.display().to_string();
        let own = ["tune", "--val-fraction", "0", "--device", "cpu", "--out", &shown];
        let counts = ["--epochs", "1", "--micro-batch", "1"];
        let (tuned, text) = report(&[&own[..], &counts, &common, more].concat());
        let header = std::fs::read_to_string(out.join("header.json")).expect("a header");
        let options = std::fs::read_to_string(out.join("config.resolved.yaml")).expect("options");
        (tuned, text, serde_json::from_str::<Value>(&header).expect("JSON"), options)
    };
    let flags = ["--semantics", "progressive", "--batch-size", "2", "--config", &config];
    let (tuned, text, header, options) = tune("packed", &flags);
    assert!(text.contains("packing    40 examples in"), "{text}");
    assert!(options.contains("packing: true"), "{options}");
    assert_eq!(header["packing"]["sequences"], packing["sequences"]);
    assert_eq!(header["train_sequences"], packing["sequences"]);
    let steps = (number(&packing, "sequences") / 2.0).ceil();
    assert_eq!(number(&tuned, "steps"), steps);
    assert_eq!(tuned["peak_device_bytes"], tuned["predicted_peak_device_bytes"]);
    let computed = number(&tuned["trunk_cache"], "computed");
    assert!(computed > 0.0 && computed <= number(&packing, "sequences"), "{tuned}");
    // Every example once, whatever it shares a sequence with.
    let lora = ["--method", "lora", "--batch-size", "1"];
    let (alone, ..) = tune("alone", &lora);
    let (packed, ..) = tune("lora", &[&lora[..], &["--packing"]].concat());
    assert_eq!(number(&alone, "steps"), 40.0);
    assert_eq!(number(&packed, "steps"), number(&packing, "sequences"));
    for key in ["tokens", "trained_tokens"] {
        assert_eq!(alone[key], packed[key], "{key}");
    }
    let text = demo("valid.txt");
    let flags = ["--data", &text, "--packing", "--steps", "1", "--dry-run", "--device", "cpu"];
    let output = run(&[&["tune", "--model", &model, "--method", "lora"], &flags[..]].concat());
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.success() && said.contains("--packing changes nothing"), "{said}");
}
