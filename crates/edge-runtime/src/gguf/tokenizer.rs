//! `tokenizer.json` and `tokenizer_config.json` of a GGUF file's metadata.
//!
//! `tokenizer.ggml.model` is `gpt2` (byte-level pairs, with their merges) or `llama`
//! (SentencePiece: merges follow from the scores of tokens). Both become the BPE model of Hugging
//! Face's library, the latter as its own converter does (`convert_slow_tokenizer.py`,
//! `SentencePieceExtractor`).

use std::collections::HashMap;

use anyhow::{Context, Result, bail, ensure};
use gguf_rs_lib::format::metadata::MetadataValue;
use serde_json::{Map, Value, json};

use super::pre::{self, Pre};
use super::{Gguf, config};

/// Kinds of tokens (`tokenizer.ggml.token_type`).
pub mod kind {
    /// An ordinary one.
    pub const NORMAL: i64 = 1;
    /// Stands for what has no token.
    pub const UNKNOWN: i64 = 2;
    /// A mark that is no text.
    pub const CONTROL: i64 = 3;
    /// Text that is a token as a whole, before merges.
    pub const USER_DEFINED: i64 = 4;
    /// Fills up the table.
    pub const UNUSED: i64 = 5;
    /// One byte.
    pub const BYTE: i64 = 6;
}

/// The two files.
#[derive(Clone, Debug)]
pub struct Files {
    /// `tokenizer.json`
    pub tokenizer: Value,
    /// `tokenizer_config.json`
    pub settings: Value,
}

/// Tokens by id, with their kinds.
struct Vocabulary<'a> {
    tokens: Vec<&'a str>,
    kinds: Vec<i64>,
}

/// What the metadata say of a tokenizer.
///
/// # Errors
/// They are damaged, or of a kind of tokenizer or pre-tokenizer that is not known here.
pub fn files(gguf: &Gguf) -> Result<Files> {
    let shown = gguf.path.display();
    let model = gguf.text("tokenizer.ggml.model")?.with_context(|| {
        format!("{shown} has no tokenizer: put the model's tokenizer.json beside it")
    })?;
    let vocabulary = vocabulary(gguf)?;
    let (tokenizer, adds_bos) = match model {
        "gpt2" => byte_level(gguf, &vocabulary)?,
        "llama" => (sentence_piece(gguf, &vocabulary)?, true),
        other => bail!(
            "tokenizer.ggml.model of {shown} is {other}, and known are gpt2 and llama: put the \
             model's tokenizer.json beside the file"
        ),
    };
    let (bos, eos) = config::special_ids(gguf)?;
    let text = |id: Option<u64>| {
        id.and_then(|id| vocabulary.tokens.get(usize::try_from(id).ok()?)).map(|text| json!(text))
    };
    let (bos, eos) = (text(bos), text(eos.first().copied()));
    let add = |name: &str, default: bool, there: bool| -> Result<Value> {
        let adds = gguf.flag(&format!("tokenizer.ggml.add_{name}_token"))?;
        Ok(json!(adds.unwrap_or(default && there)))
    };
    let mut settings = Map::new();
    settings.insert("add_bos_token".into(), add("bos", adds_bos, bos.is_some())?);
    settings.insert("add_eos_token".into(), add("eos", false, eos.is_some())?);
    let named = [("bos_token", bos), ("eos_token", eos)];
    for (key, token) in named.into_iter().filter_map(|(key, token)| Some((key, token?))) {
        settings.insert(key.into(), token);
    }
    if let Some(template) = gguf.text("tokenizer.chat_template")? {
        settings.insert("chat_template".into(), json!(template));
    }
    Ok(Files { tokenizer, settings: Value::Object(settings) })
}

