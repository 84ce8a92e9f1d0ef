//! Whole models against tensors from PyTorch, transformers and peft: `../shared/golden`.
//!
//! The folder is optional; without it each test says `skipped: no ../shared`.

// The figures are for a person who runs this with `--nocapture`.
#![allow(clippy::print_stdout)]

use std::path::{Path, PathBuf};

use edge_gpu::{Device, Options};
use edge_kernels::Format;
use edge_kernels::pack::pack;
use edge_runtime::adapter::{self, tensor_name};
use edge_runtime::batch::{Batch, IGNORE};
use edge_runtime::checkpoint::Checkpoint;
use edge_runtime::cli::args::Bits;
use edge_runtime::compress::calibrate::{CalibrationSet, Runner, RunnerOptions};
use edge_runtime::config::ModelConfig;
use edge_runtime::exits::Vote;
use edge_runtime::model::{LoraInit, Model};
use edge_runtime::session::Source;
use edge_runtime::tune::trainer::{AdamW, Trainer};
use edge_scheduler::{BlockFormats, Job, Owner, Projection, Trained};
use edge_tests::{gpu, largest_difference, shared};

struct Golden {
    name: &'static str,
    config: ModelConfig,
    checkpoint: Checkpoint,
    tensors: Checkpoint,
    adapter_dir: PathBuf,
}

impl Golden {
    fn open(shared: &Path, name: &'static str) -> Self {
        let dir = shared.join("golden").join(name);
        let model = match name {
            "stories260K" => shared.join("assets/models/stories260K"),
            _ => dir.clone(),
        };
        Self {
            name,
            config: ModelConfig::load(&model).expect("a config"),
            checkpoint: Checkpoint::open(&model).expect("weights"),
            tensors: Checkpoint::open_file(&dir.join("golden.safetensors")).expect("tensors"),
            adapter_dir: dir.join("adapter"),
        }
    }

    fn floats(&self, name: &str) -> Vec<f32> {
        let tensor = self.tensors.tensor(name);
        tensor.unwrap_or_else(|error| panic!("{}: {error:#}", self.name)).to_f32().expect("values")
    }

    /// Name and gradient of a trained tensor, of those that the file has.
    fn gradient(&self, owner: Owner) -> Option<(String, Vec<f32>)> {
        let config = &self.config;
        let lora = |layer: u32, p, matrix| {
            format!("lora.grad.{}", tensor_name(config.family, layer as usize, p, matrix))
        };
        let (name, rows) = match owner {
            Owner::LoraA(layer, p) => (lora(layer, p, 'A'), None),
            Owner::LoraB(layer, p) => (lora(layer, p, 'B'), Some(config.part_rows(p))),
            Owner::Weight(1, p, _) => {
                let place = config.weight_place(1, p);
                (format!("grad_full.{}", place.name), Some(place.rows))
            }
            Owner::Vector(1, vector) => {
                (format!("grad_full.{}", config.vector_name(1, vector)), None)
            }
            Owner::ExitNorm(0) => ("grad_full.model.norm.weight".into(), None),
            _ => return None,
        };
        let tensor = self.tensors.tensor(&name);
        let tensor = tensor.unwrap_or_else(|error| panic!("{}: {error:#}", self.name));
        let values = match rows {
            Some(rows) => tensor.take_rows(rows).to_f32().expect("values"),
            None => tensor.to_f32().expect("values"),
        };
        Some((name, values))
    }

    /// The golden batch, its labels shifted to targets.
    fn batch(&self) -> Batch {
        let bytes =
            std::fs::read(self.adapter_dir.parent().expect("a parent").join("golden.safetensors"));
        let bytes = bytes.expect("golden.safetensors");
        let file = safetensors::SafeTensors::deserialize(&bytes).expect("safetensors");
        let ints = |name: &str| -> Vec<i64> {
            let view = file.tensor(name).expect("an integer tensor");
            let data = view.data();
            match view.dtype() {
                safetensors::Dtype::I64 => data
                    .chunks_exact(8)
                    .map(|b| i64::from_le_bytes(b.try_into().expect("8 bytes")))
                    .collect(),
                _ => data
                    .chunks_exact(4)
                    .map(|b| i32::from_le_bytes(b.try_into().expect("4 bytes")).into())
                    .collect(),
            }
        };
        let ids: Vec<u32> = ints("input_ids").iter().map(|&id| id as u32).collect();
        let labels = ints("labels");
        let mut batch = Batch::new(ids, 48);
        batch.trained_tokens = 0;
        for (index, target) in batch.targets.iter_mut().enumerate() {
            let last = index % 48 == 47;
            let label = if last { -100 } else { labels[index + 1] };
            *target = if label < 0 { IGNORE } else { label as u32 };
            batch.trained_tokens += usize::from(label >= 0);
        }
        batch
    }

