//! `devices`: the adapters of this machine, and which one `auto` takes; with `--selftest` whether
//! their kernels answer right, with `--autotune` which of them are the fastest.

use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use edge_gpu::{Device, DeviceInfo, DeviceKind, Options};
use edge_kernels::tuning::Bucket;
use edge_scheduler::{Extras, ModelShape};
use serde_json::{Map, Value, json};

use super::args::DevicesArgs;
use super::report::{Progress, print_json};
use crate::autotune::{self, Choice, Matrix};
use crate::checkpoint::Checkpoint;
use crate::compress::read::is_compressed;
use crate::config::ModelConfig;
use crate::gguf;
use crate::selftest::{self, SelfTest};
use crate::session::mebibytes;

/// How long a self-test takes beyond one case of each kernel.
const SELF_TEST: Duration = Duration::from_secs(1);

/// Rank of the LoRA products that are measured, the default of `tune`.
const RANK: u32 = 8;

pub(super) fn run(args: &DevicesArgs) -> Result<()> {
    let auto = Device::open("auto", &Options::default())?;
    let selectors = match &args.device {
        Some(selector) => vec![selector.clone()],
        None => (0..Device::list().len()).map(|index| index.to_string()).collect(),
    };
    let (mut rows, mut wrong) = (Vec::new(), 0);
    for selector in selectors {
        let device = Device::open(&selector, &Options { profile: true, ..Options::default() })?;
        let info = device.info().clone();
        let chosen = info.name == auto.info().name && info.backend == auto.info().backend;
        describe(&selector, &info, chosen);
        let mut row = facts(&selector, &info, chosen);
        if args.selftest && info.kind != DeviceKind::Host {
            let found = self_test(&device)?;
            wrong += found.wrong.len();
            row.insert("selftest".into(), serde_json::to_value(found)?);
        }
        // Measuring an adapter that nothing chose would take the minutes of one that was meant.
        if args.autotune && info.kind != DeviceKind::Host && (chosen || args.device.is_some()) {
            row.insert("autotune".into(), autotune(&device, args)?);
        }
        rows.push(Value::Object(row));
    }
    if args.autotune && rows.iter().all(|row| row.get("autotune").is_none()) {
        bail!("there is no GPU to measure: name an adapter with --device");
    }
    if args.json {
        print_json(&json!({ "devices": rows }))?;
    }
    if wrong > 0 {
        bail!("{wrong} kernels answer wrongly: use `--device cpu`, and report driver and kernels");
    }
    Ok(())
}

fn describe(selector: &str, info: &DeviceInfo, chosen: bool) {
    eprintln!(
        "{selector}: {} ({}, {}, driver {} {}){}",
        info.name,
        info.kind.name(),
        info.backend,
        info.driver,
        info.driver_info,
        if chosen { "  <- auto" } else { "" }
    );
    eprintln!(
        "   f16 {}, int64 {}, matrices {}, subgroups {} ({}..{}), timestamps {}, immediates {}, \
         mappable {}, \
         binding {}, workgroup {} invocations / {} KiB",
        yes(info.f16),
        yes(info.int64),
        yes(!info.cooperative.is_empty()),
        yes(info.subgroups),
        info.subgroup_min,
        info.subgroup_max,
        yes(info.timestamps),
        yes(info.immediates),
        yes(info.mappable),
        mebibytes(info.max_binding_bytes),
        info.max_invocations,
        info.max_workgroup_bytes / 1024
    );
}

fn facts(selector: &str, info: &DeviceInfo, chosen: bool) -> Map<String, Value> {
    let listed = Device::list();
    let same = |summary: &&edge_gpu::AdapterSummary| {
        summary.name == info.name && summary.backend == info.backend
    };
    let index = selector.parse::<usize>().ok().or(listed.iter().find(same).map(|s| s.index));
    let matrices: Vec<String> = info.cooperative.iter().map(|kind| format!("{kind:?}")).collect();
    let facts = json!({
        "index": index, "name": info.name, "kind": info.kind.name(),
        "backend": info.backend, "driver": info.driver, "driver_info": info.driver_info,
        "auto": chosen, "f16": info.f16, "int64": info.int64,
        "subgroups": info.subgroups,
        "subgroup_min": info.subgroup_min, "subgroup_max": info.subgroup_max,
        "timestamps": info.timestamps, "immediates": info.immediates,
        "cooperative": matrices,
        "mappable": info.mappable, "max_binding_bytes": info.max_binding_bytes,
        "max_buffer_bytes": info.max_buffer_bytes,
    });
    match facts {
        Value::Object(facts) => facts,
        _ => Map::new(),
    }
}