fn vocabulary(gguf: &Gguf) -> Result<Vocabulary<'_>> {
    let shown = gguf.path.display();
    let list = gguf.list("tokenizer.ggml.tokens")?.with_context(|| {
        format!("{shown} has no tokenizer.ggml.tokens: put the model's tokenizer.json beside it")
    })?;
    let tokens: Option<Vec<&str>> = list.iter().map(MetadataValue::as_str).collect();
    let tokens = tokens.with_context(|| {
        format!("tokenizer.ggml.tokens of {shown} has something else than texts: download it again")
    })?;
    let kinds = match gguf.list("tokenizer.ggml.token_type")? {
        None => vec![kind::NORMAL; tokens.len()],
        Some(list) => list.iter().map(|kind| kind.as_i64().unwrap_or(0)).collect(),
    };
    ensure!(
        kinds.len() == tokens.len() && !tokens.is_empty(),
        "{shown} has {} tokens and {} kinds of them: download it again",
        tokens.len(),
        kinds.len()
    );
    let mut seen = HashMap::with_capacity(tokens.len());
    for (id, token) in tokens.iter().enumerate() {
        if let Some(first) = seen.insert(*token, id) {
            bail!("{shown} has token {token:?} twice, as {first} and as {id}: convert it again");
        }
    }
    Ok(Vocabulary { tokens, kinds })
}

impl Vocabulary<'_> {
    /// `vocab` of a model: all but what only fills up the table.
    fn ids(&self) -> Map<String, Value> {
        let all = self.tokens.iter().zip(&self.kinds).enumerate();
        let padding =
            |id: usize, text: &str, kind: i64| kind == kind::UNUSED && text == format!("[PAD{id}]");
        all.filter(|(id, (text, kind))| !padding(*id, text, **kind))
            .map(|(id, (text, _))| ((*text).to_owned(), json!(id)))
            .collect()
    }

    /// Tokens that are found before merges are made.
    fn added(&self) -> Vec<Value> {
        let all = self.tokens.iter().zip(&self.kinds).enumerate();
        let whole = all.filter(|(_, (text, kind))| {
            let whole = [kind::UNKNOWN, kind::CONTROL, kind::USER_DEFINED].contains(kind);
            whole && !text.is_empty()
        });
        let token = |(id, (text, kind)): (usize, (&&str, &i64))| {
            json!({
                "id": id, "content": text, "single_word": false, "lstrip": false, "rstrip": false,
                "normalized": false, "special": *kind != kind::USER_DEFINED,
            })
        };
        whole.map(token).collect()
    }
}

/// The parts that both kinds have.
fn assemble(vocabulary: &Vocabulary<'_>, parts: Value) -> Value {
    let mut file = json!({
        "version": "1.0", "truncation": null, "padding": null, "added_tokens": vocabulary.added(),
        "normalizer": null, "pre_tokenizer": null, "post_processor": null,
    });
    if let (Value::Object(file), Value::Object(parts)) = (&mut file, parts) {
        file.extend(parts);
    }
    file
}

/// `gpt2`: the file, and whether a text starts with the beginning-of-sequence token.
fn byte_level(gguf: &Gguf, vocabulary: &Vocabulary<'_>) -> Result<(Value, bool)> {
    let shown = gguf.path.display();
    let name = gguf.text("tokenizer.ggml.pre")?.unwrap_or("default");
    let pre = Pre::named(name).with_context(|| {
        format!(
            "tokenizer.ggml.pre of {shown} is {name}, and known are {}: put the model's \
             tokenizer.json beside the file",
            pre::names()
        )
    })?;
    let merges = gguf.list("tokenizer.ggml.merges")?.with_context(|| {
        format!("{shown} has no tokenizer.ggml.merges: put the model's tokenizer.json beside it")
    })?;
    let mut pairs = Vec::with_capacity(merges.len());
    for merge in merges {
        // A first token may itself be a space where pieces are not bytes.
        let text = merge.as_str().unwrap_or_default();
        let at = text.char_indices().skip(1).find(|(_, c)| *c == ' ').map(|(at, _)| at);
        let (left, right) = at.map(|at| (&text[..at], &text[at + 1..])).with_context(|| {
            format!("tokenizer.ggml.merges of {shown} has {text:?}, no pair: download it again")
        })?;
        pairs.push(json!([left, right]));
    }
    let parts = json!({
        "normalizer": pre.normalizer(),
        "pre_tokenizer": pre.pre_tokenizer(),
        "decoder": {"type": "ByteLevel", "add_prefix_space": true, "trim_offsets": true,
                    "use_regex": true},
        "model": {
            "type": "BPE", "dropout": null, "unk_token": null, "continuing_subword_prefix": null,
            "end_of_word_suffix": null, "fuse_unk": false, "byte_fallback": false,
            "ignore_merges": pre.ignore_merges, "vocab": vocabulary.ids(), "merges": pairs,
        },
    });
    Ok((assemble(vocabulary, parts), pre.adds_bos))
}

