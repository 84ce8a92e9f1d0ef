//! `compress` as a person runs it: what it writes is what it says, twice the same, of the size
//! that the policy comes to, and refused where nothing sensible can be written.

use std::path::{Path, PathBuf};

use edge_kernels::{Category, Format};
use edge_runtime::compress::policy_file;
use edge_runtime::data::{DataSpec, load_eval};
use edge_runtime::model::{LoraInit, Model};
use edge_runtime::session::Source;
use edge_scheduler::Policy;
use edge_tests::{cpu, gpu};
use serde_json::Value;
use tempfile::TempDir;

use crate::commands::{demo, program, refused, run};

/// Flags of a small compression of the demo model into `out`.
fn flags<'a>(out: &'a str, text: &'a str, cache: &'a str, more: &[&'a str]) -> Vec<&'a str> {
    let mut all = vec!["compress", "--out", out, "--calibration", text, "--sensitivity", cache];
    all.extend(["--sequences", "6", "--probe-sequences", "3", "--seq-len", "48", "--json"]);
    if !more.contains(&"--device") {
        all.extend(["--device", "cpu"]);
    }
    all.extend(more);
    all
}

struct Folder {
    dir: TempDir,
}

impl Folder {
    fn new() -> Self {
        Self { dir: TempDir::new().expect("a folder") }
    }

    fn path(&self, name: &str) -> String {
        self.dir.path().join(name).display().to_string()
    }

    /// Compresses into `name`; returns the report.
    fn compress(&self, name: &str, more: &[&str]) -> Value {
        // A file for each measurement: one of other settings is refused.
        let cache = self.path(&format!("cache{}.json", more.join("").replace('/', "")));
        let (out, text) = (self.path(name), demo("train.txt"));
        let output = run(&flags(&out, &text, &cache, more));
        let stderr = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(0), "{stderr}");
        let stdout = String::from_utf8(output.stdout).expect("text");
        serde_json::from_str(stdout.lines().last().expect("a line")).expect("JSON")
    }

    fn weights(&self, name: &str) -> Vec<u8> {
        std::fs::read(Path::new(&self.path(name)).join("compressed.safetensors")).expect("a file")
    }

    fn policy(&self, name: &str) -> Policy {
        let path = PathBuf::from(self.path(name)).join(policy_file::FILE);
        policy_file::read(&path, 6).expect("a policy")
    }
}

#[test]
fn what_is_written_is_what_is_reported() {
    let folder = Folder::new();
    let text = std::fs::read_to_string(demo("valid.txt")).expect("a text");
    let valid = folder.path("valid.txt");
    std::fs::write(&valid, text.split_at(500).0).expect("a text");
    let original = Source::open(Path::new(&demo("model"))).expect("the demo model");
    let spec = DataSpec { data: vec![PathBuf::from(&valid)], ..DataSpec::default() };
    let stream = load_eval(&spec, &original.tokenizer).expect("tokens");
    // All of them, as there are no more than sequences of calibration.
    let windows = stream.windows(48);
    assert!((2..=6).contains(&windows), "{windows}");
    let more = ["--target-bits", "3.5", "--target-sparsity", "0.25", "--refine", "12"];
    let more: Vec<&str> = more.into_iter().chain(["--valid", &valid]).collect();
    let report = folder.compress("luc", &more);
    let bytes = folder.weights("luc").len() as u64;
    assert_eq!(report["bytes"], bytes);
    let source = Source::open(Path::new(&folder.path("luc"))).expect("a compressed model");
    let shape = source.config.shape();
    let averages = folder.policy("luc").averages(&shape);
    assert_eq!(report["average_bits"].as_f64(), Some(averages.bits));
    assert_eq!(report["average_sparsity"].as_f64(), Some(averages.sparsity));
    assert!(averages.bits <= 3.5 && averages.sparsity >= 0.25, "{averages:?}");
    let layers = report["layers"].as_array().expect("layers");
    let stored: u64 = layers.iter().map(|layer| layer["bytes"].as_u64().expect("bytes")).sum();
    assert_eq!((layers.len(), stored), (6, averages.bytes));
    assert_eq!(layers[2]["name"], "model.layers.2");
    assert_eq!(layers[2]["projections"][6]["name"], "model.layers.2.mlp.down_proj");
    for layer in layers {
        let error = layer["error"].as_f64().expect("an error");
        assert!(error > 0.0 && error < 0.5, "{layer}");
    }
    assert!(report["error_refined"].as_f64() <= report["error_unrefined"].as_f64());
    assert_eq!(report["evaluations"].as_u64().map(|count| (2..=12).contains(&count)), Some(true));
    // Perplexity is that of `eval` on the same windows.
    let windows = windows.to_string();
    for (key, model) in [("before", demo("model")), ("after", folder.path("luc"))] {
        let mut args = vec!["eval", "--model", &model, "--data", &valid, "--seq-len", "48"];
        args.extend(["--device", "cpu", "--json", "--quiet", "--max-windows", &windows]);
        let output = run(&args);
        let found: Value = serde_json::from_slice(&output.stdout).expect("JSON");
        let want = report[format!("perplexity_{key}")].as_f64().expect("perplexity");
        let got = found["perplexity"].as_f64().expect("perplexity");
        assert!((got / want - 1.0).abs() < 1e-4, "{key}: {got} for {want}");
    }
}

