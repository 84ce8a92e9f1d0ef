//! Small random checkpoints, so that whole-model tests need no files.

use std::path::Path;

use anyhow::{Context, Result};
use edge_kernels::util::{SeededRng, uniform_vec};
use edge_runtime::config::ModelConfig;
use edge_runtime::family::names::{EMBEDDING, HEAD, NORM};
use rand::SeedableRng;
use safetensors::tensor::{Dtype, TensorView};
use serde_json::{Value, json};

/// The shape of the tiny model: grouped-query attention, a head of its own, sizes that are no
/// powers of two.
pub fn config() -> Value {
    json!({
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_act": "silu",
        "vocab_size": 139,
        "hidden_size": 48,
        "intermediate_size": 100,
        "num_hidden_layers": 4,
        "num_attention_heads": 6,
        "num_key_value_heads": 2,
        "head_dim": 8,
        "max_position_embeddings": 64,
        "rms_norm_eps": 1e-5,
        "rope_theta": 10000.0,
        "tie_word_embeddings": false,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "torch_dtype": "float32"
    })
}

/// The same sizes in another architecture, with all that it differs in from Llama: windows shorter
/// than the tests' sequences in some blocks, and a head of its own where the family allows one.
pub fn config_of(architecture: &str) -> Value {
    let mut config = config();
    config["architectures"] = json!([architecture]);
    let mut set = |key: &str, value: Value| config[key] = value;
    set("sliding_window", json!(9));
    set("use_sliding_window", json!(true));
    set("max_window_layers", json!(2));
    if architecture == "Gemma3ForCausalLM" {
        set("hidden_act", Value::Null);
        set("hidden_activation", json!("gelu_pytorch_tanh"));
        set("sliding_window_pattern", json!(2));
        set("rope_local_base_freq", json!(1000.0));
        set("query_pre_attn_scalar", json!(11));
    }
    config
}

/// Writes `config.json` and `model.safetensors` with seeded random weights.
///
/// # Errors
/// The folder cannot be written.
pub fn write(dir: &Path, seed: u64) -> Result<()> {
    write_config(dir, &config(), seed)
}

/// The same for another configuration.
///
/// # Errors
/// The configuration is not usable, or the folder cannot be written.
pub fn write_config(dir: &Path, config: &Value, seed: u64) -> Result<()> {
    let model = ModelConfig::from_value(config, Path::new("config.json"))?;
    let (vocab, d, shape) = (model.vocab_size, model.hidden_size, model.shape());
    let mut shapes = vec![(EMBEDDING.to_string(), vec![vocab, d])];
    if !model.tie_word_embeddings {
        shapes.push((HEAD.to_string(), vec![vocab, d]));
    }
    shapes.push((NORM.to_string(), vec![d]));
    for layer in 0..model.num_hidden_layers {
        for part in model.family.layers() {
            let place = model.weight_place(layer, part.parts[0]);
            let (_, cols) = shape.projection(part.parts[0]);
            shapes.push((place.name, vec![place.whole, cols as usize]));
        }
        for (vector, len) in shape.vectors() {
            shapes.push((model.vector_name(layer, vector), vec![len as usize]));
        }
    }
    let mut rng = SeededRng::seed_from_u64(seed);
    let tensors: Vec<(String, Vec<usize>, Vec<f32>)> = shapes
        .into_iter()
        .map(|(name, shape)| {
            let count = shape.iter().product();
            let (low, high) = if shape.len() == 1 { (0.5, 1.5) } else { (-0.25, 0.25) };
            let values = uniform_vec(&mut rng, count, low, high);
            (name, shape, values)
        })
        .collect();
    let views = tensors
        .iter()
        .map(|(name, shape, values)| {
            let bytes = bytemuck::cast_slice(values);
            Ok((name.as_str(), TensorView::new(Dtype::F32, shape.clone(), bytes)?))
        })
        .collect::<Result<Vec<_>>>()?;
    let bytes = safetensors::serialize(views, None).context("laying out the tensors")?;
    std::fs::write(dir.join("model.safetensors"), bytes).context("model.safetensors")?;
    std::fs::write(dir.join("config.json"), config.to_string()).context("config.json")
}
