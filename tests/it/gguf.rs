//! GGUF files through the library and the program: what is exported is read back, by candle's
//! reader too, and every command takes a file where it takes a folder.

use std::collections::BTreeMap;
use std::fs::File;
use std::path::{Path, PathBuf};

use candle_core::quantized::gguf_file::{Content, Value as Said};
use edge_runtime::adapter;
use edge_runtime::batch::Batch;
use edge_runtime::checkpoint::Dtype;
use edge_runtime::gguf::export;
use edge_runtime::gguf::types::Type;
use edge_runtime::session::{Source, Tuned};
use edge_scheduler::Projection;
use edge_tests::{cpu, largest_difference, shared, tiny};
use serde_json::Value;
use tempfile::TempDir;

use crate::commands::{demo, refused, run};
use crate::families;

const F32: Type = Type::Plain(Dtype::F32);
const F16: Type = Type::Plain(Dtype::F16);

/// Runs what must work; its last line on stdout, where that is JSON.
fn works(args: &[&str]) -> Value {
    let output = run(args);
    let text = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.success(), "{args:?}: {text}");
    let line = String::from_utf8(output.stdout).expect("UTF-8");
    serde_json::from_str(line.lines().last().unwrap_or_default()).unwrap_or(Value::Null)
}

fn shown(path: &Path) -> String {
    path.display().to_string()
}

/// Logits at the last exit, in the checkpoint's own numbers.
fn logits(source: &Source, tuned: &Tuned) -> Vec<f32> {
    let formats = source.formats(None, None).expect("formats");
    let mut job = source.job(formats, 1, 24);
    tuned.apply(&mut job);
    let model = tuned.load(&cpu(), source, &job, &mut |_| ()).expect("a model");
    let ids = (0..24).map(|i| (i * 7 + 3) % 200).collect();
    model.all_logits(&Batch::new(ids, 24)).expect("logits")
}

/// Writes and opens a model.
fn through(source: &Source, tuned: &Tuned, kind: Type, dir: &Path) -> (PathBuf, Source) {
    let path = dir.join(format!("{kind}.gguf"));
    export::model(source, tuned, &path, kind, &|| ()).expect("a file");
    let back = Source::open(&path).expect("the file again");
    (path, back)
}

#[test]
fn a_model_comes_back_as_it_was() {
    let dir = TempDir::new().expect("a folder");
    let source = Source::open(demo("model").as_ref()).expect("the demo model");
    let own = logits(&source, &Tuned::default());
    let text = std::fs::read_to_string(demo("valid.txt")).expect("a text");
    for (kind, most) in [(F32, 1e-5), (F16, 2e-2), (Type::Q8_0, 0.3), (Type::Q4_0, 4.0)] {
        let (_, back) = through(&source, &Tuned::default(), kind, dir.path());
        assert_eq!(back.config, source.config, "{kind}");
        let ids = |source: &Source| source.tokenizer.encode(&text, true).expect("ids");
        assert_eq!(ids(&back), ids(&source), "{kind}");
        let off = largest_difference(&own, &logits(&back, &Tuned::default()));
        assert!(off < most && (off > 0.0 || kind == F32), "{kind}: {off}");
    }
}

#[test]
fn other_shapes_come_back_too() {
    let Some(shared) = shared() else { return };
    let dir = TempDir::new().expect("a folder");
    // A head of its own, Llama 3's frequencies, heads wider than the model, biases, norms of heads.
    for name in ["llama-untied", "llama3-rope", "mistral", "qwen2", "qwen3"] {
        let folder = shared.join("golden").join(name);
        let source = Source::open(&folder).expect("a model");
        let tuned = Tuned::adapter(&folder.join("adapter"), &source.config).expect("an adapter");
        let own = logits(&source, &tuned);
        let (_, back) = through(&source, &tuned, F32, dir.path());
        let off = largest_difference(&own, &logits(&back, &Tuned::default()));
        assert!(off < 1e-4, "{name}: {off}");
        let moved = largest_difference(&own, &logits(&source, &Tuned::default()));
        assert!(moved > 0.1, "{name}: the adapter does nothing");
    }
}