#[test]
fn compressing_twice_gives_the_same_bytes() {
    let folder = Folder::new();
    let more = ["--target-bits", "3", "--refine", "5"];
    folder.compress("a", &more);
    let cache = folder.path("cache--target-bits3--refine5.json");
    assert!(Path::new(&cache).exists());
    let (out, text) = (folder.path("d"), demo("train.txt"));
    let other = flags(&out, &text, &cache, &["--target-bits", "3", "--measure", "output"]);
    assert!(refused(&other, 1).contains("with these settings: give --sensitivity another path"));
    // Sensitivity from the file this time, and then the policy, too.
    folder.compress("b", &more);
    let policy = format!("{}/policy.json", folder.path("a"));
    let report = folder.compress("c", &["--policy", &policy]);
    assert_eq!(report["evaluations"], 0);
    let first = folder.weights("a");
    assert!(first == folder.weights("b"), "with sensitivity from the file");
    assert!(first == folder.weights("c"), "with the policy as a file");
}

#[test]
fn device_memory_is_that_of_the_policy() {
    let folder = Folder::new();
    folder.compress("m", &["--policy", "random", "--target-bits", "3.4", "--fast"]);
    let source = Source::open(Path::new(&folder.path("m"))).expect("a compressed model");
    let shape = source.config.shape();
    let projections = folder.policy("m").averages(&shape).bytes;
    // The table in 8 bits; norms in f32, two a block and the last; RoPE's angles.
    let (d, vocab) = (u64::from(shape.hidden_size), u64::from(shape.vocab_size));
    let norms = 4 * d * (2 * u64::from(shape.num_blocks) + 1);
    let table = Format::Q8.bytes(shape.vocab_size, shape.hidden_size);
    assert_eq!(table, (d + 2 * d / 32) * vocab.next_multiple_of(8));
    let rest = table + norms + 4 * 16 * u64::from(shape.head_dim);
    for device in [Some(cpu()), gpu()].into_iter().flatten() {
        let before = device.memory().current[Category::Weights as usize];
        let formats = source.formats(None, None).expect("formats");
        let job = source.job(formats, 1, 16);
        let (checkpoint, config) = (&source.checkpoint, &source.config);
        let model = Model::load(&device, checkpoint, config, &job, LoraInit::NONE, &mut |_| ())
            .expect("a model");
        let held = device.memory().current[Category::Weights as usize] - before;
        assert_eq!(held, projections + rest, "{}", device.info().name);
        drop(model);
    }
}

