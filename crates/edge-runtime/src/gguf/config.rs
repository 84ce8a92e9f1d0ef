//! `config.json` of a GGUF file's metadata, and the metadata of a configuration.

use anyhow::{Context, Result, ensure};
use gguf_rs_lib::format::metadata::MetadataValue;
use serde_json::{Value, json};

use super::families::Family;
use super::names::ROPE_FREQS;
use super::{Gguf, rope};
use crate::config::{ModelConfig, RopeScaling};

/// What the folder that a file was made of had as `config.json`, as far as it is read here.
///
/// # Errors
/// A size is missing or no number, or the rotary embedding is none that is computed here.
pub fn config_json(gguf: &Gguf, family: &Family) -> Result<Value> {
    let shown = gguf.path.display();
    let number = |name: &str| gguf.number(&family.key(name));
    let required = |name: &str| -> Result<u64> {
        let key = family.key(name);
        number(name)?.with_context(|| format!("{shown} has no {key}: convert the model again"))
    };
    ensure!(
        number("expert_count")?.unwrap_or(0) == 0,
        "{shown} is a mixture of experts, which is not computed here: choose another model"
    );
    let heads = required("attention.head_count")?;
    let hidden = required("embedding_length")?;
    let head_dim = match number("attention.key_length")? {
        Some(width) => width,
        None if heads > 0 => hidden / heads,
        None => 0,
    };
    for (name, wanted) in [("attention.value_length", head_dim), ("rope.dimension_count", head_dim)]
    {
        let got = number(name)?.unwrap_or(wanted);
        ensure!(
            got == wanted,
            "{} of {shown} is {got} and a head has {head_dim}, which is not computed here: choose \
             another model",
            family.key(name)
        );
    }
    let embedding = gguf.stored("token_embd.weight").with_context(|| {
        format!("{shown} has no tensor token_embd.weight: it is no whole model, download it again")
    })?;
    let (bos, eos) = special_ids(gguf)?;
    let theta = gguf.real(&family.key("rope.freq_base"))?.unwrap_or(10_000.0);
    Ok(json!({
        "architectures": [family.huggingface[0]],
        "model_type": family.model_type,
        "hidden_act": "silu",
        "vocab_size": embedding.shape[0],
        "hidden_size": hidden,
        "intermediate_size": required("feed_forward_length")?,
        "num_hidden_layers": required("block_count")?,
        "num_attention_heads": heads,
        "num_key_value_heads": number("attention.head_count_kv")?.unwrap_or(heads),
        "head_dim": head_dim,
        "max_position_embeddings": required("context_length")?,
        "rms_norm_eps": gguf.real(&family.key("attention.layer_norm_rms_epsilon"))?,
        "rope_theta": theta,
        "rope_scaling": scaling_json(gguf, family, theta, head_dim)?,
        "tie_word_embeddings": gguf.stored("output.weight").is_none(),
        "bos_token_id": bos,
        "eos_token_id": eos,
    }))
}

/// Beginning of sequence, and what ends one: the defaults are llama.cpp's.
pub(super) fn special_ids(gguf: &Gguf) -> Result<(Option<u64>, Vec<u64>)> {
    let (bos, eos) = match gguf.text("tokenizer.ggml.model")? {
        Some("llama") => (Some(1), Some(2)),
        _ => (None, None),
    };
    let id = |name: &str| gguf.number(&format!("tokenizer.ggml.{name}_token_id"));
    let mut ends: Vec<u64> = id("eos")?.or(eos).into_iter().chain(id("eot")?).collect();
    ends.dedup();
    Ok((id("bos")?.or(bos), ends))
}

fn scaling_json(gguf: &Gguf, family: &Family, theta: f64, head_dim: u64) -> Result<Value> {
    let key = |name: &str| family.key(&format!("rope.scaling.{name}"));
    if let Some(tensor) = gguf.stored(ROPE_FREQS) {
        let factors = gguf.values(tensor)?;
        let context = gguf.number(&key("original_context_length"))?;
        let llama3 = rope::recognise(&factors, theta, head_dim as usize, context);
        let llama3 = llama3.with_context(|| {
            format!(
                "tensor {ROPE_FREQS} in {} holds frequencies that are not llama3's: use the \
                 model's Hugging Face folder",
                gguf.path.display()
            )
        })?;
        return Ok(json!({
            "rope_type": "llama3",
            "factor": llama3.factor,
            "low_freq_factor": llama3.low,
            "high_freq_factor": llama3.high,
            "original_max_position_embeddings": llama3.context as u64,
        }));
    }
    // An older name of the same.
    let factor = match gguf.real(&key("factor"))? {
        Some(factor) => Some(factor),
        None => gguf.real(&family.key("rope.scale_linear"))?,
    };
    // As llama.cpp has it: a factor without a type is linear, and 0 is none.
    let scaled = factor.is_some_and(|factor| factor != 0.0);
    match gguf.text(&key("type"))?.unwrap_or(if scaled { "linear" } else { "none" }) {
        "none" => Ok(Value::Null),
        kind => Ok(json!({ "rope_type": kind, "factor": factor })),
    }
}

/// The metadata that say a model's sizes, in the order of their keys.
///
/// # Errors
/// The rotary embedding has no form in GGUF.
pub fn metadata(config: &ModelConfig, family: &Family) -> Result<Vec<(String, MetadataValue)>> {
    let whole = |number: usize| MetadataValue::U32(number as u32);
    let mut out = vec![
        ("context_length", whole(config.max_position_embeddings)),
        ("embedding_length", whole(config.hidden_size)),
        ("block_count", whole(config.num_hidden_layers)),
        ("feed_forward_length", whole(config.intermediate_size)),
        ("rope.dimension_count", whole(config.head_dim)),
        ("rope.freq_base", MetadataValue::F32(config.rope_theta as f32)),
        ("attention.head_count", whole(config.num_attention_heads)),
        ("attention.head_count_kv", whole(config.num_key_value_heads)),
        ("attention.layer_norm_rms_epsilon", MetadataValue::F32(config.rms_norm_eps)),
        ("attention.key_length", whole(config.head_dim)),
        ("attention.value_length", whole(config.head_dim)),
        ("vocab_size", whole(config.vocab_size)),
    ];
    match rope::of_config(config) {
        // The tensor says the rest; of the context alone it does not follow.
        Some(llama3) => {
            out.push(("rope.scaling.original_context_length", whole(llama3.context as usize)));
        }
        None => {
            if let RopeScaling::Linear { factor } = config.rope_scaling {
                out.push(("rope.scaling.type", MetadataValue::String("linear".into())));
                out.push(("rope.scaling.factor", MetadataValue::F32(factor as f32)));
            } else {
                ensure!(
                    config.rope_scaling == RopeScaling::None,
                    "the rotary embedding is scaled in a way that is not written to GGUF: use \
                     --format safetensors"
                );
            }
        }
    }
    Ok(out.into_iter().map(|(name, value)| (family.key(name), value)).collect())
}
