//! `config.json` of a Hugging Face folder: which architecture, which sizes.
//!
//! Absent keys have the family's [`Defaults`](crate::family::Defaults), because files leave out
//! what equals a default. The file may come from anywhere: all numbers are bounded so that products
//! of sizes cannot overflow.

use std::path::Path;

use anyhow::{Context, Result, bail, ensure};
use serde_json::{Map, Value};

use crate::family::{self, Family, Windows};
use crate::whole_file::{self, SETTINGS};

/// How rotary frequencies are changed for contexts longer than those of pre-training.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum RopeScaling {
    /// `default`: not at all.
    None,
    /// `linear`: all frequencies divided by `factor`.
    Linear {
        /// Divisor, at least 1.
        factor: f64,
    },
    /// `llama3`: low frequencies divided by `factor`, high ones kept, a ramp between.
    Llama3 {
        /// Divisor of the low frequencies, at least 1.
        factor: f64,
        /// Wavelengths above `original_max_position_embeddings / low_freq_factor` are scaled.
        low_freq_factor: f64,
        /// Wavelengths below `original_max_position_embeddings / high_freq_factor` are kept.
        high_freq_factor: f64,
        /// Context length of pre-training, tokens.
        original_max_position_embeddings: usize,
    },
}

/// Shape of a model.
#[derive(Clone, Debug, PartialEq)]
pub struct ModelConfig {
    /// What it differs in from others.
    pub family: &'static Family,
    /// Rows of the embedding table and of the head.
    pub vocab_size: usize,
    /// Width of the residual stream.
    pub hidden_size: usize,
    /// Width of the gated feed-forward layer.
    pub intermediate_size: usize,
    /// Number of blocks.
    pub num_hidden_layers: usize,
    /// Query heads.
    pub num_attention_heads: usize,
    /// Key and value heads, a divisor of the query heads.
    pub num_key_value_heads: usize,
    /// Width of a head, even.
    pub head_dim: usize,
    /// Added to the mean square in RMSNorm.
    pub rms_norm_eps: f32,
    /// The head is the embedding table.
    pub tie_word_embeddings: bool,
    /// Longest context, tokens.
    pub max_position_embeddings: usize,
    /// In blocks with a window a query sees this many last positions, itself included; `None`: no
    /// block has one.
    pub sliding_window: Option<usize>,
    /// Of each block, whether it has the window.
    pub windowed: Vec<bool>,
    /// Factor of the products of queries and keys.
    pub attention_scale: f32,
    /// Factor of the embeddings.
    pub embedding_scale: f32,
    /// Base of the rotary frequencies.
    pub rope_theta: f64,
    /// Their base in blocks with a window, unscaled, where it is another one.
    pub local_rope_theta: Option<f64>,
    /// Change of the rotary frequencies.
    pub rope_scaling: RopeScaling,
    /// Beginning of sequence.
    pub bos_token_id: Option<u32>,
    /// Tokens that end a sequence, possibly none.
    pub eos_token_ids: Vec<u32>,
}

impl ModelConfig {
    /// Reads `config.json` in `dir`, and what `generation_config.json` says of where text ends.
    ///
    /// # Errors
    /// A file is absent, is no JSON, describes an architecture or option that is not computed
    /// here, or holds a number out of bounds.
    pub fn load(dir: &Path) -> Result<Self> {
        let path = dir.join("config.json");
        let text = whole_file::text(&path, SETTINGS).with_context(|| {
            format!(
                "cannot read {}: give --model a Hugging Face model folder with config.json",
                path.display()
            )
        })?;
        let value: Value = serde_json::from_str(&text)
            .with_context(|| format!("{} is no JSON: download it again", path.display()))?;
        // Older tools say it in a file of their own.
        for (file, method) in [("quantize_config.json", "GPTQ"), ("quant_config.json", "AWQ")] {
            ensure!(
                !dir.join(file).exists(),
                "{} says the weights are already quantised by {method}: use the model's bf16, f16 \
                 or f32 checkpoint, --bits quantises it here, or a GGUF file",
                dir.join(file).display()
            );
        }
        let mut config = Self::from_value(&value, &path)?;
        config.add_ends(&dir.join("generation_config.json"))?;
        Ok(config)
    }

