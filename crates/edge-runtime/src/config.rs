//! `config.json` of a Hugging Face folder: which architecture, which sizes.
//!
//! Defaults of absent keys are those of transformers' `LlamaConfig` and `MistralConfig`, because
//! files leave out what equals a default. The file may come from anywhere: all numbers are bounded
//! so that products of sizes cannot overflow.

use std::path::Path;

use anyhow::{Context, Result, bail, ensure};
use serde_json::{Map, Value};

/// A model family whose blocks this runtime computes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Architecture {
    /// `LlamaForCausalLM`
    Llama,
    /// `MistralForCausalLM`: Llama, with an optional sliding window.
    Mistral,
}

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
    /// Family.
    pub architecture: Architecture,
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
    /// A query sees this many last positions, itself included; `None`: all.
    pub sliding_window: Option<usize>,
    /// Base of the rotary frequencies.
    pub rope_theta: f64,
    /// Change of the rotary frequencies.
    pub rope_scaling: RopeScaling,
    /// Beginning of sequence.
    pub bos_token_id: Option<u32>,
    /// Tokens that end a sequence, possibly none.
    pub eos_token_ids: Vec<u32>,
}

impl ModelConfig {
    /// Reads `config.json` in `dir`.
    ///
    /// # Errors
    /// The file is absent, is no JSON, describes an architecture or option that is not computed
    /// here, or holds a number out of bounds.
    pub fn load(dir: &Path) -> Result<Self> {
        let path = dir.join("config.json");
        let text = std::fs::read_to_string(&path).with_context(|| {
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
        Self::from_value(&value, &path)
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
        let architecture = architecture(keys)?;
        refuse_unsupported(keys)?;
        let mistral = architecture == Architecture::Mistral;
        let num_attention_heads = required(keys, "num_attention_heads", 1024)?;
        let hidden_size = required(keys, "hidden_size", 1 << 16)?;
        let num_key_value_heads = match keys.get("num_key_value_heads") {
            // MistralConfig's own default; LlamaConfig has one key-value head per query head.
            None if mistral => 8,
            _ => optional(keys, "num_key_value_heads", 1024)?.unwrap_or(num_attention_heads),
        };
        let head_dim = match optional(keys, "head_dim", 1024)? {
            Some(head_dim) => head_dim,
            None => {
                ensure!(
                    hidden_size % num_attention_heads == 0,
                    "hidden_size {hidden_size} is no multiple of num_attention_heads \
                     {num_attention_heads}: correct them or state head_dim"
                );
                hidden_size / num_attention_heads
            }
        };
        ensure!(
            num_attention_heads % num_key_value_heads == 0,
            "num_attention_heads {num_attention_heads} is no multiple of num_key_value_heads \
             {num_key_value_heads}: correct the file"
        );
        ensure!(
            head_dim % 2 == 0 && head_dim <= 1024,
            "head_dim {head_dim} is odd or above 1024, which rotary embeddings do not allow here: \
             correct the file"
        );
        let (rope_theta, rope_scaling) = rope(keys)?;
        let positions = optional(keys, "max_position_embeddings", 1 << 24)?;
        let config = Self {
            architecture,
            vocab_size: required(keys, "vocab_size", 1 << 22)?,
            hidden_size,
            intermediate_size: required(keys, "intermediate_size", 1 << 20)?,
            num_hidden_layers: required(keys, "num_hidden_layers", 1024)?,
            num_attention_heads,
            num_key_value_heads,
            head_dim,
            rms_norm_eps: float(keys, "rms_norm_eps", 1e-12, 1.0)?.unwrap_or(1e-6) as f32,
            tie_word_embeddings: boolean(keys, "tie_word_embeddings")?.unwrap_or(false),
            max_position_embeddings: positions.unwrap_or(if mistral { 131_072 } else { 2048 }),
            sliding_window: match keys.get("sliding_window") {
                _ if !mistral => None,
                None => Some(4096),
                Some(_) => optional(keys, "sliding_window", 1 << 24)?,
            },
            rope_theta,
            rope_scaling,
            bos_token_id: token_ids(keys, "bos_token_id", 1)?.first().copied(),
            eos_token_ids: token_ids(keys, "eos_token_id", 2)?,
        };
        Ok(config)
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

fn architecture(keys: &Map<String, Value>) -> Result<Architecture> {
    let names: Vec<&str> = match keys.get("architectures") {
        Some(Value::Array(names)) => names.iter().filter_map(Value::as_str).collect(),
        _ => Vec::new(),
    };
    match names.as_slice() {
        ["LlamaForCausalLM"] => Ok(Architecture::Llama),
        ["MistralForCausalLM"] => Ok(Architecture::Mistral),
        _ => bail!(
            "architectures is [{}], and supported are LlamaForCausalLM and MistralForCausalLM: \
             choose a model of one of these",
            names.join(", ")
        ),
    }
}

fn refuse_unsupported(keys: &Map<String, Value>) -> Result<()> {
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
        ensure!(
            !boolean(keys, key)?.unwrap_or(false),
            "{key} is true, and biases are not supported: choose a model without them"
        );
    }
    match keys.get("hidden_act") {
        None => Ok(()),
        Some(Value::String(name)) if name == "silu" => Ok(()),
        Some(other) => {
            bail!("hidden_act is {other}, and supported is \"silu\": choose another model")
        }
    }
}

fn rope(keys: &Map<String, Value>) -> Result<(f64, RopeScaling)> {
    let empty = Map::new();
    let object = |key: &str| match keys.get(key) {
        None | Some(Value::Null) => Ok(None),
        Some(Value::Object(object)) => Ok(Some(object)),
        Some(_) => bail!("{key} is no object: correct the file"),
    };
    // transformers 5 nests rope_theta; before, it stood beside rope_scaling.
    let nested = object("rope_parameters")?;
    let scaling = match nested {
        Some(nested) => nested,
        None => object("rope_scaling")?.unwrap_or(&empty),
    };
    if let Some((key, _)) = scaling.iter().find(|(_, value)| value.is_object()) {
        bail!("rope_parameters has settings by layer ({key}), which is not supported");
    }
    for place in [keys, scaling] {
        let share = float(place, "partial_rotary_factor", 0.0, 1.0)?.unwrap_or(1.0);
        ensure!(share == 1.0, "partial_rotary_factor is {share}, and supported is 1");
    }
    let theta = match float(scaling, "rope_theta", 1.0, 1e12)? {
        Some(theta) => theta,
        None => float(keys, "rope_theta", 1.0, 1e12)?.unwrap_or(10_000.0),
    };
    let kind = match scaling.get("rope_type").or_else(|| scaling.get("type")) {
        None => "default",
        Some(Value::String(kind)) => kind,
        Some(other) => bail!("rope_type is {other} instead of a name: correct the file"),
    };
    let factor = || number(scaling, "factor", 1.0, 1e6);
    let scaling = match kind {
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
    };
    Ok((theta, scaling))
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
fn token_ids(keys: &Map<String, Value>, key: &str, default: u32) -> Result<Vec<u32>> {
    let id = |value: &Value| match value.as_u64().and_then(|id| u32::try_from(id).ok()) {
        Some(id) => Ok(id),
        None => bail!("{key} is {value} instead of a token id: correct the file"),
    };
    match keys.get(key) {
        None => Ok(vec![default]),
        Some(Value::Null) => Ok(Vec::new()),
        Some(Value::Array(list)) => list.iter().map(id).collect(),
        Some(value) => Ok(vec![id(value)?]),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::testing::{message, shared, tiny_config_json};

    fn with(key: &str, value: Value) -> Result<ModelConfig> {
        let mut config = tiny_config_json();
        config[key] = value;
        ModelConfig::from_value(&config, "config.json".as_ref())
    }

    #[test]
    fn absent_keys_take_the_defaults_of_transformers() {
        let config = crate::testing::tiny_config();
        assert_eq!((config.head_dim, config.rms_norm_eps), (2, 1e-6));
        assert_eq!((config.rope_theta, config.rope_scaling), (1e4, RopeScaling::None));
        assert_eq!((config.bos_token_id, config.eos_token_ids), (Some(1), vec![2]));
        assert!(!config.tie_word_embeddings && config.sliding_window.is_none());

        let mut keys = tiny_config_json();
        keys.as_object_mut().unwrap().remove("num_key_value_heads");
        let llama = ModelConfig::from_value(&keys, "c".as_ref()).unwrap();
        assert_eq!(llama.num_key_value_heads, 4);
        keys["architectures"] = json!(["MistralForCausalLM"]);
        keys["num_attention_heads"] = json!(16);
        keys["head_dim"] = json!(4);
        let mistral = ModelConfig::from_value(&keys, "c".as_ref()).unwrap();
        assert_eq!((mistral.num_key_value_heads, mistral.sliding_window), (8, Some(4096)));
        keys["sliding_window"] = Value::Null;
        let mistral = ModelConfig::from_value(&keys, "c".as_ref()).unwrap();
        assert_eq!((mistral.sliding_window, mistral.query_size()), (None, 64));
    }

    #[test]
    fn rope_settings_are_read_in_both_forms() {
        let scaling = json!({
            "type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
            "original_max_position_embeddings": 32
        });
        let mut nested = scaling.clone();
        nested["rope_theta"] = json!(5e5);
        let new = with("rope_parameters", nested).unwrap();
        let mut old = tiny_config_json();
        old["rope_scaling"] = scaling;
        old["rope_theta"] = json!(500_000);
        assert_eq!(ModelConfig::from_value(&old, "c".as_ref()).unwrap(), new);
        assert!(matches!(new.rope_scaling, RopeScaling::Llama3 { factor: 8.0, .. }));
        let linear = with("rope_scaling", json!({"rope_type": "linear", "factor": 2})).unwrap();
        assert_eq!(linear.rope_scaling, RopeScaling::Linear { factor: 2.0 });
    }

    #[test]
    fn what_is_not_computed_is_refused_by_name() {
        for (key, value, expected) in [
            ("architectures", json!(["GPT2LMHeadModel"]), "LlamaForCausalLM and Mistral"),
            ("architectures", json!(null), "architectures"),
            ("quantization_config", json!({"quant_method": "gptq"}), "gptq"),
            ("quantization_config", json!({"quant_method": "awq"}), "awq"),
            ("quantization", json!({"group_size": 64, "bits": 4}), "MLX"),
            ("attention_bias", json!(true), "attention_bias"),
            ("mlp_bias", json!("yes"), "mlp_bias"),
            ("hidden_act", json!("gelu"), "gelu"),
            ("rope_scaling", json!({"type": "yarn", "factor": 4}), "yarn"),
            ("rope_scaling", json!({"rope_type": "dynamic", "factor": 4}), "dynamic"),
            ("rope_scaling", json!({"type": "longrope"}), "longrope"),
            ("rope_scaling", json!({"type": "linear"}), "factor is missing"),
            ("rope_scaling", json!({"type": "linear", "factor": 0.0}), "factor is 0.0"),
            ("rope_parameters", json!({"full_attention": {}}), "full_attention"),
            ("partial_rotary_factor", json!(0.5), "partial_rotary_factor"),
        ] {
            let error = message(with(key, value));
            assert!(error.contains(expected) && error.contains("config.json"), "{error}");
        }
    }

    #[test]
    fn hostile_numbers_are_refused() {
        for key in ["vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers"] {
            let cases = [json!(0), json!(-1), json!(1.5), json!("8"), json!(null), json!(u64::MAX)];
            for value in cases {
                let error = message(with(key, value));
                assert!(error.contains(key), "{error}");
            }
        }
        for (key, value) in [
            ("num_attention_heads", json!(3)),
            ("num_key_value_heads", json!(3)),
            ("num_key_value_heads", json!(0)),
            ("head_dim", json!(3)),
            ("rms_norm_eps", json!(0)),
            ("rope_theta", json!(-1)),
            ("max_position_embeddings", json!(0)),
            ("bos_token_id", json!(u64::MAX)),
            ("eos_token_id", json!(["a"])),
        ] {
            assert!(message(with(key, value.clone())).contains(key), "{key} {value}");
        }
        assert_eq!(with("eos_token_id", json!([5, 6])).unwrap().eos_token_ids, [5, 6]);
    }

    #[test]
    fn broken_files_are_refused() {
        let dir = tempfile::tempdir().unwrap();
        assert!(message(ModelConfig::load(dir.path())).contains("--model"));
        let whole = tiny_config_json().to_string();
        for len in 0..whole.len() {
            std::fs::write(dir.path().join("config.json"), &whole[..len]).unwrap();
            assert!(message(ModelConfig::load(dir.path())).contains("config.json"));
        }
        std::fs::write(dir.path().join("config.json"), "[]").unwrap();
        assert!(message(ModelConfig::load(dir.path())).contains("no JSON object"));
        std::fs::write(dir.path().join("config.json"), &whole).unwrap();
        ModelConfig::load(dir.path()).unwrap();
        std::fs::write(dir.path().join("quantize_config.json"), "{}").unwrap();
        assert!(message(ModelConfig::load(dir.path())).contains("quantised by GPTQ"));
    }

    #[test]
    fn published_configs_are_read() {
        let Some(shared) = shared() else { return };
        let load = |name: &str| ModelConfig::load(&shared.join(name));
        let llama = load("assets/configs/llama-3.2-1b").unwrap();
        assert_eq!((llama.head_dim, llama.key_value_size()), (64, 512));
        assert!(matches!(llama.rope_scaling, RopeScaling::Llama3 { factor: 32.0, .. }));
        for name in ["assets/models/mini12", "assets/models/stories260K", "golden/llama3-rope"] {
            assert!(load(name).unwrap().tie_word_embeddings, "{name}");
        }
        assert_eq!(load("golden/mistral").unwrap().architecture, Architecture::Mistral);
        assert_eq!(load("assets/configs/smollm2-135m").unwrap().rope_theta, 1e5);
        for name in ["golden/qwen2", "golden/gemma3", "golden/phi3"] {
            assert!(message(load(name)).contains("supported are"), "{name}");
        }
    }
}
