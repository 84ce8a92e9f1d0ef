//! Text to token ids and back: `tokenizer.json`, with what `tokenizer_config.json` adds to it.

use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use anyhow::{Context, Result, ensure};
use serde_json::Value;
use tokenizers::Tokenizer as Inner;

use crate::chat::ChatTemplate;
use crate::config::ModelConfig;
use crate::guard::guarded;
use crate::whole_file::{self, LARGE, SETTINGS};

/// A tokenizer of a model folder.
pub struct Tokenizer {
    inner: Inner,
    path: PathBuf,
    bos_id: Option<u32>,
    eos_id: Option<u32>,
    /// Special tokens put before and after a text.
    prefix: Vec<u32>,
    suffix: Vec<u32>,
    /// The source of the model's chat template and its file.
    chat_source: Option<(String, String)>,
    chat: OnceLock<ChatTemplate>,
}

impl std::fmt::Debug for Tokenizer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Tokenizer").field("path", &self.path).finish_non_exhaustive()
    }
}

impl Tokenizer {
    /// Reads `tokenizer.json` in `dir` and, where it exists, `tokenizer_config.json`.
    ///
    /// Which special tokens surround a text is what the post-processor of the first says, unless
    /// the second says otherwise in `add_bos_token` or `add_eos_token`.
    ///
    /// # Errors
    /// A file is absent or damaged, or a special token is not in the vocabulary.
    pub fn load(dir: &Path) -> Result<Self> {
        let path = dir.join("tokenizer.json");
        let shown = path.display().to_string();
        let bytes = whole_file::bytes(&path, LARGE).with_context(|| {
            format!("cannot read {shown}: give --model a folder with the model's tokenizer.json")
        })?;
        let beside = dir.join("tokenizer_config.json");
        let settings = read_settings(&beside)?;
        let chat_source = chat_source(dir, &settings)?;
        Self::from_parts((path, &bytes), (&beside, &settings), chat_source)
    }

    /// Of the contents of both files, each with its path for messages, and the chat template with
    /// the file that it is from.
    ///
    /// # Errors
    /// As [`Tokenizer::load`].
    pub(crate) fn from_parts(
        (path, bytes): (PathBuf, &[u8]),
        (beside, settings): (&Path, &Value),
        chat_source: Option<(String, String)>,
    ) -> Result<Self> {
        let shown = path.display().to_string();
        let inner = guarded(|| {
            let mut inner = Inner::from_bytes(bytes)?;
            // Files keep the lengths that somebody has trained with: no text is cut or filled up.
            inner.with_truncation(None)?.with_padding(None);
            tokenizers::Result::Ok(inner)
        });
        let inner = inner
            .map_err(|error| anyhow::anyhow!("{shown} is no tokenizer ({error}): download it"))?;
        let special = |key: &str| -> Result<Option<u32>> {
            let token = &settings[key];
            let Some(text) = token.as_str().or_else(|| token["content"].as_str()) else {
                return Ok(None);
            };
            let id = inner.token_to_id(text).with_context(|| {
                format!(
                    "{key} {text:?} of {} is not in tokenizer.json: use files of the same model",
                    beside.display()
                )
            })?;
            Ok(Some(id))
        };
        let (bos_id, eos_id) = (special("bos_token")?, special("eos_token")?);
        let (prefix, suffix) = guarded(|| template(&inner))
            .map_err(|error| anyhow::anyhow!("{shown} does not tokenise ({error}): download it"))?;
        let chat = OnceLock::new();
        let mut tokenizer = Self { inner, path, bos_id, eos_id, prefix, suffix, chat_source, chat };
        // A template names the token even where no tokenizer_config.json does.
        tokenizer.bos_id = bos_id.or(tokenizer.prefix.first().copied());
        tokenizer.override_template(settings)?;
        Ok(tokenizer)
    }

    /// [`Tokenizer::load`] for this model: its vocabulary is checked, and where no tokenizer file
    /// names the tokens of beginning and end of sequence, they are those of `config.json`.
    ///
    /// # Errors
    /// As [`Tokenizer::load`] and [`Tokenizer::check_vocab`].
    pub fn for_model(dir: &Path, model: &ModelConfig) -> Result<Self> {
        Self::load(dir)?.fit(model)
    }

    /// The second half of [`Tokenizer::for_model`].
    ///
    /// # Errors
    /// As [`Tokenizer::check_vocab`].
    pub(crate) fn fit(mut self, model: &ModelConfig) -> Result<Self> {
        self.check_vocab(model.vocab_size)?;
        // An id without a token, as in files that leave out defaults, is none of this tokenizer.
        let known = |id: &u32| self.inner.id_to_token(*id).is_some();
        let bos = self.bos_id.or(model.bos_token_id.filter(known));
        let eos = self.eos_id.or(model.eos_token_ids.iter().copied().find(known));
        (self.bos_id, self.eos_id) = (bos, eos);
        Ok(self)
    }