    /// Adds the tokens that end an answer where they are named beside the model's own, as those of
    /// chat models are.
    fn add_ends(&mut self, path: &Path) -> Result<()> {
        if !path.is_file() {
            return Ok(());
        }
        let text = whole_file::text(path, SETTINGS)
            .with_context(|| format!("cannot read {}: download it again", path.display()))?;
        let keys: Map<String, Value> = serde_json::from_str(&text)
            .with_context(|| format!("{} is no JSON object: download it again", path.display()))?;
        let ends = token_ids(&keys, "eos_token_id", None)
            .with_context(|| format!("{} is not usable", path.display()))?;
        let known = self.eos_token_ids.clone();
        self.eos_token_ids.extend(ends.into_iter().filter(|id| !known.contains(id)));
        Ok(())
    }

    /// Interprets a parsed `config.json`; `path` is for messages.
    ///
    /// # Errors
    /// As [`ModelConfig::load`].
    pub fn from_value(value: &Value, path: &Path) -> Result<Self> {
        let Value::Object(keys) = value else {
            bail!("{} holds no JSON object: download it again", path.display());
        };
        Self::interpret(keys).with_context(|| format!("{} is not usable", path.display()))
    }

    fn interpret(keys: &Map<String, Value>) -> Result<Self> {
        let family = family_of(keys)?;
        refuse_unsupported(keys, family)?;
        let defaults = &family.defaults;
        let (num_attention_heads, num_key_value_heads, head_dim) = heads(keys, family)?;
        let hidden_size = required(keys, "hidden_size", 1 << 16)?;
        let num_hidden_layers = required(keys, "num_hidden_layers", 1024)?;
        let (rope_theta, rope_scaling, local_rope_theta) = rope(keys, family)?;
        let positions = optional(keys, "max_position_embeddings", 1 << 24)?;
        let tied = boolean(keys, "tie_word_embeddings")?;
        let eps = float(keys, "rms_norm_eps", 1e-12, 1.0)?.unwrap_or(defaults.rms_norm_eps);
        let sliding_window = sliding_window(keys, family)?;
        let scalar = match defaults.query_pre_attn_scalar {
            Some(scalar) => float(keys, "query_pre_attn_scalar", 1e-3, 1e6)?.unwrap_or(scalar),
            None => head_dim as f64,
        };
        Ok(Self {
            family,
            vocab_size: required(keys, "vocab_size", 1 << 22)?,
            hidden_size,
            intermediate_size: required(keys, "intermediate_size", 1 << 20)?,
            num_hidden_layers,
            num_attention_heads,
            num_key_value_heads,
            head_dim,
            rms_norm_eps: eps as f32,
            tie_word_embeddings: tied.unwrap_or(defaults.tie_word_embeddings),
            max_position_embeddings: positions.unwrap_or(defaults.max_position_embeddings),
            windowed: match sliding_window {
                Some(_) => windowed(keys, family, num_hidden_layers)?,
                None => vec![false; num_hidden_layers],
            },
            sliding_window,
            attention_scale: 1.0 / (scalar as f32).sqrt(),
            embedding_scale: match family.scaled_embedding {
                true => (hidden_size as f32).sqrt(),
                false => 1.0,
            },
            rope_theta,
            local_rope_theta,
            rope_scaling,
            bos_token_id: token_ids(keys, "bos_token_id", defaults.bos_token_id)?.first().copied(),
            eos_token_ids: token_ids(keys, "eos_token_id", defaults.eos_token_id)?,
        })
    }

    /// What of the model decides sizes.
    pub fn shape(&self) -> edge_scheduler::ModelShape {
        // The bounds checked when the file was read make the numbers fit.
        edge_scheduler::ModelShape {
            vocab_size: self.vocab_size as u32,
            hidden_size: self.hidden_size as u32,
            intermediate_size: self.intermediate_size as u32,
            num_blocks: self.num_hidden_layers as u32,
            num_heads: self.num_attention_heads as u32,
            num_kv_heads: self.num_key_value_heads as u32,
            head_dim: self.head_dim as u32,
            tied_head: self.tie_word_embeddings,
            extras: self.family.extras,
        }
    }