/// `llama`: SentencePiece's pairs.
fn sentence_piece(gguf: &Gguf, vocabulary: &Vocabulary<'_>) -> Result<Value> {
    let shown = gguf.path.display();
    let scores = gguf.list("tokenizer.ggml.scores")?.unwrap_or_default();
    let scores: Option<Vec<f64>> = scores.iter().map(MetadataValue::as_f64).collect();
    let scores = scores.filter(|scores| scores.len() == vocabulary.tokens.len()).with_context(|| {
        format!(
            "{shown} has no score for each of its {} tokens: put the model's tokenizer.json beside \
             the file",
            vocabulary.tokens.len()
        )
    })?;
    let prefix = gguf.flag("tokenizer.ggml.add_space_prefix")?.unwrap_or(true);
    let space = json!({"type": "Replace", "pattern": {"String": " "}, "content": "\u{2581}"});
    let normalizer = match prefix {
        true => json!({"type": "Sequence", "normalizers":
            [{"type": "Prepend", "prepend": "\u{2581}"}, space]}),
        false => space,
    };
    let back = json!({"type": "Replace", "pattern": {"String": "\u{2581}"}, "content": " "});
    let mut decoders = vec![back, json!({"type": "ByteFallback"}), json!({"type": "Fuse"})];
    if prefix {
        decoders.push(json!({"type": "Strip", "content": " ", "start": 1, "stop": 0}));
    }
    let unknown = vocabulary.kinds.iter().position(|kind| *kind == kind::UNKNOWN);
    let parts = json!({
        "normalizer": normalizer,
        "decoder": {"type": "Sequence", "decoders": decoders},
        "model": {
            "type": "BPE", "dropout": null, "unk_token": unknown.map(|id| vocabulary.tokens[id]),
            "continuing_subword_prefix": null, "end_of_word_suffix": null, "fuse_unk": true,
            "byte_fallback": true, "ignore_merges": false, "vocab": vocabulary.ids(),
            "merges": merges(vocabulary, &scores),
        },
    });
    Ok(assemble(vocabulary, parts))
}

/// Longest token that may come out of a merge, bytes: pairs are quadratic in it, and no
/// vocabulary's is longer.
const LONGEST: usize = 512;

/// All pairs of tokens that make a token, best score first.
fn merges(vocabulary: &Vocabulary<'_>, scores: &[f64]) -> Vec<Value> {
    let mergeable = |id: usize| [kind::NORMAL, kind::UNUSED].contains(&vocabulary.kinds[id]);
    let ids: HashMap<&str, usize> = vocabulary
        .tokens
        .iter()
        .enumerate()
        .filter(|(id, _)| mergeable(*id))
        .map(|(id, token)| (*token, id))
        .collect();
    let mut found: Vec<(f64, usize, usize)> = Vec::new();
    for (id, token) in vocabulary.tokens.iter().enumerate() {
        if !mergeable(id) || token.len() > LONGEST {
            continue;
        }
        for (at, _) in token.char_indices().skip(1) {
            if let (Some(left), Some(right)) = (ids.get(&token[..at]), ids.get(&token[at..])) {
                found.push((scores[id], *left, *right));
            }
        }
    }
    found.sort_by(|a, b| b.0.total_cmp(&a.0).then((a.1, a.2).cmp(&(b.1, b.2))));
    let text = |id: usize| vocabulary.tokens[id];
    found.iter().map(|(_, left, right)| json!([text(*left), text(*right)])).collect()
}
