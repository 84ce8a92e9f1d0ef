//! Compressed models in use: the same numbers as a dense checkpoint in the same formats, tuning,
//! and the commands.

use std::path::{Path, PathBuf};

use edge_gpu::Device;
use edge_kernels::pack::{PackedHost, pack};
use edge_kernels::{Format, Packing, Sparsity};
use edge_runtime::batch::Batch;
use edge_runtime::checkpoint::Checkpoint;
use edge_runtime::compress::read::About;
use edge_runtime::compress::write::Writer;
use edge_runtime::config::ModelConfig;
use edge_runtime::family::names::weight_name;
use edge_runtime::model::{LoraInit, Model};
use edge_runtime::session::Source;
use edge_runtime::tokenizer::Tokenizer;
use edge_runtime::tune::trainer::{AdamW, Trainer};
use edge_scheduler::{BlockPolicy, Job, Policy, Projection, Trained, Window};
use edge_tests::{cpu, gpu, tiny};
use serde_json::Value;
use tempfile::TempDir;

use crate::commands::{demo, refused, run};

const SEQ_LEN: usize = 24;

fn demo_model() -> Source {
    Source::open(Path::new(&demo("model"))).expect("the demo model")
}

/// A small random f32 model with a head of its own and 100 columns somewhere, which no block
/// divides. It has no tokenizer and gets the demo's.
fn tiny_model(dir: &Path) -> Source {
    tiny::write(dir, 7).expect("a checkpoint");
    for name in ["tokenizer.json", "tokenizer_config.json"] {
        std::fs::copy(demo(&format!("model/{name}")), dir.join(name)).expect("a copy");
    }
    Source {
        dir: dir.to_owned(),
        config: ModelConfig::load(dir).expect("a config"),
        checkpoint: Checkpoint::open(dir).expect("weights"),
        tokenizer: Tokenizer::load(dir).expect("a tokenizer"),
    }
}

/// A format of each kind, and a projection that differs from its block.
fn policy(blocks: usize) -> Policy {
    let grouped = Packing::new(4).group_size(64).zero_point().sparsity(Sparsity::RowGrouped);
    let formats = [Format::two_four(4), Format::Q3, grouped.format(), Format::F16, Format::Q8];
    let block = |index: usize| BlockPolicy::uniform(formats[index % formats.len()]);
    let mut blocks: Vec<_> = (0..blocks).map(block).collect();
    blocks[0].overrides[Projection::Down.index()] = Some(Format::Q8);
    blocks[1].overrides[Projection::Q.index()] = Some(Format::row_grouped(16));
    Policy { name: "own".into(), blocks }
}

fn compress(source: &Source, table: Format, out: &Path) -> PathBuf {
    compress_by(source, policy(source.config.num_hidden_layers), table, out)
}

fn compress_by(source: &Source, policy: Policy, table: Format, out: &Path) -> PathBuf {
    let about = About {
        policy: policy.clone(),
        embedding: table,
        head: table,
        calibration_hash: "none".into(),
        source_hash: "demo".into(),
        program_version: "0".into(),
    };
    let shape = source.config.shape();
    let mut writer = Writer::create(out, source, about).expect("a writer");
    for (block, rule) in policy.blocks.iter().enumerate() {
        let matrices: Vec<PackedHost> = Projection::ALL
            .into_iter()
            .map(|projection| {
                let (n, k) = shape.projection(projection);
                let tensor = source.checkpoint.tensor(&weight_name(block, projection));
                pack(
                    rule.get(projection),
                    n,
                    k,
                    &tensor.expect("a weight").to_f32().expect("values"),
                )
            })
            .collect();
        writer.block(&matrices).expect("a block");
    }
    writer.finish().expect("a folder");
    out.to_owned()
}

fn devices() -> Vec<Device> {
    [Some(cpu()), gpu()].into_iter().flatten().collect()
}

fn batch(source: &Source) -> Batch {
    let vocab = source.config.vocab_size;
    let ids = (0..2 * SEQ_LEN).map(|i| ((i * i * 7 + i * 13 + 5) % vocab) as u32);
    Batch::new(ids.collect(), SEQ_LEN)
}