    /// Width of all query heads together: rows of `q_proj`, columns of `o_proj`.
    pub fn query_size(&self) -> usize {
        self.num_attention_heads * self.head_dim
    }

    /// Width of all key heads together: rows of `k_proj` and of `v_proj`.
    pub fn key_value_size(&self) -> usize {
        self.num_key_value_heads * self.head_dim
    }
}

fn family_of(keys: &Map<String, Value>) -> Result<&'static Family> {
    let names: Vec<&str> = match keys.get("architectures") {
        Some(Value::Array(names)) => names.iter().filter_map(Value::as_str).collect(),
        _ => Vec::new(),
    };
    let found = match names.as_slice() {
        [name] => Family::of(name),
        _ => None,
    };
    let known: Vec<&str> = family::ALL.iter().map(|family| family.architecture).collect();
    found.with_context(|| {
        format!(
            "architectures is [{}], and supported are {}: choose a model of one of these",
            names.join(", "),
            known.join(", ")
        )
    })
}

fn refuse_unsupported(keys: &Map<String, Value>, family: &Family) -> Result<()> {
    if let Some(quantization) = keys.get("quantization_config").filter(|value| !value.is_null()) {
        let method = quantization.get("quant_method").and_then(Value::as_str).unwrap_or("unknown");
        bail!(
            "quantization_config says the weights are already quantised ({method}): use the \
             model's bf16, f16 or f32 checkpoint, --bits quantises it here, or a GGUF file"
        );
    }
    // MLX packs weights into U32 tensors.
    ensure!(
        keys.get("quantization").is_none_or(Value::is_null),
        "quantization says the weights are already quantised by MLX: use the model's bf16, f16 or \
         f32 checkpoint, --bits quantises it here, or a GGUF file"
    );
    for key in ["attention_bias", "mlp_bias"] {
        // Qwen2 has biases of q, k and v whatever the file says.
        let ignored = key == "attention_bias" && family.extras.qkv_bias;
        ensure!(
            ignored || !boolean(keys, key)?.unwrap_or(false),
            "{key} is true, and biases are not supported: choose a model without them"
        );
    }
    for key in ["attn_logit_softcapping", "final_logit_softcapping"] {
        if let Some(cap) = float(keys, key, 0.0, f64::MAX)? {
            bail!("{key} is {cap}, and capped logits are not supported: choose another model");
        }
    }
    ensure!(
        !boolean(keys, "use_bidirectional_attention")?.unwrap_or(false),
        "use_bidirectional_attention is true, and attention is causal here: choose another model"
    );
    let wanted = family.activation.name();
    for key in ["hidden_act", "hidden_activation"] {
        match keys.get(key) {
            None | Some(Value::Null) => {}
            Some(Value::String(name)) if name == wanted => {}
            Some(other) => bail!(
                "{key} is {other}, and supported for {} is \"{wanted}\": choose another model",
                family.name
            ),
        }
    }
    Ok(())
}

/// Query heads, key-value heads, and the width of a head.
fn heads(keys: &Map<String, Value>, family: &Family) -> Result<(usize, usize, usize)> {
    let heads = required(keys, "num_attention_heads", 1024)?;
    let hidden_size = required(keys, "hidden_size", 1 << 16)?;
    let kv_heads = match keys.get("num_key_value_heads") {
        None => family.defaults.num_key_value_heads.unwrap_or(heads),
        _ => optional(keys, "num_key_value_heads", 1024)?.unwrap_or(heads),
    };
    let head_dim = match optional(keys, "head_dim", 1024)?.or(family.defaults.head_dim) {
        Some(head_dim) => head_dim,
        None => {
            ensure!(
                hidden_size % heads == 0,
                "hidden_size {hidden_size} is no multiple of num_attention_heads {heads}: correct \
                 them or state head_dim"
            );
            hidden_size / heads
        }
    };
    ensure!(
        heads % kv_heads == 0,
        "num_attention_heads {heads} is no multiple of num_key_value_heads {kv_heads}: correct the \
         file"
    );
    ensure!(
        head_dim % 2 == 0 && head_dim <= 1024,
        "head_dim {head_dim} is odd or above 1024, which rotary embeddings do not allow here: \
         correct the file"
    );
    Ok((heads, kv_heads, head_dim))
}

