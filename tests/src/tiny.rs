//! A small random Llama checkpoint, so that whole-model tests need no files.

use std::path::Path;

use anyhow::{Context, Result};
use edge_kernels::util::{SeededRng, uniform_vec};
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

/// Writes `config.json` and `model.safetensors` with seeded random weights.
///
/// # Errors
/// The folder cannot be written.
pub fn write(dir: &Path, seed: u64) -> Result<()> {
    let config = config();
    let size = |key: &str| config[key].as_u64().unwrap_or_default() as usize;
    let (vocab, d, inner) = (size("vocab_size"), size("hidden_size"), size("intermediate_size"));
    let q = size("num_attention_heads") * size("head_dim");
    let kv = size("num_key_value_heads") * size("head_dim");
    let mut shapes = vec![
        ("model.embed_tokens.weight".to_string(), vec![vocab, d]),
        ("lm_head.weight".to_string(), vec![vocab, d]),
        ("model.norm.weight".to_string(), vec![d]),
    ];
    for layer in 0..size("num_hidden_layers") {
        for (name, shape) in [
            ("self_attn.q_proj", vec![q, d]),
            ("self_attn.k_proj", vec![kv, d]),
            ("self_attn.v_proj", vec![kv, d]),
            ("self_attn.o_proj", vec![d, q]),
            ("mlp.gate_proj", vec![inner, d]),
            ("mlp.up_proj", vec![inner, d]),
            ("mlp.down_proj", vec![d, inner]),
            ("input_layernorm", vec![d]),
            ("post_attention_layernorm", vec![d]),
        ] {
            shapes.push((format!("model.layers.{layer}.{name}.weight"), shape));
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