fn load(device: &Device, source: &Source, job: &Job) -> Model {
    let (checkpoint, config) = (&source.checkpoint, &source.config);
    let init = LoraInit { scale: 2.0, seed: 3 };
    Model::load(device, checkpoint, config, job, init, &mut |_| ()).expect("a model")
}

/// The compressed model, and a job that gives the dense one the same formats.
fn pair(source: &Source, table: Format, out: &Path) -> (Source, Job) {
    let dir = compress(source, table, out);
    let config = source.config.clone();
    let checkpoint = Checkpoint::open_compressed(&dir, &config).expect("a compressed model");
    let tokenizer = Tokenizer::load(&dir).expect("a tokenizer");
    let compressed = Source { dir, config, checkpoint, tokenizer };
    let formats = compressed.formats(None, None).expect("formats");
    assert_eq!(formats.blocks, policy(source.config.num_hidden_layers).formats());
    let job = compressed.job(formats, 2, SEQ_LEN as u32);
    (compressed, job)
}

#[test]
fn logits_equal_those_of_the_dense_model_in_the_same_formats() {
    let dir = TempDir::new().expect("a temporary folder");
    let tiny = dir.path().join("tiny");
    std::fs::create_dir(&tiny).expect("a folder");
    let cases = [
        (demo_model(), Format::Bf16, "demo-bf16"),
        (demo_model(), Format::Q8, "demo-q8"),
        (tiny_model(&tiny), Format::F16, "tiny-f16"),
    ];
    for (source, table, name) in &cases {
        let (compressed, job) = pair(source, *table, &dir.path().join(name));
        // Loading is the same for all models; a driver on the CPU compiles each format for long.
        let devices = if *name == "demo-q8" { devices() } else { vec![cpu()] };
        for device in devices {
            let want = load(&device, source, &job).all_logits(&batch(source)).expect("logits");
            let got = load(&device, &compressed, &job).all_logits(&batch(source)).expect("logits");
            assert!(want.iter().all(|x| x.is_finite()) && want.iter().any(|x| *x != 0.0));
            assert!(got == want, "{name} on {}", device.info().name);
        }
    }
}

#[test]
fn a_compressed_model_is_tuned_as_the_dense_one() {
    let dir = TempDir::new().expect("a temporary folder");
    let source = demo_model();
    let (compressed, mut job) = pair(&source, Format::Bf16, &dir.path().join("m"));
    job.trained = Trained::Lora { rank: 4, targets: Projection::ALL.to_vec() };
    job.windows = Window::split(source.config.num_hidden_layers as u32, 2);
    job.exit_norms = true;
    job.training = true;
    job.vote = true;
    let losses = |source: &Source| -> Vec<f64> {
        let mut trainer = Trainer::new(load(&cpu(), source, &job), AdamW::default());
        let step = |step: usize| {
            let batches = [batch(source)];
            trainer.step(step % 2, &batches, 1e-2).expect("a step").loss
        };
        (0..4).map(step).collect()
    };
    let got = losses(&compressed);
    assert_eq!(got, losses(&source));
    assert!(got[2] < got[0] && got[3] < got[1], "{got:?}");
}

#[test]
fn the_job_takes_the_formats_of_the_file() {
    let dir = TempDir::new().expect("a temporary folder");
    let (compressed, job) = pair(&demo_model(), Format::Bf16, &dir.path().join("m"));
    let refused = |job: &Job| {
        let (checkpoint, config) = (&compressed.checkpoint, &compressed.config);
        let model = Model::load(&cpu(), checkpoint, config, job, LoraInit::NONE, &mut |_| ());
        format!("{:#}", model.err().expect("this had to be refused"))
    };
    let mut other = job.clone();
    other.blocks[2].set(Projection::K, Format::Q2);
    assert!(refused(&other).contains("other formats"));
    let full = Job { trained: Trained::Full, training: true, ..job };
    assert!(refused(&full).contains("--method edge or lora"));
}

