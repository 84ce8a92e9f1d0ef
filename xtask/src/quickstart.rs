//! `cargo xtask quickstart`: from a fresh clone to an adapted demo model.

use anyhow::{Context, Result};

use crate::{cmd, vulkan};

const NEXT: &str = "\
Your own model and text:

  cargo run --release -p edge-runtime -- tune --model DIR --data FILE --out runs/mine
  cargo run --release -p edge-runtime -- eval --run runs/mine --data FILE
  cargo run --release -p edge-runtime -- generate --run runs/mine --prompt 'Once'

DIR is a Hugging Face checkpoint as downloaded (config.json, *.safetensors, tokenizer.json) or a
GGUF file; FILE is plain text, or JSONL of texts, examples or conversations.
`cargo run --release -p edge-runtime -- tune --help` lists what can be chosen.
";

pub(crate) fn run(args: &[String]) -> Result<()> {
    cmd::no_arguments("quickstart", args)?;
    let build = cmd::run(&mut cmd::cargo(&["build", "--release", "-p", "edge-runtime"]));
    build.context(build_hint())?;
    let environment = vulkan::quiet_environment();
    println!("\nDevices of this machine:\n");
    cmd::run(cmd::edge_runtime(&["devices"]).envs(environment.clone()))
        .context("the devices of this machine cannot be listed")?;
    println!("\nAdapting the bundled demo model to the bundled text:\n");
    cmd::run(cmd::edge_runtime(&["tune"]).envs(environment))
        .context("the demo model cannot be adapted")?;
    println!("\n{NEXT}");
    Ok(())
}

/// What most often keeps a fresh machine from building.
fn build_hint() -> &'static str {
    if cfg!(unix) && cmd::find_program("cc").is_none() {
        "the program cannot be built: Rust links through a C compiler, and there is no `cc` \
         (Debian, Ubuntu: `sudo apt-get install gcc libc6-dev`; macOS: `xcode-select --install`)"
    } else {
        "the program cannot be built: cargo's message above says why; a first build needs the \
         network to fetch the crates of Cargo.lock, and about 3 GiB of disk"
    }
}
