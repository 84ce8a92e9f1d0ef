//! The metadata of a tokenizer: what llama.cpp's converter writes of `tokenizer.json`.

use std::collections::HashMap;

use anyhow::{Context, Result, ensure};
use gguf_rs_lib::format::metadata::{MetadataArray, MetadataValue};
use gguf_rs_lib::format::types::GGUFValueType;
use serde_json::Value;

use super::pre::{self, Pre};
use super::tokenizer::kind;

/// What a file says of a tokenizer beside its tokens.
#[derive(Clone, Debug, Default)]
pub struct Specials {
    /// Beginning of sequence.
    pub bos: Option<u32>,
    /// End of sequence.
    pub eos: Option<u32>,
    /// Whether a text starts with the one.
    pub adds_bos: bool,
    /// Whether a text ends with the other.
    pub adds_eos: bool,
    /// The chat template.
    pub template: Option<String>,
}

type Pairs = Vec<(String, MetadataValue)>;

fn list(kind: GGUFValueType, values: Vec<MetadataValue>) -> Result<MetadataValue> {
    let array = MetadataArray::new(kind, values);
    Ok(MetadataValue::Array(Box::new(array.map_err(|error| anyhow::anyhow!("{error}"))?)))
}

fn texts(values: Vec<String>) -> Result<MetadataValue> {
    let values = values.into_iter().map(MetadataValue::String).collect();
    list(GGUFValueType::String, values)
}

/// The keys `tokenizer.*` of a `tokenizer.json`, for a table of `vocab_size` rows; `shown` is the
/// file for messages.
///
/// # Errors
/// The tokenizer is of a kind that GGUF has no name for.
pub fn metadata(
    tokenizer: &Value,
    specials: &Specials,
    vocab_size: usize,
    shown: &str,
) -> Result<Pairs> {
    let model = &tokenizer["model"];
    ensure!(
        model["type"].as_str() == Some("BPE"),
        "{shown} is a tokenizer of type {}, and written to GGUF is BPE: use --format safetensors",
        model["type"]
    );
    let pieces = model["byte_fallback"].as_bool() == Some(true);
    let (tokens, kinds) = tokens(tokenizer, vocab_size, pieces, shown)?;
    let merges = merges(model).with_context(|| {
        format!("{shown} has merges that are no pairs of tokens: download the tokenizer again")
    })?;
    let mut out: Pairs = Vec::new();
    let mut set = |key: &str, value| out.push((format!("tokenizer.ggml.{key}"), value));
    if pieces {
        let scores = scores(&tokens, &merges).into_iter().map(MetadataValue::F32).collect();
        set("model", MetadataValue::String("llama".into()));
        set("pre", MetadataValue::String("default".into()));
        set("scores", list(GGUFValueType::F32, scores)?);
        let prefix = tokenizer["normalizer"].to_string().contains("\"Prepend\"")
            || ["first", "always"]
                .iter()
                .any(|scheme| tokenizer["pre_tokenizer"]["prepend_scheme"] == *scheme);
        set("add_space_prefix", MetadataValue::Bool(prefix));
    } else {
        let pre = Pre::of(tokenizer).with_context(|| {
            format!(
                "{shown} cuts texts in a way that GGUF has no name for here (known are {}): use \
                 --format safetensors and llama.cpp's convert_hf_to_gguf.py",
                pre::names()
            )
        })?;
        set("model", MetadataValue::String("gpt2".into()));
        set("pre", MetadataValue::String(pre.names[0].into()));
        let joined = merges.iter().map(|(left, right)| format!("{left} {right}")).collect();
        set("merges", texts(joined)?);
    }
    let unknown = kinds.iter().position(|kind| *kind == kind::UNKNOWN).map(|id| id as u32);
    set("tokens", texts(tokens)?);
    let kinds = kinds.into_iter().map(|kind| MetadataValue::I32(kind as i32)).collect();
    set("token_type", list(GGUFValueType::I32, kinds)?);
    for (key, id) in [("bos", specials.bos), ("eos", specials.eos), ("unknown", unknown)] {
        if let Some(id) = id {
            set(&format!("{key}_token_id"), MetadataValue::U32(id));
        }
    }
    set("add_bos_token", MetadataValue::Bool(specials.adds_bos));
    set("add_eos_token", MetadataValue::Bool(specials.adds_eos));
    if let Some(template) = &specials.template {
        out.push(("tokenizer.chat_template".into(), MetadataValue::String(template.clone())));
    }
    Ok(out)
}