#[test]
fn damage_is_found_when_the_block_is_loaded() {
    let dir = TempDir::new().expect("a temporary folder");
    let (compressed, job) = pair(&demo_model(), Format::Bf16, &dir.path().join("m"));
    let (sections, path) = {
        let stored = compressed.checkpoint.compressed().expect("compressed");
        (stored.layout.sections.clone(), stored.path.clone())
    };
    let mut bytes = std::fs::read(&path).expect("the file");
    let header = 8 + u64::from_le_bytes(bytes[..8].try_into().expect("8 bytes"));
    bytes[(header + sections[4].start) as usize + 4000] ^= 0x10;
    drop(compressed);
    std::fs::write(&path, &bytes).expect("the damaged file");
    let config = demo_model().config;
    let damaged = Checkpoint::open_compressed(&dir.path().join("m"), &config).expect("the header");
    let model = Model::load(&cpu(), &damaged, &config, &job, LoraInit::NONE, &mut |_| ());
    let error = format!("{:#}", model.err().expect("this had to be refused"));
    assert!(error.contains("model.layers.3") && error.contains("damaged"), "{error}");
}

fn last_json(output: &std::process::Output) -> Value {
    let text = String::from_utf8_lossy(&output.stdout);
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{errors}");
    serde_json::from_str(text.lines().last().unwrap_or_default()).expect("a JSON object")
}

/// Formats of every kind and a table of 16 bits go through an export as they are.
fn is_exported_as_it_is(tuned: &str, model: &str, again: &str) {
    let export = ["export", "--run", tuned, "--format", "compressed", "--out", again];
    let report = last_json(&run(&[&export[..], &["--json", "--quiet"]].concat()));
    assert!(report["rounded_weights"].as_u64() > Some(0), "{report}");
    let inspect = |path: &str| last_json(&run(&["inspect", path, "--json"]));
    let (mut before, mut after) = (inspect(model), inspect(again));
    for value in [&mut before, &mut after] {
        let keys = value.as_object_mut().expect("an object");
        // Where it is and who wrote it.
        keys.retain(|key, _| !["path", "program_version"].contains(&key.as_str()));
    }
    assert_eq!(before, after);
    let valid = demo("valid.txt");
    let eval = ["eval", "--model", again, "--data", &valid, "--device", "cpu", "--json"];
    assert!(last_json(&run(&eval))["loss"].as_f64().is_some_and(f64::is_finite));
}

#[test]
fn the_commands_take_a_compressed_model() {
    let dir = TempDir::new().expect("a temporary folder");
    let model = compress(&demo_model(), Format::Bf16, &dir.path().join("m")).display().to_string();
    let out = dir.path().join("run").display().to_string();
    let (train, valid) = (demo("train.txt"), demo("valid.txt"));
    let tune = [
        "tune",
        "--model",
        &model,
        "--data",
        &train,
        "--valid",
        &valid,
        "--out",
        &out,
        "--steps",
        "4",
        "--batch-size",
        "2",
        "--seq-len",
        "32",
        "--device",
        "cpu",
        "--lr",
        "1e-2",
        "--json",
    ];
    let with = |more: &[&'static str]| {
        let mut args = tune.to_vec();
        args.extend(more);
        args
    };
    let error = refused(&with(&["--bits", "4"]), 2);
    assert!(error.contains("--bits does not go with") && error.contains(&model), "{error}");
    assert!(refused(&with(&["--group-size", "64"]), 2).contains("--group-size"));
    let error = refused(&with(&["--method", "full"]), 1);
    assert!(error.contains("is compressed") && error.contains("original"), "{error}");
    assert!(!Path::new(&out).exists());

    let report = last_json(&run(&tune));
    assert!(report["val_loss"].as_f64() < report["val_loss_before"].as_f64(), "{report}");
    let eval = ["eval", "--run", &out, "--device", "cpu", "--seq-len", "32", "--json"];
    let eval = [&eval[..], &["--data", &valid, "--max-windows", "4"]].concat();
    assert!(last_json(&run(&eval))["loss"].as_f64().is_some_and(f64::is_finite));
    let lora = [&eval[..1], &["--model", &model, "--adapter", &out], &eval[3..]].concat();
    assert!(last_json(&run(&lora))["loss"].as_f64().is_some_and(f64::is_finite));
    let generate = ["generate", "--run", &out, "--device", "cpu", "--prompt", "The "];
    let output = run(&[&generate[..], &["--max-new-tokens", "4", "--temperature", "0"]].concat());
    assert!(output.status.success() && output.stdout.starts_with(b"The "));

    is_exported_as_it_is(&out, &model, &dir.path().join("again").display().to_string());

    let value = last_json(&run(&["inspect", &model, "--json"]));
    assert_eq!((&value["kind"], &value["policy"]), (&"compressed".into(), &"own".into()));
    let layers = value["layers"].as_array().expect("layers");
    // Two projections have formats of their own.
    assert_eq!(layers.len(), 6 + 2);
    let bytes: u64 = layers.iter().filter_map(|layer| layer["bytes"].as_u64()).sum();
    let shape = demo_model().config.shape();
    let averages = policy(6).averages(&shape);
    assert_eq!((Some(bytes), bytes), (value["projection_bytes"].as_u64(), averages.bytes));
    assert_eq!(value["average_bits"].as_f64(), Some(averages.bits));
    let file = std::fs::metadata(Path::new(&model).join("compressed.safetensors"));
    assert_eq!(value["bytes"].as_u64(), file.ok().map(|file| file.len()));
}