/// Positions that a query sees in blocks with a window.
fn sliding_window(keys: &Map<String, Value>, family: &Family) -> Result<Option<usize>> {
    let used = match family.windows {
        Windows::Never => false,
        Windows::All | Windows::Pattern => true,
        Windows::ByFlag => boolean(keys, "use_sliding_window")?.unwrap_or(false),
    };
    match keys.get("sliding_window") {
        _ if !used => Ok(None),
        None => Ok(family.defaults.sliding_window),
        Some(_) => optional(keys, "sliding_window", 1 << 24),
    }
}

/// Of each block, whether it has the window.
fn windowed(keys: &Map<String, Value>, family: &Family, blocks: usize) -> Result<Vec<bool>> {
    if let Some(types) = keys.get("layer_types").filter(|types| !types.is_null()) {
        let types = types.as_array().map_or(&[][..], Vec::as_slice);
        ensure!(
            types.len() == blocks,
            "layer_types has {} entries and num_hidden_layers is {blocks}: correct the file",
            types.len()
        );
        return types
            .iter()
            .map(|kind| match kind.as_str() {
                Some("full_attention") => Ok(false),
                Some("sliding_attention") => Ok(true),
                _ => bail!(
                    "layer_types has {kind}, and supported are full_attention and \
                     sliding_attention: choose another model"
                ),
            })
            .collect();
    }
    let first = optional(keys, "max_window_layers", 1 << 16)?.unwrap_or(28);
    let pattern = match optional(keys, "sliding_window_pattern", 1 << 16)? {
        Some(pattern) => pattern,
        None => optional(keys, "_sliding_window_pattern", 1 << 16)?.unwrap_or(6),
    };
    let has = |block: usize| match family.windows {
        Windows::Never => false,
        Windows::All => true,
        Windows::ByFlag => block >= first,
        Windows::Pattern => !(block + 1).is_multiple_of(pattern),
    };
    Ok((0..blocks).map(has).collect())
}

/// Base and scaling of the rotary frequencies, and their base in blocks with a window where that
/// is another one.
fn rope(keys: &Map<String, Value>, family: &Family) -> Result<(f64, RopeScaling, Option<f64>)> {
    let empty = Map::new();
    // transformers 5 nests rope_theta; before, it stood beside rope_scaling.
    let nested = object(keys, "rope_parameters")?;
    let old = object(keys, "rope_scaling")?.unwrap_or(&empty);
    let mut scaling = nested.unwrap_or(old);
    let mut local = None;
    if family.extras.local_rope {
        local = Some(float(keys, "rope_local_base_freq", 1.0, 1e12)?.unwrap_or(10_000.0));
        // Since transformers 5, by kind of block.
        if let Some(sliding) = object(scaling, "sliding_attention")? {
            let kind = sliding.get("rope_type").and_then(Value::as_str).unwrap_or("default");
            ensure!(
                kind == "default",
                "rope scaling {kind} in sliding_attention is not supported: choose another model"
            );
            local = float(sliding, "rope_theta", 1.0, 1e12)?.or(local);
            scaling = object(scaling, "full_attention")?.unwrap_or(&empty);
        }
    }
    if let Some((key, _)) = scaling.iter().find(|(_, value)| value.is_object()) {
        bail!("rope_parameters has settings by layer ({key}), which is not supported");
    }
    for place in [keys, scaling] {
        let share = float(place, "partial_rotary_factor", 0.0, 1.0)?.unwrap_or(1.0);
        ensure!(share == 1.0, "partial_rotary_factor is {share}, and supported is 1");
    }
    let theta = match float(scaling, "rope_theta", 1.0, 1e12)? {
        Some(theta) => theta,
        None => float(keys, "rope_theta", 1.0, 1e12)?.unwrap_or(family.defaults.rope_theta),
    };
    Ok((theta, rope_scaling(scaling)?, local))
}

