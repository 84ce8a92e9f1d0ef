//! Writes a checkpoint of random weights in the true shape of a config, for measurements that do
//! not care what a model says: `synth_model --config CONFIG.json --out DIR`.

mod checkpoint;

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Instant;

use anyhow::{Context, Result, ensure};
use clap::Parser;

use checkpoint::{Element, Shape};

/// A model folder with random weights.
#[derive(Parser)]
struct Args {
    /// config.json of a model of a supported family.
    #[arg(long, value_name = "CONFIG.json")]
    config: PathBuf,
    /// Folder to write, made if missing.
    #[arg(long, value_name = "DIR")]
    out: PathBuf,
    /// Element type of the weights.
    #[arg(long, value_enum, default_value = "bf16")]
    dtype: Element,
    /// Seed of the weights.
    #[arg(long, default_value_t = 0)]
    seed: u64,
    /// tokenizer.json to copy, with the tokenizer_config.json beside it if there is one.
    #[arg(long, value_name = "FILE")]
    tokenizer: Option<PathBuf>,
}

fn main() -> ExitCode {
    checkpoint::exit_code(make(&Args::parse()))
}

fn make(args: &Args) -> Result<()> {
    let shape = read_shape(&args.config)?;
    if let Some(tokenizer) = &args.tokenizer {
        ensure!(
            tokenizer.is_file(),
            "{} is no file: give --tokenizer a tokenizer.json",
            tokenizer.display()
        );
    }
    std::fs::create_dir_all(&args.out)
        .with_context(|| format!("cannot make {}: give --out a folder", args.out.display()))?;
    copy(&args.config, &args.out.join("config.json"))?;
    if let Some(tokenizer) = &args.tokenizer {
        copy(tokenizer, &args.out.join("tokenizer.json"))?;
        let config = tokenizer.with_file_name("tokenizer_config.json");
        if config.is_file() {
            copy(&config, &args.out.join("tokenizer_config.json"))?;
        }
    }
    let start = Instant::now();
    let path = args.out.join("model.safetensors");
    let parameters = shape.write(&path, args.dtype, args.seed)?;
    let seconds = start.elapsed().as_secs_f64();
    eprintln!("{}: {parameters} parameters in {seconds:.1} s", path.display());
    Ok(())
}

fn read_shape(path: &Path) -> Result<Shape> {
    let shown = path.display();
    let text = std::fs::read_to_string(path)
        .with_context(|| format!("cannot read {shown}: give --config a model's config.json"))?;
    let config = serde_json::from_str(&text)
        .with_context(|| format!("{shown} is no JSON: give --config a model's config.json"))?;
    Shape::interpret(&config, path)
}

/// Copies a file, unless it is already there: copying a file onto itself would empty it.
fn copy(from: &Path, to: &Path) -> Result<()> {
    let read = |path: &Path| {
        std::fs::read(path).with_context(|| format!("cannot read {}", path.display()))
    };
    let contents = read(from)?;
    if to.is_file() && read(to)? == contents {
        return Ok(());
    }
    std::fs::write(to, contents)
        .with_context(|| format!("cannot write {}: check space and rights", to.display()))
}
