//! `cargo xtask demo-model` and `cargo xtask synth-model`.

use std::path::Path;

use anyhow::{Context, Result, ensure};

use crate::{cmd, vulkan};

/// Where the demo model is made; below `target/`, so that git does not see it.
const WORK: &str = "target/demo-model";

/// Where the program looks for it.
const BUNDLE: &str = "crates/edge-runtime/demo";

/// What the repository may grow by.
const MODEL_BYTES_MAX: u64 = 4 << 20;

/// How the demo model is pre-trained: the only place that says so.
const PRETRAIN: &str = "tune --method full --model target/demo-model/start \
    --data target/demo-model/pretrain.txt --out target/demo-model/run --device cpu --seed 1 \
    --steps 800 --batch-size 16 --seq-len 128 --val-fraction 0.02 \
    --lr 2e-3 --schedule cosine --warmup-steps 40";

/// What the bundle holds, and where below [`WORK`] it is taken from.
const FILES: &[(&str, &str)] = &[
    ("model/config.json", "start/config.json"),
    ("model/tokenizer.json", "start/tokenizer.json"),
    ("model/tokenizer_config.json", "start/tokenizer_config.json"),
    ("model/model.safetensors", "run/model.safetensors"),
    ("train.txt", "adapt_train.txt"),
    ("valid.txt", "adapt_valid.txt"),
];

/// Generates the texts and a random model, pre-trains it with this project's own `full` method,
/// and puts the result into the bundle.
pub(crate) fn demo_model(args: &[String]) -> Result<()> {
    cmd::no_arguments("demo-model", args)?;
    if Path::new(WORK).exists() {
        std::fs::remove_dir_all(WORK).with_context(|| format!("{WORK} cannot be removed"))?;
    }
    cmd::run(example("demo_model").arg(WORK))?;
    let pretrain: Vec<&str> = PRETRAIN.split_whitespace().collect();
    cmd::run(cmd::edge_runtime(&pretrain).envs(vulkan::quiet_environment()))?;
    let model = Path::new(WORK).join("run/model.safetensors");
    let bytes = std::fs::metadata(&model)
        .with_context(|| format!("`tune --method full` wrote no {}", model.display()))?
        .len();
    ensure!(
        bytes <= MODEL_BYTES_MAX,
        "{} has {bytes} bytes, more than the {MODEL_BYTES_MAX} that the repository takes: make \
         the model in crates/edge-runtime/examples/demo_model.rs smaller",
        model.display()
    );
    let folder = Path::new(BUNDLE).join("model");
    std::fs::create_dir_all(&folder)
        .with_context(|| format!("{} cannot be made", folder.display()))?;
    for (name, source) in FILES {
        let (from, to) = (Path::new(WORK).join(source), Path::new(BUNDLE).join(name));
        std::fs::copy(&from, &to)
            .with_context(|| format!("{} to {}", from.display(), to.display()))?;
    }
    println!("{BUNDLE} is made again; `git diff --stat {BUNDLE}` says what changed");
    Ok(())
}

/// Writes a checkpoint of random weights; the arguments are those of the example.
pub(crate) fn synth_model(args: &[String]) -> Result<()> {
    cmd::run(example("synth_model").args(args))
}

fn example(name: &str) -> std::process::Command {
    let run = ["run", "--quiet", "--release", "-p", "edge-runtime", "--example", name, "--"];
    cmd::cargo(&run)
}
