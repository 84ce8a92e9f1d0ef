//! Names of tensors: `blk.3.attn_q.weight` is `model.layers.3.self_attn.q_proj.weight`.

use super::families::Family;
use crate::family::names::{EMBEDDING, HEAD, NORM};

/// Factors of the rotary frequencies, which no folder has as a tensor.
pub const ROPE_FREQS: &str = "rope_freqs.weight";

/// Tensors that follow from `config.json`.
pub const CONSTANTS: [&str; 1] = [ROPE_FREQS];

/// Tensors outside of blocks, by both names.
const OUTER: [(&str, &str); 3] =
    [("token_embd.weight", EMBEDDING), ("output.weight", HEAD), ("output_norm.weight", NORM)];

/// Tensors of a block, by both names.
pub const BLOCK: [(&str, &str); 9] = [
    ("attn_norm.weight", "input_layernorm.weight"),
    ("attn_q.weight", "self_attn.q_proj.weight"),
    ("attn_k.weight", "self_attn.k_proj.weight"),
    ("attn_v.weight", "self_attn.v_proj.weight"),
    ("attn_output.weight", "self_attn.o_proj.weight"),
    ("ffn_norm.weight", "post_attention_layernorm.weight"),
    ("ffn_gate.weight", "mlp.gate_proj.weight"),
    ("ffn_up.weight", "mlp.up_proj.weight"),
    ("ffn_down.weight", "mlp.down_proj.weight"),
];

fn of_block(family: &Family) -> impl Iterator<Item = &(&'static str, &'static str)> {
    BLOCK.iter().chain(family.extra)
}

/// The name in a Hugging Face folder.
pub fn from_gguf(family: &Family, name: &str) -> Option<String> {
    if let Some((_, found)) = OUTER.iter().find(|(gguf, _)| *gguf == name) {
        return Some((*found).to_owned());
    }
    let (block, rest) = name.strip_prefix("blk.")?.split_once('.')?;
    let block: u32 = block.parse().ok()?;
    let (_, found) = of_block(family).find(|(gguf, _)| *gguf == rest)?;
    Some(format!("model.layers.{block}.{found}")).filter(|_| name == format!("blk.{block}.{rest}"))
}

/// The name in a GGUF file.
pub fn to_gguf(family: &Family, name: &str) -> Option<String> {
    if let Some((found, _)) = OUTER.iter().find(|(_, folder)| *folder == name) {
        return Some((*found).to_owned());
    }
    let (block, rest) = name.strip_prefix("model.layers.")?.split_once('.')?;
    let block: u32 = block.parse().ok()?;
    let (found, _) = of_block(family).find(|(_, folder)| *folder == rest)?;
    Some(format!("blk.{block}.{found}"))
}

/// Whether rows of a tensor, by its name in a Hugging Face folder, are interleaved in a file.
pub fn is_interleaved(family: &Family, name: &str) -> bool {
    let rotated = ["self_attn.q_proj.weight", "self_attn.k_proj.weight"];
    family.interleaved && rotated.iter().any(|end| name.ends_with(end))
}