    fn job(&self, trained: Trained) -> Job {
        let blocks = vec![BlockFormats::uniform(Format::F32); self.config.num_hidden_layers];
        Job { trained, training: true, ..Job::new(blocks, [Format::F32; 2], 2, 48) }
    }

    fn model(&self, device: &Device, trained: Trained, init: LoraInit) -> Model {
        let job = self.job(trained);
        Model::load(device, &self.checkpoint, &self.config, &job, init, &mut |_| ())
            .unwrap_or_else(|error| panic!("{}: {error:#}", self.name))
    }
}

fn cosine(a: &[f32], b: &[f32]) -> f64 {
    assert_eq!(a.len(), b.len());
    let dot = |x: &[f32], y: &[f32]| -> f64 {
        x.iter().zip(y).map(|(&x, &y)| f64::from(x) * f64::from(y)).sum()
    };
    dot(a, b) / (dot(a, a) * dot(b, b)).sqrt()
}

fn check_gradients(golden: &Golden, device: &str, trainer: &Trainer, expected: usize) {
    let mut compared = 0;
    let mut worst = 1.0_f64;
    for (owner, got) in trainer.read_gradients(0).expect("gradients").into_values() {
        let Some((name, want)) = golden.gradient(owner) else { continue };
        let cos = cosine(&got, &want);
        let norm = |x: &[f32]| x.iter().map(|&v| f64::from(v).powi(2)).sum::<f64>().sqrt();
        let ratio = norm(&got) / norm(&want);
        assert!(cos > 0.9999, "{} on {device}: {name}: cosine {cos}", golden.name);
        assert!((ratio - 1.0).abs() < 1e-3, "{} on {device}: {name}: norm x {ratio}", golden.name);
        worst = worst.min(cos);
        compared += 1;
    }
    assert_eq!(compared, expected, "{}: gradients compared", golden.name);
    println!("{} on {device}: {compared} gradients, lowest cosine {worst:.7}", golden.name);
}

fn check(name: &'static str, device: &Device) {
    let Some(shared) = shared() else { return };
    let golden = Golden::open(&shared, name);
    let device_name = device.info().name.clone();
    let batch = golden.batch();

    let full = golden.model(device, Trained::Full, LoraInit::NONE);
    let logits = full.all_logits(&batch).expect("logits");
    let difference = largest_difference(&logits, &golden.floats("logits"));
    println!("{name} on {device_name}: logits differ by at most {difference:.2e}");
    assert!(difference < 1e-3, "{name} on {device_name}: logits differ by {difference}");
    let mut trainer = Trainer::new(full, AdamW::default());
    let batches = std::slice::from_ref(&batch);
    trainer.gradients(0, batches, batch.trained_tokens).expect("gradients");
    let vectors = golden.config.shape().vectors().count();
    check_gradients(&golden, &device_name, &trainer, 7 + vectors + 1);
    drop(trainer);

    let (config, tensors) = adapter::load(&golden.adapter_dir, &golden.config).expect("adapter");
    let lora = Trained::Lora { rank: config.r as u32, targets: config.target_modules.clone() };
    let model = golden.model(device, lora, LoraInit::of(&config));
    model.set_adapter(&tensors).expect("an adapter that fits");
    let logits = model.all_logits(&batch).expect("logits");
    let difference = largest_difference(&logits, &golden.floats("lora.logits"));
    assert!(difference < 1e-3, "{name} on {device_name}: adapted logits differ by {difference}");
    let loss = model.evaluate([batch.clone()].into_iter(), Vote::Last, |_| ()).expect("a loss");
    let want = f64::from(golden.floats("lora.loss")[0]);
    assert!((loss.last() - want).abs() < 1e-3, "{name}: loss {} for {want}", loss.last());

    let mut trainer = Trainer::new(model, AdamW::default());
    trainer.gradients(0, batches, batch.trained_tokens).expect("gradients");
    let layers = golden.config.num_hidden_layers;
    let matrices = 7 + golden.config.family.layers().len();
    check_gradients(&golden, &device_name, &trainer, matrices * layers);
    let (losses, norms) =
        (golden.floats("lora.train_losses"), golden.floats("lora.train_grad_norms"));
    for (step, (&loss, &norm)) in losses.iter().zip(&norms).enumerate() {
        let got = trainer.step(0, batches, 1e-3).expect("a step");
        let apart = (got.loss - f64::from(loss)).abs();
        assert!(apart < 2e-3, "{name} on {device_name}: step {step}: loss {} for {loss}", got.loss);
        let apart = (got.grad_norm / f64::from(norm) - 1.0).abs();
        assert!(apart < 5e-3, "{name}: step {step}: norm {} for {norm}", got.grad_norm);
    }
    println!("{name} on {device_name}: ten losses agree, the last {:.5}", losses[9]);
}