fn self_test(device: &Device) -> Result<SelfTest> {
    let found = selftest::self_test(device, SELF_TEST)?;
    for sentence in &found.wrong {
        eprintln!("   WRONG {sentence}");
    }
    for sentence in &found.replaced {
        eprintln!("   REPLACED {sentence}");
    }
    let left_out = match found.left_out {
        0 => String::new(),
        count => format!(", {count} further kernels left out"),
    };
    eprintln!(
        "   self-test: {} kernels right, {} replaced, {} wrong in {:.1} s{left_out}",
        found.right,
        found.replaced.len(),
        found.wrong.len(),
        found.elapsed_ms / 1e3
    );
    if let Some(path) = autotune::remember(device.info(), &found.tested, &found.distrusted)? {
        eprintln!("   what is wrong is in {}, and no run uses it", path.display());
    }
    Ok(found)
}

/// Sizes of SmolLM2-135M, Qwen2.5-0.5B and TinyLlama-1.1B (their published `config.json`).
fn common_shapes() -> [ModelShape; 3] {
    let shape = |hidden_size, intermediate_size, num_heads, num_kv_heads| ModelShape {
        vocab_size: 32000,
        hidden_size,
        intermediate_size,
        num_blocks: 1,
        num_heads,
        num_kv_heads,
        head_dim: 64,
        tied_head: true,
        extras: Extras::NONE,
    };
    [shape(576, 1536, 9, 3), shape(896, 4864, 14, 2), shape(2048, 5632, 32, 4)]
}

/// What is measured: what a compressed model has; else the projections of a model, or of common
/// ones, in all formats that a compressed one may have.
fn measured(model: Option<&Path>) -> Result<Vec<Matrix>> {
    let Some(dir) = model else {
        return Ok(autotune::matrices(&common_shapes(), &autotune::FORMATS));
    };
    let config = match gguf::locate(dir)? {
        Some(file) => gguf::Gguf::open(&file)?.config()?.1,
        None => ModelConfig::load(dir)?,
    };
    if is_compressed(dir) {
        let checkpoint = Checkpoint::open_compressed(dir, &config)?;
        let compressed = checkpoint.compressed().context("it was opened as a compressed one")?;
        return Ok(autotune::matrices_of(&config.shape(), &compressed.about.policy));
    }
    Ok(autotune::matrices(&[config.shape()], &autotune::FORMATS))
}

fn autotune(device: &Device, args: &DevicesArgs) -> Result<Value> {
    let calls = autotune::calls(&measured(args.model.as_deref())?, args.tokens, RANK);
    let (start, total) = (Instant::now(), calls.len());
    let limit = Duration::from_secs(args.seconds);
    let mut progress = Progress::new("measuring kernels", total as u64, false);
    let mut choices: Vec<(Bucket, Choice)> = Vec::new();
    let mut tried = 0;
    for call in calls {
        if start.elapsed() > limit {
            break;
        }
        tried += 1;
        let found = autotune::measure(device, call)?;
        progress.step(|| found.as_ref().map_or(String::new(), |(bucket, _)| bucket.to_string()));
        choices.extend(found);
    }
    drop(progress);
    print_choices(&choices);
    let path = autotune::save(device.info(), &choices)?;
    eprintln!("   {} choices in {}: `tune`, `eval` and `generate` use them", choices.len(), {
        path.display()
    });
    if tried < total {
        eprintln!("   {} of {total} products were not reached: give --seconds more", total - tried);
    }
    let rows: Map<String, Value> = choices
        .iter()
        .map(|(bucket, choice)| Ok((bucket.to_string(), serde_json::to_value(choice)?)))
        .collect::<Result<_>>()?;
    Ok(json!({ "file": path, "choices": rows, "not_reached": total - tried }))
}

fn print_choices(choices: &[(Bucket, Choice)]) {
    eprintln!("   {:<32} {:<12} {:>10}  {:<12} {:>10}", "shape", "fastest", "ms", "default", "ms");
    for (bucket, choice) in choices {
        eprintln!(
            "   {:<32} {:<12} {:>10.3}  {:<12} {:>10}",
            bucket.to_string(),
            choice.variant,
            choice.median_ms,
            choice.default,
            choice.default_ms.map_or("wrong".into(), |ms| format!("{ms:.3}"))
        );
        for sentence in &choice.wrong {
            eprintln!("   WRONG {sentence}");
        }
    }
}

fn yes(value: bool) -> &'static str {
    if value { "yes" } else { "no" }
}