    fn override_template(&mut self, settings: &Value) -> Result<()> {
        let places = [
            ("add_bos_token", self.bos_id, &mut self.prefix),
            ("add_eos_token", self.eos_id, &mut self.suffix),
        ];
        for (key, id, place) in places {
            match settings[key].as_bool() {
                None => {}
                Some(false) => place.retain(|token| Some(*token) != id),
                Some(true) if place.is_empty() => {
                    place.push(id.with_context(|| {
                        format!(
                            "tokenizer_config.json beside {} sets {key} and names no such token: \
                             name it there",
                            self.path.display()
                        )
                    })?);
                }
                Some(true) => {}
            }
        }
        Ok(())
    }

    /// Token ids of a text; with `add_special`, the beginning-of-sequence token and whatever else
    /// this tokenizer puts around a text.
    ///
    /// # Errors
    /// The tokenizer itself fails, as with a character that it cannot represent.
    pub fn encode(&self, text: &str, add_special: bool) -> Result<Vec<u32>> {
        let encoding = guarded(|| self.inner.encode_fast(text, false)).map_err(|error| {
            anyhow::anyhow!("{} cannot tokenise the text ({error})", self.path.display())
        })?;
        if !add_special {
            return Ok(encoding.get_ids().to_vec());
        }
        Ok([&self.prefix, encoding.get_ids(), &self.suffix].concat())
    }

    /// Token ids of a text with what this tokenizer puts before a text, and the bytes of the text
    /// that each stands for: none for what is put before it.
    ///
    /// # Errors
    /// As [`Tokenizer::encode`].
    pub fn encode_spans(&self, text: &str) -> Result<(Vec<u32>, Vec<Range<usize>>)> {
        let encoding = guarded(|| self.inner.encode(text, false)).map_err(|error| {
            anyhow::anyhow!("{} cannot tokenise the text ({error})", self.path.display())
        })?;
        // A chat template may write the beginning-of-sequence token itself.
        let written = self.bos_id.is_some() && encoding.get_ids().first().copied() == self.bos_id;
        let prefix = if written { &[][..] } else { &self.prefix };
        let spans = encoding.get_offsets().iter().map(|&(start, end)| start..end);
        let spans = prefix.iter().map(|_| 0..0).chain(spans).collect();
        Ok(([prefix, encoding.get_ids()].concat(), spans))
    }

    /// Special tokens put before and after a text.
    pub(crate) fn around(&self) -> (&[u32], &[u32]) {
        (&self.prefix, &self.suffix)
    }

    /// What does the work.
    pub(crate) fn inner(&self) -> &Inner {
        &self.inner
    }

    /// The model's chat template.
    ///
    /// # Errors
    /// It is no Jinja template.
    pub(crate) fn chat_template(&self) -> Result<Option<&ChatTemplate>> {
        let Some((source, file)) = &self.chat_source else { return Ok(None) };
        if let Some(chat) = self.chat.get() {
            return Ok(Some(chat));
        }
        let texts = [self.token_text(self.bos_id), self.eos_text()];
        let chat = ChatTemplate::new(source, file.clone(), texts)?;
        Ok(Some(self.chat.get_or_init(|| chat)))
    }

    /// The source of the model's chat template.
    pub fn chat_source(&self) -> Option<&str> {
        self.chat_source.as_ref().map(|(source, _)| source.as_str())
    }

    /// Whether the model folder has a chat template.
    pub fn has_chat_template(&self) -> bool {
        self.chat_source.is_some()
    }

    /// The text of the end-of-sequence token, empty without one.
    pub(crate) fn eos_text(&self) -> String {
        self.token_text(self.eos_id)
    }

    /// The text of a single token, special or not.
    pub fn token_text(&self, id: Option<u32>) -> String {
        id.and_then(|id| self.inner.id_to_token(id)).unwrap_or_default()
    }

    /// Text of token ids, special tokens left out.
    ///
    /// # Errors
    /// The tokenizer itself fails.
    pub fn decode(&self, ids: &[u32]) -> Result<String> {
        guarded(|| self.inner.decode(ids, true)).map_err(|error| {
            anyhow::anyhow!("{} cannot decode token ids ({error})", self.path.display())
        })
    }

    /// Text of token ids, special tokens included.
    ///
    /// # Errors
    /// The tokenizer itself fails.
    pub fn decode_all(&self, ids: &[u32]) -> Result<String> {
        guarded(|| self.inner.decode(ids, false)).map_err(|error| {
            anyhow::anyhow!("{} cannot decode token ids ({error})", self.path.display())
        })
    }