#[test]
fn a_tuned_model_is_exported_in_the_formats_of_its_base() {
    let dir = TempDir::new().expect("a temporary folder");
    let path = |name: &str| dir.path().join(name).display().to_string();
    let policy = Policy { name: "own".into(), blocks: vec![BlockPolicy::uniform(Format::Q8); 6] };
    compress_by(&demo_model(), policy, Format::Q8, Path::new(&path("base")));
    let (base, tuned, merged) = (path("base"), path("tuned"), path("merged"));
    let (train, valid) = (demo("train.txt"), demo("valid.txt"));
    let small = ["--device", "cpu", "--json", "--quiet"];
    let windows = ["--windows", "3", "--semantics", "isolated", "--window-shares", "1,1,8"];
    let sizes = ["--steps", "20", "--batch-size", "2", "--seq-len", "32", "--lr", "1e-2"];
    let tune = ["tune", "--model", &base, "--data", &train, "--out", &tuned];
    last_json(&run(&[&tune[..], &windows, &sizes, &small].concat()));
    let export = ["export", "--run", &tuned, "--out", &merged, "--format"];
    let error = refused(&[&export[..], &["safetensors"]].concat(), 1);
    assert!(error.contains("--format compressed") && !Path::new(&merged).exists(), "{error}");
    let measured = ["compressed", "--data", &valid];
    let report = last_json(&run(&[&export[..], &measured, &small].concat()));
    let number = |value: &Value, key: &str| value[key].as_f64().expect("a number");
    let (before, after) = (number(&report, "loss_before"), number(&report, "loss_after"));
    let eval = ["eval", "--model", &base, "--data", &valid];
    let untuned = number(&last_json(&run(&[&eval[..], &small].concat())), "loss");
    assert!(untuned - before > 20.0 * (after - before).abs(), "{untuned} {before} {after}");
    // Two of six blocks are the top window's, of seven matrices each, which rounding moves.
    let (moved, weights) = (number(&report, "rounded_weights"), number(&report, "weights"));
    assert!(moved > 0.3 * weights && moved <= weights / 3.0, "{moved} of {weights}");

    let open = |path: &str| Source::open(Path::new(path)).expect("a compressed model");
    let (base, merged) = (open(&base), open(&merged));
    let about = |source: &Source| source.checkpoint.compressed().expect("one").about.clone();
    assert_eq!(about(&base).policy, about(&merged).policy);
    let compressed = base.checkpoint.compressed().expect("one");
    for tensor in compressed.layout.tensors.iter().filter(|t| !t.name.contains("padding")) {
        let top = ["layers.4.", "layers.5."].iter().any(|layer| tensor.name.contains(layer));
        let moves = top && tensor.name.contains("proj") || tensor.name == "model.norm.weight";
        let same = words(&base, &tensor.name) == words(&merged, &tensor.name);
        assert_eq!(same, !moves, "{}", tensor.name);
    }
    an_exit_term_goes_into_a_head_of_its_own(dir.path(), &base);
    let dense = path("dense");
    let tune = ["tune", "--method", "lora", "--out", &dense, "--steps", "1", "--data", &train];
    let demo_dir = demo("model");
    let model = ["--model", &demo_dir, "--batch-size", "1", "--seq-len", "16"];
    last_json(&run(&[&tune[..], &model, &small].concat()));
    let no = path("no");
    let export = ["export", "--run", &dense, "--out", &no, "--format", "compressed"];
    assert!(refused(&export, 1).contains("is not compressed"));
}

