//! Writes the logits of a model, with or without an adapter, for comparison with other programs:
//! `logits --model DIR --ids 1,15,7 --out FILE`. FILE receives f32, little-endian, `[tokens,
//! vocab_size]`.

use std::path::PathBuf;

use anyhow::{Context, Result, bail, ensure};
use clap::Parser;
use edge_gpu::{Device, Options};
use edge_runtime::batch::Batch;
use edge_runtime::session::{Source, Tuned};

/// Logits of a row of token ids.
#[derive(Parser)]
struct Args {
    /// Model folder or GGUF file.
    #[arg(long, value_name = "DIR")]
    model: PathBuf,
    /// PEFT adapter folder.
    #[arg(long, value_name = "DIR")]
    adapter: Option<PathBuf>,
    /// Token ids, two or more.
    #[arg(long, value_name = "LIST", value_delimiter = ',')]
    ids: Vec<u32>,
    /// File to write.
    #[arg(long, value_name = "FILE")]
    out: PathBuf,
    /// auto, cpu, an index or a part of a device's name.
    #[arg(long, default_value = "cpu")]
    device: String,
}

fn main() -> Result<()> {
    let args = Args::parse();
    let source = Source::open(&args.model)?;
    let vocab = source.config.vocab_size;
    ensure!(args.ids.len() >= 2, "--ids has {} ids: give two or more", args.ids.len());
    if let Some(id) = args.ids.iter().find(|id| **id as usize >= vocab) {
        bail!("--ids has {id}, and the vocabulary has {vocab} tokens: correct it");
    }
    let tuned = match &args.adapter {
        Some(dir) => Tuned::adapter(dir, &source.config)?,
        None => Tuned::default(),
    };
    let device = Device::open(&args.device, &Options::default())?;
    let mut job = source.job(source.formats(None, None)?, 1, args.ids.len() as u32);
    tuned.apply(&mut job);
    let model = tuned.load(&device, &source, &job, &mut |_| ())?;
    let logits = model.all_logits(&Batch::new(args.ids.clone(), args.ids.len()))?;
    let bytes: Vec<u8> = logits.iter().flat_map(|value| value.to_le_bytes()).collect();
    std::fs::write(&args.out, bytes)
        .with_context(|| format!("cannot write {}: give another --out", args.out.display()))
}