/// Tokens by id and their kinds, filled up to `vocab_size` as llama.cpp's converter does.
fn tokens(
    tokenizer: &Value,
    vocab_size: usize,
    pieces: bool,
    shown: &str,
) -> Result<(Vec<String>, Vec<i64>)> {
    let mut tokens: Vec<Option<String>> = vec![None; vocab_size];
    let mut kinds = vec![kind::NORMAL; vocab_size];
    let unknown = tokenizer["model"]["unk_token"].as_str();
    let none = serde_json::Map::new();
    let vocab = tokenizer["model"]["vocab"].as_object().unwrap_or(&none);
    let mut put = |text: &str, id: Option<u64>, kind: i64| -> Result<()> {
        let id = id.and_then(|id| usize::try_from(id).ok()).filter(|id| *id < vocab_size);
        let id = id.with_context(|| {
            format!("token {text:?} of {shown} has no row in the model: use its own tokenizer")
        })?;
        (tokens[id], kinds[id]) = (Some(text.to_owned()), kind);
        Ok(())
    };
    for (text, id) in vocab {
        let byte = pieces && text.len() == 6 && text.starts_with("<0x") && text.ends_with('>');
        put(text, id.as_u64(), if byte { kind::BYTE } else { kind::NORMAL })?;
    }
    for token in tokenizer["added_tokens"].as_array().into_iter().flatten() {
        let text = token["content"].as_str().unwrap_or_default();
        let kind = match (token["special"].as_bool(), unknown == Some(text) && pieces) {
            (_, true) => kind::UNKNOWN,
            (Some(true), _) => kind::CONTROL,
            _ => kind::USER_DEFINED,
        };
        put(text, token["id"].as_u64(), kind)?;
    }
    let fill = |(id, (token, kind)): (usize, (Option<String>, &mut i64))| {
        token.unwrap_or_else(|| {
            *kind = kind::UNUSED;
            format!("[PAD{id}]")
        })
    };
    let tokens = tokens.into_iter().zip(kinds.iter_mut()).enumerate().map(fill).collect();
    Ok((tokens, kinds))
}

/// Pairs in the order of their ranks, which files write as lists or as texts.
fn merges(model: &Value) -> Option<Vec<(String, String)>> {
    let none = Vec::new();
    let pair = |merge: &Value| match merge {
        Value::String(text) => {
            text.split_once(' ').map(|(left, right)| (left.to_owned(), right.to_owned()))
        }
        Value::Array(pair) => match pair.as_slice() {
            [Value::String(left), Value::String(right)] => Some((left.clone(), right.clone())),
            _ => None,
        },
        _ => None,
    };
    model["merges"].as_array().unwrap_or(&none).iter().map(pair).collect()
}

/// Scores that give the order of merges: minus the place of the first merge that makes a token, as
/// SentencePiece numbers its pieces; what no merge makes comes behind.
fn scores(tokens: &[String], merges: &[(String, String)]) -> Vec<f32> {
    let mut places: HashMap<String, usize> = HashMap::with_capacity(merges.len());
    for (left, right) in merges {
        let next = places.len();
        places.entry(format!("{left}{right}")).or_insert(next);
    }
    let last = places.len();
    let place = |token: &String| places.get(token).copied().unwrap_or(last);
    tokens.iter().map(|token| -(place(token) as f32)).collect()
}