#[test]
fn families_come_back_too() {
    let dir = TempDir::new().expect("a folder");
    for architecture in ["Qwen2ForCausalLM", "Qwen3ForCausalLM"] {
        let mut config = tiny::config_of(architecture);
        // llama.cpp knows no windows of this family.
        config["use_sliding_window"] = false.into();
        let model = families::folder(&config);
        let source = Source::open(model.path()).expect("a model");
        let own = logits(&source, &Tuned::default());
        let (_, back) = through(&source, &Tuned::default(), F32, dir.path());
        assert_eq!(back.config.family.name, source.config.family.name);
        let off = largest_difference(&own, &logits(&back, &Tuned::default()));
        assert!(off < 1e-4, "{architecture}: {off}");
    }
}

fn candle(path: &Path) -> (Content, File) {
    let mut file = File::open(path).expect("a file");
    (Content::read(&mut file).expect("candle reads it"), file)
}

fn candles(content: &Content, file: &mut File, name: &str) -> (Vec<usize>, Vec<f32>) {
    let device = candle_core::Device::Cpu;
    let tensor = content.tensor(file, name, &device).expect(name);
    let tensor = tensor.dequantize(&device).expect("values");
    let values = tensor.flatten_all().expect("a vector").to_vec1().expect("f32");
    (tensor.dims().to_vec(), values)
}

#[test]
fn another_reader_has_the_same_values() {
    let dir = TempDir::new().expect("a folder");
    let source = Source::open(demo("model").as_ref()).expect("the demo model");
    for kind in [F16, Type::Q8_0, Type::Q4_0] {
        let (path, back) = through(&source, &Tuned::default(), kind, dir.path());
        let (content, mut file) = candle(&path);
        let Some(Said::String(name)) = content.metadata.get("general.architecture") else {
            panic!("no architecture");
        };
        assert_eq!(name, "llama");
        for (theirs, ours) in [
            ("token_embd.weight", "model.embed_tokens.weight"),
            ("output_norm.weight", "model.norm.weight"),
            ("blk.1.attn_v.weight", "model.layers.1.self_attn.v_proj.weight"),
            ("blk.0.ffn_down.weight", "model.layers.0.mlp.down_proj.weight"),
        ] {
            let (shape, values) = candles(&content, &mut file, theirs);
            let own = back.checkpoint.tensor(ours).expect("a tensor");
            assert_eq!(
                (own.shape.clone(), own.to_f32().expect("values")),
                (shape, values),
                "{kind} {theirs}"
            );
        }
    }
}

/// An adapter of the demo model after a few steps, and its folder.
fn tuned(dir: &Path, flags: &[&str]) -> PathBuf {
    let out = dir.join("run");
    let (model, data, into) = (demo("model"), demo("valid.txt"), shown(&out));
    let base = ["tune", "--model", &model, "--data", &data, "--out", &into, "--device", "cpu"];
    let sizes = ["--batch-size", "2", "--seq-len", "32", "--lr", "1e-2", "--steps", "6", "--quiet"];
    works(&[&base[..], &sizes, flags].concat());
    out
}