    /// Decodes tokens one by one as the continuation of `context` (the prompt).
    ///
    /// # Errors
    /// As [`Tokenizer::decode`].
    pub fn stream(&self, context: &[u32]) -> Result<TextStream<'_>> {
        // A few tokens say whether the next one follows a space, but they must not begin inside a
        // character: byte-fallback decoders then drop the whole run of bytes.
        let mut start = context.len().saturating_sub(4);
        while start > 0 && self.decode(&context[start..])?.starts_with(char::REPLACEMENT_CHARACTER)
        {
            start = start.saturating_sub(4);
        }
        let ids = context[start..].to_vec();
        Ok(TextStream { tokenizer: self, emitted: ids.len(), ids })
    }

    /// The beginning-of-sequence token.
    pub fn bos_id(&self) -> Option<u32> {
        self.bos_id
    }

    /// The end-of-sequence token, which separates documents.
    pub fn eos_id(&self) -> Option<u32> {
        self.eos_id
    }

    /// Whether a text starts with the beginning-of-sequence token.
    pub fn adds_bos(&self) -> bool {
        self.bos_id.is_some() && self.prefix.first().copied() == self.bos_id
    }

    /// Whether a text ends with the end-of-sequence token.
    pub fn adds_eos(&self) -> bool {
        self.eos_id.is_some() && self.suffix.last().copied() == self.eos_id
    }

    /// One more than the largest token id.
    pub fn vocab_len(&self) -> usize {
        self.inner.get_vocab(true).values().max().map_or(0, |id| *id as usize + 1)
    }

    /// Makes sure that every token has a row in the model's embedding table.
    ///
    /// # Errors
    /// A token id is `vocab_size` or above.
    pub fn check_vocab(&self, vocab_size: usize) -> Result<()> {
        let len = self.vocab_len();
        ensure!(
            len <= vocab_size,
            "{} has token ids up to {} and the model's vocab_size is {vocab_size}: use the \
             tokenizer that came with the model",
            self.path.display(),
            len - 1
        );
        Ok(())
    }
}

fn read_settings(path: &Path) -> Result<Value> {
    if !path.exists() {
        return Ok(Value::Null);
    }
    let text = whole_file::text(path, SETTINGS)
        .with_context(|| format!("cannot read {}: check its permissions", path.display()))?;
    serde_json::from_str(&text)
        .with_context(|| format!("{} is no JSON: download it again", path.display()))
}

/// The chat template of a model folder and the file that it stands in: `chat_template.jinja`, or
/// the default one of `tokenizer_config.json`.
fn chat_source(dir: &Path, settings: &Value) -> Result<Option<(String, String)>> {
    let path = dir.join("chat_template.jinja");
    if path.exists() {
        let source = whole_file::text(&path, SETTINGS)
            .with_context(|| format!("cannot read {}: download it again", path.display()))?;
        return Ok(Some((source, path.display().to_string())));
    }
    let named = settings["chat_template"].as_array().and_then(|all| {
        let default = all.iter().find(|one| one["name"] == "default").or(all.first());
        default.and_then(|one| one["template"].as_str())
    });
    let source = settings["chat_template"].as_str().or(named);
    let file = dir.join("tokenizer_config.json").display().to_string();
    Ok(source.map(|source| (source.to_owned(), file)))
}

/// The ids that the post-processor puts before and after a text.
fn template(inner: &Inner) -> tokenizers::Result<(Vec<u32>, Vec<u32>)> {
    let bare = inner.encode("a", false)?;
    let full = inner.encode("a", true)?;
    let (bare, full) = (bare.get_ids(), full.get_ids());
    let start = full.windows(bare.len().max(1)).position(|window| window == bare).unwrap_or(0);
    let end = (start + bare.len()).min(full.len());
    Ok((full[..start].to_vec(), full[end..].to_vec()))
}

/// Most tokens held back for a character to become whole: UTF-8 has at most 4 bytes.
const HELD_BACK: usize = 8;

/// Incremental decoding: the pieces joined are the text, and no piece ends inside a character.
#[derive(Debug)]
pub struct TextStream<'a> {
    tokenizer: &'a Tokenizer,
    /// The tokens of the last printed piece, then those held back.
    ids: Vec<u32>,
    /// How many of `ids` are printed.
    emitted: usize,
}

impl TextStream<'_> {
    /// Text that became certain with one more token; empty while a character is incomplete.
    ///
    /// # Errors
    /// As [`Tokenizer::decode`].
    pub fn push(&mut self, id: u32) -> Result<String> {
        self.ids.push(id);
        let piece = self.pending()?;
        if piece.ends_with(char::REPLACEMENT_CHARACTER) && self.ids.len() - self.emitted < HELD_BACK
        {
            return Ok(String::new());
        }
        // A piece without text (a special token) says nothing about what follows it.
        if !piece.is_empty() {
            self.ids.drain(..self.emitted);
        }
        self.emitted = self.ids.len();
        Ok(piece)
    }

    /// The text held back, when no more tokens follow.
    ///
    /// # Errors
    /// As [`Tokenizer::decode`].
    pub fn finish(self) -> Result<String> {
        self.pending()
    }

    fn pending(&self) -> Result<String> {
        // Decoders drop or keep a leading space by what precedes, so the piece is the difference
        // between the text with and without the new tokens.
        let before = self.tokenizer.decode(&self.ids[..self.emitted])?;
        let all = self.tokenizer.decode(&self.ids)?;
        match all.strip_prefix(&before) {
            Some(piece) => Ok(piece.to_owned()),
            // A byte that makes the bytes printed before invalid: they stay printed.
            None => self.tokenizer.decode(&self.ids[self.emitted..]),
        }
    }
}

#[cfg(test)]
#[path = "tokenizer_tests.rs"]
mod tests;
