//! A GGUF file as the model folder that it was made of.

use std::path::Path;

use anyhow::{Context, Result, ensure};
use gguf_rs_lib::format::metadata::MetadataValue;
use serde_json::Value;

use super::Gguf;
use super::tokenizer::{self, Files, kind};
use crate::checkpoint::Checkpoint;
use crate::config::ModelConfig;
use crate::tokenizer::Tokenizer;
use crate::whole_file::{self, LARGE};

/// Opens a file: configuration, weights and tokenizer.
///
/// # Errors
/// It is damaged, or of a model or tokenizer that is not computed here.
pub fn open(path: &Path) -> Result<(ModelConfig, Checkpoint, Tokenizer)> {
    let gguf = Gguf::open(path)?;
    let (_, config) = gguf.config()?;
    let tokenizer = tokenizer(&gguf)?.fit(&config)?;
    Ok((config.clone(), gguf.into_checkpoint(&config)?, tokenizer))
}

/// The tokenizer: that of a `tokenizer.json` beside the file, if there is one, since it says more
/// than the metadata do; it has to have the same tokens.
pub(super) fn tokenizer(gguf: &Gguf) -> Result<Tokenizer> {
    if let Some(dir) = beside(&gguf.path) {
        let tokenizer = Tokenizer::load(dir)?;
        check(gguf, &tokenizer, dir)?;
        return Ok(tokenizer);
    }
    let Files { tokenizer, settings } = tokenizer::files(gguf)?;
    let shown = gguf.path.display().to_string();
    let template = settings["chat_template"].as_str().map(|source| (source.to_owned(), shown));
    let bytes = tokenizer.to_string();
    let path = gguf.path.clone();
    Tokenizer::from_parts((path, bytes.as_bytes()), (&gguf.path, &settings), template)
}

/// The folder of a file, if it has a `tokenizer.json`.
fn beside(path: &Path) -> Option<&Path> {
    let dir = path.parent().unwrap_or(Path::new("."));
    dir.join("tokenizer.json").is_file().then_some(dir)
}

/// Ordinary tokens must be the same: several models may lie in one folder.
fn check(gguf: &Gguf, tokenizer: &Tokenizer, dir: &Path) -> Result<()> {
    let tokens = gguf.list("tokenizer.ggml.tokens")?.unwrap_or_default();
    let kinds = gguf.list("tokenizer.ggml.token_type")?.unwrap_or_default();
    let normal = |id: &usize| {
        kinds.get(*id).and_then(MetadataValue::as_i64).is_none_or(|found| found == kind::NORMAL)
    };
    for id in (0..tokens.len()).filter(normal) {
        let (own, theirs) = (tokenizer.token_text(Some(id as u32)), tokens[id].as_str());
        ensure!(
            Some(own.as_str()) == theirs || theirs == Some(&format!("[PAD{id}]")),
            "token {id} is {own:?} in {} and {:?} in {}: move one of the files into another \
             folder",
            dir.join("tokenizer.json").display(),
            theirs.unwrap_or_default(),
            gguf.path.display()
        );
    }
    Ok(())
}

/// The files of the folder, without weights, by their names there.
///
/// # Errors
/// As [`open`].
pub fn companions(path: &Path) -> Result<Vec<(&'static str, Vec<u8>)>> {
    let gguf = Gguf::open(path)?;
    let (config, _) = gguf.config()?;
    let pretty = |value: &Value| serde_json::to_vec_pretty(value).context("laying out JSON");
    let mut files = vec![("config.json", pretty(&config)?)];
    if let Some(dir) = beside(path) {
        for name in ["tokenizer.json", "tokenizer_config.json", "chat_template.jinja"] {
            let path = dir.join(name);
            if path.is_file() {
                let bytes = whole_file::bytes(&path, LARGE);
                let bytes = bytes.with_context(|| format!("cannot read {}", path.display()))?;
                files.push((name, bytes));
            }
        }
        return Ok(files);
    }
    let Files { tokenizer, settings } = tokenizer::files(&gguf)?;
    files.push(("tokenizer.json", tokenizer.to_string().into_bytes()));
    files.push(("tokenizer_config.json", pretty(&settings)?));
    Ok(files)
}