/// Blocks in 8 bits: what rounding to 255 levels moves logits by.
fn check_packed(name: &'static str, device: &Device) {
    let Some(shared) = shared() else { return };
    let golden = Golden::open(&shared, name);
    let blocks = vec![BlockFormats::uniform(Format::Q8); golden.config.num_hidden_layers];
    let job = Job::new(blocks, [Format::F16; 2], 2, 48);
    let (checkpoint, config) = (&golden.checkpoint, &golden.config);
    let model = Model::load(device, checkpoint, config, &job, LoraInit::NONE, &mut |_| ());
    let logits = model.expect("a model").all_logits(&golden.batch()).expect("logits");
    let want = golden.floats("logits");
    let error: f64 = logits.iter().zip(&want).map(|(a, b)| f64::from(a - b).powi(2)).sum();
    let error = error / want.iter().map(|b| f64::from(*b).powi(2)).sum::<f64>();
    println!("{name} on {} in 8 bits: relative squared error {error:.1e}", device.info().name);
    assert!((1e-8..1e-3).contains(&error), "{name} in 8 bits: {error:e}");
}

fn check_on_both(name: &'static str) {
    let cpu = Device::open("cpu", &Options::default()).expect("the cpu device");
    for device in [Some(cpu), gpu()].into_iter().flatten() {
        check(name, &device);
        check_packed(name, &device);
    }
}

#[test]
fn llama_untied() {
    check_on_both("llama-untied");
}

#[test]
fn llama3_rope() {
    check_on_both("llama3-rope");
}

#[test]
fn mistral() {
    check_on_both("mistral");
}

#[test]
fn qwen2() {
    check_on_both("qwen2");
}

#[test]
fn qwen3() {
    check_on_both("qwen3");
}

#[test]
fn phi3() {
    check_on_both("phi3");
}

#[test]
fn gemma3() {
    check_on_both("gemma3");
}

#[test]
fn stories260k() {
    check_on_both("stories260K");
}

/// A trained model of twelve blocks in bf16: the runner's loss is the model's, fewer bits move the
/// distribution further, by a factor of ten and more.
#[test]
fn calibration_of_mini12() {
    let Some(shared) = shared() else { return };
    let Some(device) = gpu() else { return };
    let dir = shared.join("assets/models/mini12");
    let source = Source::open(&dir).expect("a model");
    let text = shared.join("assets/datasets/calibration/calibration_datav3.txt");
    let set = CalibrationSet::new(&source.tokenizer, &[text], 128, 4, None).expect("a set");
    let formats = [Format::Q8, Format::Q4, Format::Q2];
    let options = RunnerOptions::new(&formats, &set);
    let (checkpoint, config) = (&source.checkpoint, &source.config);
    let runner = Runner::open(&device, checkpoint, config, &options, &mut |_| ());
    let mut runner = runner.expect("a runner");
    let input = runner.embed(&set).expect("embeddings");
    let mut reference = runner.copy(&input).expect("a copy");
    runner.advance(0..12, &mut reference).expect("hidden states");
    let own = runner.divergence(12, &reference, &reference, &set).expect("a divergence");
    let dense = source.formats(Some(Bits::default()), Some(32)).expect("formats");
    let job = source.job(dense, 4, 128);
    let model = Model::load(&device, checkpoint, config, &job, LoraInit::NONE, &mut |_| ());
    let evaluated =
        model.expect("a model").evaluate([set.batch(0, 4)].into_iter(), Vote::Last, |_| ());
    let want = evaluated.expect("losses").last();
    assert!((own.loss - want).abs() < 1e-5, "{} for {want}", own.loss);
    let mut moved = Vec::new();
    for format in formats {
        let started = std::time::Instant::now();
        for block in 0..12 {
            for projection in Projection::ALL {
                let (n, k) = runner.shape().projection(projection);
                let weight = runner.own_weight(block, projection).expect("a weight");
                let packed = pack(format, n, k, &weight);
                runner.set_weight(block, projection, packed).expect("room");
            }
        }
        let found = runner.divergence(0, &input, &reference, &set).expect("a divergence");
        println!(
            "mini12 {}: KL {:.3e}, perplexity {:.2} from {:.2}, {:.2} s",
            format.name(),
            found.kl,
            found.perplexity(),
            found.reference_perplexity(),
            started.elapsed().as_secs_f64()
        );
        moved.push(found.kl);
    }
    assert!(
        moved[0] > 0.0 && 10.0 * moved[0] < moved[1] && 10.0 * moved[1] < moved[2],
        "{moved:?}"
    );
}