#[test]
fn the_bytes_that_were_asked_for_are_the_most() {
    let folder = Folder::new();
    for bytes in ["700000", "1000000"] {
        let report = folder.compress(bytes, &["--target-bytes", bytes, "--fast"]);
        let written = report["bytes"].as_u64().expect("bytes");
        let most: u64 = bytes.parse().expect("a number");
        assert!(written <= most && written > most * 9 / 10, "{written} of {most}");
    }
}

#[test]
fn a_step_that_is_to_be_short_gets_formats_that_are_fast() {
    let folder = Folder::new();
    let more = ["--fast", "--refine", "0", "--step-tokens", "64", "--target-step-ms"];
    let of = |ms: &'static str| [&more[..], &[ms]].concat();
    let free = folder.compress("free", &of("1e6"));
    // No limit: what is measured best wins.
    assert_eq!(free["average_sparsity"], 0.0);
    assert!(free["average_bits"].as_f64() >= Some(8.0), "{free}");
    let (out, cache, text) = (folder.path("none"), folder.path("cache.json"), demo("train.txt"));
    let error = refused(&flags(&out, &text, &cache, &of("1e-6")), 1);
    assert!(error.contains("least possible") && error.contains("--target-step-ms"), "{error}");
    assert!(!Path::new(&out).exists());
}

#[test]
fn a_small_budget_streams_blocks() {
    let folder = Folder::new();
    let text = demo("train.txt");
    let more = ["--policy", "uniform", "--target-bits", "4", "--target-sparsity", "0.5"];
    let whole = folder.compress("whole", &more);
    // 128 MiB are set aside for the process, and 16 MiB for hidden states.
    let budget: Vec<&str> = more.into_iter().chain(["--memory-budget", "160MiB"]).collect();
    let part = folder.compress("part", &budget);
    let number = |report: &Value, key: &str| report[key].as_f64().expect("a number");
    let peaks = [&part, &whole].map(|report| number(report, "peak_device_bytes"));
    assert!(peaks[0] < 0.8 * peaks[1], "{peaks:?}");
    assert_eq!(part["bytes"], whole["bytes"]);
    // Micro-batches differ, and so do the last bits of sums over them, and then some roundings.
    let losses = [&part, &whole].map(|report| number(report, "perplexity_after").ln());
    assert!((losses[0] / losses[1] - 1.0).abs() < 0.02, "{losses:?}");
    let (out, cache) = (folder.path("none"), folder.path("cache.json"));
    let error = refused(&flags(&out, &text, &cache, &["--memory-budget", "138MiB"]), 1);
    assert!(error.contains("--memory-budget") && error.contains("raise it"), "{error}");
    assert!(!Path::new(&out).exists());
}