#[test]
fn an_adapter_is_written_in_both_formats() {
    let dir = TempDir::new().expect("a folder");
    let run = tuned(dir.path(), &["--method", "lora", "--rank", "4", "--alpha", "12"]);
    let (peft, file) = (dir.path().join("peft"), dir.path().join("file"));
    for (format, out) in [("peft", &peft), ("gguf-adapter", &file)] {
        let args = ["export", "--run", &shown(&run), "--format", format, "--out", &shown(out)];
        let report = works(&[&args[..], &["--json"]].concat());
        assert_eq!(report["format"], format);
        assert!(std::fs::read_to_string(out.join("README.md")).is_ok_and(|t| t.contains("rank 4")));
    }
    let names = std::fs::read_dir(&peft).expect("a folder").flatten();
    let names: Vec<_> = names.filter_map(|file| file.file_name().into_string().ok()).collect();
    assert_eq!(names.len(), 3, "{names:?}");
    let source = Source::open(demo("model").as_ref()).expect("the demo model");
    let (config, own) = adapter::load(&run, &source.config).expect("the run's");
    let (again, copy) = adapter::load(&peft, &source.config).expect("the export's");
    assert_eq!((&again.target_modules, again.r), (&config.target_modules, 4));
    assert_eq!(copy, own);

    let path = file.join("adapter.gguf");
    let (content, mut open) = candle(&path);
    let said = |key: &str| format!("{:?}", content.metadata.get(key));
    assert!(said("general.type").contains("adapter") && said("adapter.type").contains("lora"));
    assert!(said("adapter.lora.alpha").contains("12"), "{}", said("adapter.lora.alpha"));
    assert_eq!(content.tensor_infos.len(), 2 * own.len());
    let gguf = |projection| match projection {
        Projection::Q => "attn_q",
        Projection::Down => "ffn_down",
        _ => "attn_v",
    };
    for projection in [Projection::Q, Projection::V, Projection::Down] {
        let (a, b) = &own[&(1, projection)];
        let stem = format!("blk.1.{}.weight", gguf(projection));
        let (shape, values) = candles(&content, &mut open, &format!("{stem}.lora_a"));
        assert_eq!((shape[0], &values), (4, a), "{stem}");
        let (shape, values) = candles(&content, &mut open, &format!("{stem}.lora_b"));
        assert_eq!(shape[1], 4);
        if projection == Projection::Q {
            // Rows 0, d/2, 1, d/2 + 1, ... of each head.
            let half = source.config.head_dim / 2;
            assert_eq!(values[..4], b[..4]);
            assert_eq!(values[4..8], b[4 * half..4 * half + 4]);
            assert_eq!(values[8..12], b[4..8]);
        } else {
            assert_eq!(&values, b, "{stem}");
        }
    }
    let report = works(&["inspect", &shown(&path), "--json"]);
    assert_eq!((&report["kind"], &report["lora_alpha"]), (&"gguf-adapter".into(), &12.0.into()));
    refused(&["eval", "--model", &shown(&path), "--data", &demo("valid.txt")], 1);
}

#[test]
fn a_merged_file_has_the_loss_of_base_and_adapter() {
    let dir = TempDir::new().expect("a folder");
    let flags = ["--method", "edge", "--windows", "2", "--bits", "8", "--exit-rank", "3"];
    let run = tuned(dir.path(), &flags);
    let (out, data) = (dir.path().join("out"), demo("valid.txt"));
    let args = ["export", "--run", &shown(&run), "--format", "gguf", "--gguf-type", "q8_0"];
    let more = ["--out", &shown(&out), "--data", &data, "--device", "cpu", "--json"];
    let report = works(&[&args[..], &more].concat());
    let number = |key: &str| report[key].as_f64().expect(key);
    assert!((number("loss_before") - number("loss_after")).abs() < 0.02, "{report}");
    assert!(number("rounded_weights") > 0.5 * number("weights"), "{report}");
    let file = out.join("model-q8_0.gguf");
    assert_eq!(report["file"], shown(&file));
    let args = ["eval", "--model", &shown(&file), "--data", &data, "--device", "cpu", "--json"];
    let seen = works(&args)["loss"].as_f64().expect("a loss");
    assert!((seen - number("loss_after")).abs() < 1e-3, "{seen} {report}");
    let merged = dir.path().join("merged");
    let args = ["export", "--run", &shown(&run), "--out", &shown(&merged), "--dtype", "bf16"];
    let report = works(&[&args[..], &["--json"]].concat());
    // An f32 product does not fit into bf16; what has no adapter stays.
    let (moved, all) = (report["rounded_weights"].as_u64(), report["weights"].as_u64());
    assert!(moved > Some(0) && moved < all, "{report}");
}