fn rope_scaling(scaling: &Map<String, Value>) -> Result<RopeScaling> {
    let kind = match scaling.get("rope_type").or_else(|| scaling.get("type")) {
        None => "default",
        Some(Value::String(kind)) => kind,
        Some(other) => bail!("rope_type is {other} instead of a name: correct the file"),
    };
    let factor = || number(scaling, "factor", 1.0, 1e6);
    Ok(match kind {
        "default" => RopeScaling::None,
        "linear" => RopeScaling::Linear { factor: factor()? },
        "llama3" => {
            let low_freq_factor = number(scaling, "low_freq_factor", 1e-6, 1e6)?;
            let high_freq_factor = number(scaling, "high_freq_factor", 1e-6, 1e6)?;
            ensure!(
                low_freq_factor < high_freq_factor,
                "low_freq_factor {low_freq_factor} is not below high_freq_factor \
                 {high_freq_factor}: correct the file"
            );
            RopeScaling::Llama3 {
                factor: factor()?,
                low_freq_factor,
                high_freq_factor,
                original_max_position_embeddings: required(
                    scaling,
                    "original_max_position_embeddings",
                    1 << 24,
                )?,
            }
        }
        other => bail!(
            "rope scaling {other} is not supported (default, linear and llama3 are): choose \
             another model"
        ),
    })
}

/// A nested object, where there is one.
fn object<'a>(keys: &'a Map<String, Value>, key: &str) -> Result<Option<&'a Map<String, Value>>> {
    match keys.get(key) {
        None | Some(Value::Null) => Ok(None),
        Some(Value::Object(object)) => Ok(Some(object)),
        Some(_) => bail!("{key} is no object: correct the file"),
    }
}

fn optional(keys: &Map<String, Value>, key: &str, max: usize) -> Result<Option<usize>> {
    match keys.get(key) {
        None | Some(Value::Null) => Ok(None),
        Some(value) => match value.as_u64() {
            Some(number) if number >= 1 && number <= max as u64 => Ok(Some(number as usize)),
            _ => bail!("{key} is {value} instead of a whole number in 1..={max}: correct the file"),
        },
    }
}

fn required(keys: &Map<String, Value>, key: &str, max: usize) -> Result<usize> {
    optional(keys, key, max)?.with_context(|| format!("{key} is missing: add it"))
}

fn float(keys: &Map<String, Value>, key: &str, min: f64, max: f64) -> Result<Option<f64>> {
    match keys.get(key) {
        None | Some(Value::Null) => Ok(None),
        Some(value) => match value.as_f64() {
            Some(number) if (min..=max).contains(&number) => Ok(Some(number)),
            _ => bail!("{key} is {value} instead of a number in {min}..={max}: correct the file"),
        },
    }
}

fn number(keys: &Map<String, Value>, key: &str, min: f64, max: f64) -> Result<f64> {
    float(keys, key, min, max)?.with_context(|| format!("{key} is missing: add it"))
}

fn boolean(keys: &Map<String, Value>, key: &str) -> Result<Option<bool>> {
    match keys.get(key) {
        None | Some(Value::Null) => Ok(None),
        Some(Value::Bool(value)) => Ok(Some(*value)),
        Some(other) => bail!("{key} is {other} instead of true or false: correct the file"),
    }
}

/// A token id, a list of them, or null for none.
fn token_ids(keys: &Map<String, Value>, key: &str, default: Option<u32>) -> Result<Vec<u32>> {
    let id = |value: &Value| match value.as_u64().and_then(|id| u32::try_from(id).ok()) {
        Some(id) => Ok(id),
        None => bail!("{key} is {value} instead of a token id: correct the file"),
    };
    match keys.get(key) {
        None => Ok(default.into_iter().collect()),
        Some(Value::Null) => Ok(Vec::new()),
        Some(Value::Array(list)) => list.iter().map(id).collect(),
        Some(value) => Ok(vec![id(value)?]),
    }
}

#[cfg(test)]
#[path = "config_tests.rs"]
mod tests;