#[test]
fn what_cannot_be_done_is_refused_in_a_sentence() {
    let folder = Folder::new();
    let (out, cache, text) = (folder.path("out"), folder.path("cache.json"), demo("train.txt"));
    let short = folder.path("short.txt");
    std::fs::write(&short, "Too short.").expect("a text");
    let policy = folder.path("p.json");
    let unknown = r#"{"version": 1, "policy": "own", "layers": [
        {"name": "model.layers.77", "bits": 4, "sparsity": "dense"}]}"#;
    std::fs::write(&policy, unknown).expect("a policy");
    let refused = |text: &str, more: &[&str], code, parts: &[&str]| {
        let error = refused(&flags(&out, text, &cache, more), code);
        for part in parts {
            assert!(error.contains(part), "{more:?}: {error}");
        }
        assert!(!Path::new(&out).exists(), "{more:?}");
    };
    refused(&short, &[], 1, &["short.txt", "at least one sequence of 48"]);
    refused(&text, &["--policy", &policy], 1, &["p.json", "model.layers.77"]);
    let both = ["--policy", &policy, "--target-bits", "3"];
    refused(&text, &both, 2, &["--target-bits does not go with", "p.json"]);
    refused(&text, &["--policy", "best"], 2, &["luc, uniform, random, paper"]);
    refused(&text, &["--target-bits", "1"], 1, &["--target-bits is 1", "2 to 16"]);
    refused(&text, &["--target-bytes", "1kB"], 1, &["--target-bytes 1000", "raise it"]);
    refused(&text, &["--target-bytes", "450kB"], 1, &["450000 cannot be met", "raise it"]);
    refused(&text, &["--target-bytes", "1MB", "--policy", "paper"], 2, &["--policy paper"]);
    refused(&text, &["--target-sparsity", "0.7"], 1, &["--target-sparsity is 0.7"]);
    refused(&text, &["--group-size", "48"], 1, &["--group-size is 48"]);
    let both = ["--policy", &policy, "--group-size", "64"];
    refused(&text, &both, 2, &["--group-size does not go with", "p.json"]);
    refused(&text, &["--row-grouped"], 2, &["--row-grouped", "--target-sparsity"]);
    refused(&text, &["--valid", &short], 1, &["short.txt", "--valid needs"]);
    refused(&text, &["--model", "/absent"], 1, &["/absent"]);
    // What is there stays as it is.
    std::fs::create_dir(&out).expect("a folder");
    let kept = Path::new(&out).join("mine.txt");
    std::fs::write(&kept, "mine").expect("a file");
    let error = crate::commands::refused(&flags(&out, &text, &cache, &[]), 1);
    assert!(error.contains("has files already"), "{error}");
    assert_eq!(std::fs::read_dir(&out).expect("a folder").count(), 1);
}

#[test]
fn the_rule_of_the_paper_gives_some_blocks_more() {
    let folder = Folder::new();
    let more = ["--policy", "paper", "--fast", "--target-bits", "4", "--target-sparsity", "0.25"];
    let report = folder.compress("paper", &more);
    assert_eq!(report["policy"], "paper");
    // Errors above their mean exist unless all are alike.
    assert!(report["average_bits"].as_f64() > Some(4.0), "{report}");
    assert_eq!(report["average_sparsity"].as_f64(), Some(0.25));
}

/// Ctrl-C while it works: status 130, and nothing is left.
#[test]
#[cfg(unix)]
fn an_interrupted_compression_leaves_nothing() {
    use std::io::{BufRead, BufReader};
    use std::process::{Command, Stdio};

    let folder = Folder::new();
    let (out, cache, text) = (folder.path("out"), folder.path("cache.json"), demo("train.txt"));
    // Enough to do for minutes.
    let args = flags(&out, &text, &cache, &["--granularity", "projection", "--refine", "100000"]);
    let mut command = Command::new(program());
    let child = command.args(args).stdout(Stdio::null()).stderr(Stdio::piped()).spawn();
    let mut child = child.expect("the program starts");
    let mut lines = BufReader::new(child.stderr.take().expect("stderr")).lines();
    // It listens before it says anything.
    assert!(lines.next().is_some());
    let killed = Command::new("kill").args(["-INT", &child.id().to_string()]).status();
    assert!(killed.expect("kill runs").success());
    let rest: Vec<String> = lines.map_while(Result::ok).collect();
    let status = child.wait().expect("an exit");
    assert_eq!(status.code(), Some(130), "{rest:?}");
    assert!(rest.iter().any(|line| line.contains("interrupted: nothing was written")), "{rest:?}");
    assert!(!Path::new(&out).exists() && !Path::new(&cache).exists());
}

#[test]
fn a_compressed_model_is_not_compressed_again() {
    let folder = Folder::new();
    folder.compress("once", &["--policy", "uniform", "--fast"]);
    let (once, twice) = (folder.path("once"), folder.path("twice"));
    let (cache, text) = (folder.path("cache.json"), demo("train.txt"));
    let error = refused(&flags(&twice, &text, &cache, &["--model", &once]), 1);
    assert!(error.contains("compressed already") && error.contains("original"), "{error}");
    assert!(!Path::new(&twice).exists());
}