#[test]
fn every_command_takes_a_file() {
    let dir = TempDir::new().expect("a folder");
    let source = Source::open(demo("model").as_ref()).expect("the demo model");
    let (path, _) = through(&source, &Tuned::default(), Type::Q8_0, dir.path());
    let (model, data) = (shown(&path), demo("valid.txt"));
    let report = works(&["inspect", &model, "--json"]);
    assert_eq!((&report["kind"], &report["architecture"]), (&"gguf".into(), &"Llama".into()));
    assert!(report["dtypes"]["Q8_0"].as_u64() > Some(20), "{report}");
    works(&["data", "--model", &model, "--data", &data, "--seq-len", "32", "--json"]);
    works(&["plan", "--model", &model, "--device", "cpu", "--data", &data, "--seq-len", "32"]);
    let prompt = ["--device", "cpu", "--prompt", "The", "--max-new-tokens", "4", "--quiet"];
    let output = run(&[&["generate", "--model", &model][..], &prompt].concat());
    assert!(String::from_utf8_lossy(&output.stdout).starts_with("The"));
    // A run on a file: adapter, and a whole model as a folder.
    for method in ["qlora", "full"] {
        let out = shown(&dir.path().join(method));
        let base = ["tune", "--model", &model, "--data", &data, "--out", &out, "--device", "cpu"];
        let sizes = ["--batch-size", "2", "--seq-len", "32", "--steps", "2", "--quiet"];
        works(&[&base[..], &sizes, &["--method", method]].concat());
        works(&["eval", "--run", &out, "--data", &data, "--device", "cpu", "--max-windows", "4"]);
    }
    let (run_dir, merged) = (shown(&dir.path().join("qlora")), dir.path().join("merged"));
    works(&["export", "--run", &run_dir, "--out", &shown(&merged), "--dtype", "f16"]);
    let folder = Source::open(&merged).expect("a folder of a file");
    assert_eq!(folder.config, source.config);
    let full = Source::open(&dir.path().join("full")).expect("a folder of a file");
    let names = |source: &Source| -> BTreeMap<String, Vec<usize>> {
        let shape = |name: &str| source.checkpoint.tensor(name).expect("a tensor").shape;
        source.checkpoint.names().map(|name| (name.to_owned(), shape(name))).collect()
    };
    assert_eq!(names(&full), names(&source));
    let small = dir.path().join("small");
    let args = ["compress", "--model", &model, "--out", &shown(&small), "--target-bits", "4"];
    let fast = ["--policy", "uniform", "--fast", "--device", "cpu", "--quiet", "--sequences", "2"];
    let few = ["--calibration", &data, "--probe-sequences", "2", "--seq-len", "48"];
    works(&[&args[..], &fast, &few].concat());
    assert!(Source::open(&small).expect("a compressed model").checkpoint.compressed().is_some());
    // Blocks that would have to be converted each time are not streamed.
    let args = ["eval", "--model", &model, "--data", &data, "--device", "cpu"];
    let text = refused(&[&args[..], &["--memory-budget", "1MiB"]].concat(), 3);
    assert!(text.contains("compress the model first"), "{text}");
}

#[test]
fn exports_that_make_no_sense_are_refused() {
    let dir = TempDir::new().expect("a folder");
    let (model, data, out) = (demo("model"), demo("valid.txt"), dir.path().join("out"));
    let base = ["export", "--model", &model, "--out", &shown(&out)];
    for (flags, code, part) in [
        (&["--format", "gguf", "--dtype", "f16"][..], 2, "--gguf-type"),
        (&["--gguf-type", "q8_0"], 2, "--format gguf"),
        (&["--format", "peft", "--data", &data], 2, "--data"),
        (&["--format", "gguf", "--gguf-type", "q5_1"], 2, "q5_1"),
        (&["--format", "peft"], 1, "no adapter"),
        (&["--format", "gguf-adapter"], 1, "no adapter"),
    ] {
        let text = refused(&[&base[..], flags].concat(), code);
        assert!(text.contains(part), "{flags:?}: {text}");
        assert!(!out.exists(), "{flags:?} left a folder");
    }
    // A tokenizer that GGUF has no name for fails late, and leaves nothing either.
    let copy = dir.path().join("model");
    std::fs::create_dir(&copy).expect("a folder");
    for name in ["config.json", "tokenizer.json", "tokenizer_config.json", "model.safetensors"] {
        std::fs::copy(demo(&format!("model/{name}")), copy.join(name)).expect("a copy");
    }
    let file = copy.join("tokenizer.json");
    let text = std::fs::read_to_string(&file).expect("a tokenizer");
    let mut value: Value = serde_json::from_str(&text).expect("JSON");
    value["pre_tokenizer"]["use_regex"] = false.into();
    std::fs::write(&file, value.to_string()).expect("a tokenizer");
    let args = ["export", "--model", &shown(&copy), "--out", &shown(&out), "--format", "gguf"];
    let text = refused(&args, 1);
    assert!(text.contains("tokenizer.json cuts texts"), "{text}");
    assert!(!out.exists());
}
