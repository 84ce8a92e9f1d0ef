//! What a run leaves behind: adapter and exits, or with method `full` a whole model folder.

use std::collections::HashMap;
use std::path::Path;

use anyhow::{Context, Result};
use edge_scheduler::Projection;
use safetensors::tensor::{Dtype as Kind, TensorView};

use crate::adapter::{self, AdapterConfig, weight_name};
use crate::checkpoint::Dtype;
use crate::cli::args::Method;
use crate::cli::options::TuneOptions;
use crate::exits::{Exits, Vote};
use crate::merge::encode;
use crate::model::Model;
use crate::model::linear::Matrix;
use crate::model::load::{EMBEDDING, HEAD, NORM, norm_name};
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
    let d = model.shape.hidden_size as usize;
    let mut matrix = |name: String, matrix: &Matrix| -> Result<()> {
        let mut bytes = Vec::new();
        for part in &matrix.shards {
            bytes.extend(encode(&model.device.read_f32(&part.weight.values)?, dtype));
        }
        tensors.push((name, vec![matrix.rows as usize, matrix.cols as usize], bytes));
        Ok(())
    };
    matrix(EMBEDDING.into(), &model.embedding)?;
    if let Some(head) = &model.head {
        matrix(HEAD.into(), head)?;
    }
    for (layer, block) in model.blocks.iter().enumerate() {
        for projection in Projection::ALL {
            matrix(weight_name(layer, projection), &block.linear(projection).matrix)?;
        }
    }
    let mut norm = |name: String, weight| -> Result<()> {
        tensors.push((name, vec![d], encode(&model.device.read_f32(weight)?, dtype)));
        Ok(())
    };
    for (layer, block) in model.blocks.iter().enumerate() {
        norm(norm_name(layer as u32, false), &block.input_norm.weight)?;
        norm(norm_name(layer as u32, true), &block.post_norm.weight)?;
    }
    norm(NORM.into(), &model.exits[0].norm.weight)?;
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
