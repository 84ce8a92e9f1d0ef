//! What a run leaves behind: adapter and exits, or with method `full` a whole model folder.

use std::collections::HashMap;
use std::path::Path;

use anyhow::{Context, Result};
use safetensors::tensor::{Dtype as Kind, TensorView};

use crate::adapter::{self, AdapterConfig};
use crate::checkpoint::Dtype;
use crate::cli::args::Method;
use crate::cli::options::TuneOptions;
use crate::exits::{Exits, Vote};
use crate::family::names::{EMBEDDING, HEAD, NORM};
use crate::merge::encode;
use crate::model::Model;
use crate::model::linear::Matrix;
use crate::run_dir::{ModelCard, write_atomically};
use crate::session::Source;

/// Files of a model folder that go along with trained weights.
pub(crate) const COMPANIONS: [&str; 6] = [
    "config.json",
    "generation_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "chat_template.jinja",
];

/// Writes what was trained into a directory.
///
/// # Errors
/// A file cannot be written, or the device fails.
pub fn results(options: &TuneOptions, source: &Source, model: &Model, dir: &Path) -> Result<()> {
    let base = source.dir.display().to_string();
    if options.method == Method::Full {
        full(source, model, dir)?;
    } else {
        let config = AdapterConfig {
            r: options.rank,
            lora_alpha: options.alpha,
            target_modules: options.targets.projections().to_vec(),
            base_model_name_or_path: Some(base.clone()),
        };
        let read = |layer, projection, matrix| model.adapter_matrix(layer, projection, matrix);
        adapter::save(dir, &config, &model.adapted(), &source.config, &read)?;
    }
    if options.method == Method::Edge {
        let exits = Exits {
            after_block: model.exits.iter().map(|exit| exit.after as usize).collect(),
            vote: match (options.vote, model.learned()) {
                (Vote::Learned, None) => Vote::Last,
                (vote, _) => vote,
            },
            gammas: model.exit_gammas()?,
            terms: model.exit_terms()?,
            learned: model.learned().cloned(),
            isolated: model.job.isolated,
        };
        exits.save(dir, &source.config)?;
    }
    let mut facts = vec![
        ("rank".into(), options.rank.to_string()),
        ("alpha".into(), options.alpha.to_string()),
        ("base".into(), source.precision(options.bits)),
        ("learning rate".into(), options.lr.to_string()),
    ];
    if model.job.exit_rank > 0 {
        facts.push(("rank of the exits' terms".into(), options.exit_rank.to_string()));
    }
    if model.job.isolated {
        let note = "isolated: each stands on the base, so the adapter is no model by itself";
        facts.push(("windows".into(), note.into()));
    }
    let method = options.method.name().into();
    ModelCard { base_model: base, method, facts }.save(dir)
}

/// Writes all weights in the checkpoint's own number format, with the folder's other files.
fn full(source: &Source, model: &Model, dir: &Path) -> Result<()> {
    let dtype = source.checkpoint.tensor(EMBEDDING)?.dtype;
    let mut tensors: Vec<(String, Vec<usize>, Vec<u8>)> = Vec::new();
    // The matrices lie one below the other.
    let mut matrix = |name: String, matrices: &[&Matrix]| -> Result<()> {
        let (mut bytes, mut rows) = (Vec::new(), 0);
        for part in matrices.iter().flat_map(|matrix| &matrix.shards) {
            bytes.extend(encode(&model.device.read_f32(&part.weight.values)?, dtype));
            rows += part.shard.rows as usize;
        }
        tensors.push((name, vec![rows, matrices[0].cols as usize], bytes));
        Ok(())
    };
    matrix(EMBEDDING.into(), &[&model.embedding])?;
    if let Some(head) = &model.head {
        matrix(HEAD.into(), &[head])?;
    }
    let config = &model.config;
    for (layer, block) in model.blocks.iter().enumerate() {
        for fused in config.family.layers() {
            let name = config.weight_place(layer, fused.parts[0]).name;
            let parts = fused.parts.iter().map(|part| &block.linear(*part).matrix);
            matrix(name, &parts.collect::<Vec<_>>())?;
        }
    }
    let mut vector = |name: String, values: Vec<f32>| {
        tensors.push((name, vec![values.len()], encode(&values, dtype)));
    };
    for (layer, block) in model.blocks.iter().enumerate() {
        for (which, _) in model.shape.vectors() {
            let values = model.device.read_f32(&block.vector(which).weight)?;
            vector(config.vector_name(layer, which), config.stored_vector(which, &values));
        }
    }
    let norm = model.device.read_f32(&model.exits[0].norm.weight)?;
    vector(NORM.into(), config.stored_norm(&norm));
    let kind = match dtype {
        Dtype::F32 => Kind::F32,
        Dtype::F16 => Kind::F16,
        Dtype::BF16 => Kind::BF16,
    };
    let views = tensors
        .iter()
        .map(|(name, shape, bytes)| {
            let view = TensorView::new(kind, shape.clone(), bytes);
            Ok((name.as_str(), view.with_context(|| format!("laying out {name}"))?))
        })
        .collect::<Result<Vec<_>>>()?;
    let metadata = HashMap::from([("format".to_string(), "pt".to_string())]);
    let bytes = safetensors::serialize(views, Some(metadata)).context("laying out the weights")?;
    write_atomically(&dir.join("model.safetensors"), &bytes)?;
    for (name, bytes) in source.companions()? {
        write_atomically(&dir.join(name), &bytes)?;
    }
    Ok(())
}