/// A tensor's words as they are stored.
fn words(source: &Source, name: &str) -> Vec<u32> {
    let bytes = source.checkpoint.stored_bytes(name).expect("a tensor");
    let mut words = vec![0; bytes as usize / 4];
    source.checkpoint.stored(name, &mut words).expect("words");
    words
}

/// Tuned with low-rank terms on a compressed base whose head is tied to the embedding.
fn an_exit_term_goes_into_a_head_of_its_own(dir: &Path, base: &Source) {
    let (tuned, merged) = (dir.join("terms"), dir.join("terms-merged"));
    let shown = |path: &Path| path.display().to_string();
    let (tuned, merged, model) = (shown(&tuned), shown(&merged), shown(&base.dir));
    let (train, valid) = (demo("train.txt"), demo("valid.txt"));
    let small = ["--device", "cpu", "--json", "--quiet"];
    let tune = ["tune", "--model", &model, "--data", &train, "--out", &tuned, "--exit-rank", "4"];
    let sizes = ["--steps", "20", "--batch-size", "2", "--seq-len", "32", "--lr", "1e-2"];
    last_json(&run(&[&tune[..], &["--windows", "2"], &sizes, &small].concat()));
    let export = ["export", "--run", &tuned, "--out", &merged, "--format", "compressed"];
    let report = last_json(&run(&[&export[..], &["--data", &valid], &small].concat()));
    let number = |key: &str| report[key].as_f64().expect("a number");
    let (before, after) = (number("loss_before"), number("loss_after"));
    assert!((before - after).abs() < 0.02, "{before} {after}");
    let merged = Source::open(Path::new(&merged)).expect("a compressed model");
    assert!(base.config.tie_word_embeddings && !merged.config.tie_word_embeddings);
    let embedding = words(base, "model.embed_tokens.weight.values.0");
    assert_eq!(words(&merged, "model.embed_tokens.weight.values.0"), embedding);
    assert_ne!(words(&merged, "lm_head.weight.values.0"), embedding);
}

#[test]
fn inspect_knows_each_kind_of_folder() {
    let dir = TempDir::new().expect("a temporary folder");
    let value = last_json(&run(&["inspect", &demo("model"), "--json"]));
    assert_eq!(value["kind"], "checkpoint");
    assert_eq!(value["parameters"].as_u64(), Some(demo_model().config.shape().parameters()));
    assert_eq!(value["dtypes"].as_object().map(serde_json::Map::len), Some(1));
    let out = dir.path().join("run").display().to_string();
    let (model, train) = (demo("model"), demo("train.txt"));
    let tune = [
        "tune",
        "--model",
        &model,
        "--data",
        &train,
        "--out",
        &out,
        "--steps",
        "1",
        "--batch-size",
        "1",
        "--seq-len",
        "16",
        "--device",
        "cpu",
        "--rank",
        "4",
        "--targets",
        "q_proj",
        "--quiet",
    ];
    assert!(run(&tune).status.success());
    let value = last_json(&run(&["inspect", &out, "--json"]));
    assert_eq!((&value["kind"], &value["options"]["rank"]), (&"run".into(), &4.into()));
    let adapter = &value["adapter"];
    assert_eq!((&adapter["rank"], &adapter["alpha"]), (&4.into(), &8.0.into()));
    assert_eq!(adapter["targets"], serde_json::json!(["q_proj"]));
    assert_eq!(adapter["parameters"].as_u64(), Some(6 * 4 * (128 + 128)));
    std::fs::remove_file(Path::new(&out).join("config.resolved.yaml")).expect("removed");
    assert_eq!(last_json(&run(&["inspect", &out, "--json"]))["kind"], "adapter");
    let empty = dir.path().display().to_string();
    assert!(refused(&["inspect", &empty], 1).contains("holds no model"));
    assert!(refused(&["inspect", "/absent"], 1).contains("does not exist"));
}
