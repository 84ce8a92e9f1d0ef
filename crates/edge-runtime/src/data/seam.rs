//! Where a text may be cut so that its blocks, tokenised one by one, have the ids of the whole.
//!
//! That is between a line break and a letter, where no token of these tokenizers crosses: byte
//! pairs behind an expression that never joins the two ([`Pre`]), and SentencePiece's pairs without
//! such an expression, if no token of the vocabulary joins them. Expressions look at what follows,
//! and SentencePiece marks the start of a text: so each block is tokenised between a line in front
//! of it and a letter behind it, whose ids are taken off again.

use anyhow::{Result, ensure};
use serde_json::{Value, json};
use tokenizers::models::ModelWrapper;

use crate::gguf::pre::Pre;
use crate::tokenizer::Tokenizer;

/// In front of a block: a whole line.
const BEFORE: &str = "a\n";

/// Behind a block: what begins another line.
const AFTER: &str = "a";

/// How a tokenizer sees what is put around a block.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Seam {
    before: Vec<u32>,
    after: Vec<u32>,
}

impl Seam {
    /// `None` where the tokenizer is of another kind, and texts have to be tokenised as a whole.
    pub(super) fn of(tokenizer: &Tokenizer) -> Option<Self> {
        if !never_joins(tokenizer) {
            return None;
        }
        let encode = |text: &str| tokenizer.encode(text, false).ok();
        let before = encode(BEFORE)?;
        let after = encode(&format!("{BEFORE}{AFTER}"))?.strip_prefix(&before[..])?.to_vec();
        (!after.is_empty()).then_some(Self { before, after })
    }

    /// The end of the last line behind `from` that a letter follows.
    pub(super) fn last_cut(text: &str, from: usize) -> Option<usize> {
        let bytes = &text.as_bytes()[from..];
        let breaks = bytes.iter().enumerate().rev().filter(|(_, byte)| **byte == b'\n');
        let ends = breaks.map(|(index, _)| from + index + 1);
        ends.into_iter().find(|end| text[*end..].starts_with(char::is_alphabetic))
    }

    /// Ids of a block; `edges`: whether it is the first and whether it is the last.
    ///
    /// # Errors
    /// The tokenizer fails.
    pub(super) fn encode(
        &self,
        tokenizer: &Tokenizer,
        text: &str,
        [first, last]: [bool; 2],
    ) -> Result<Vec<u32>> {
        let (start, end) = (if first { "" } else { BEFORE }, if last { "" } else { AFTER });
        let ids = tokenizer.encode(&format!("{start}{text}{end}"), false)?;
        let (prefix, suffix) = tokenizer.around();
        let (before, after) = (&self.before[..], &self.after[..]);
        let whole = if first { Some(&ids[..]) } else { ids.strip_prefix(before) };
        let whole = whole.and_then(|ids| if last { Some(ids) } else { ids.strip_suffix(after) });
        ensure!(
            whole.is_some(),
            "the tokenizer joins lines although its vocabulary does not say so: cut the text into \
             documents, as JSONL with a field \"text\""
        );
        let before = if first { prefix } else { &[][..] };
        let after = if last { suffix } else { &[][..] };
        Ok([before, whole.unwrap_or_default(), after].concat())
    }
}

/// Whether no token has a line break with a letter behind it, whatever stands around.
fn never_joins(tokenizer: &Tokenizer) -> bool {
    let inner = tokenizer.inner();
    let ModelWrapper::BPE(model) = inner.get_model() else { return false };
    let marked = |mark: &Option<String>| mark.as_ref().is_some_and(|mark| !mark.is_empty());
    let plain = model.dropout.is_none()
        && !marked(&model.continuing_subword_prefix)
        && !marked(&model.end_of_word_suffix)
        && (!model.fuse_unk || model.byte_fallback);
    let added = inner.get_added_vocabulary().get_added_tokens_decoder();
    let apart = added.values().all(|token| {
        !token.lstrip && !token.rstrip && !token.single_word && !token.content.contains('\n')
    });
    if !plain || !apart || !keeps_lines(&json!(inner.get_normalizer())) {
        return false;
    }
    let cut = json!(inner.get_pre_tokenizer());
    let file = json!({"pre_tokenizer": cut, "model": {"ignore_merges": model.ignore_merges}});
    match cut {
        Value::Null => {
            let vocabulary = inner.get_vocab(true);
            !vocabulary.keys().any(|token| joins(token))
        }
        _ => Pre::of(&file).is_some(),
    }
}

/// Whether a token of a vocabulary without an expression crosses the end of a line.
fn joins(token: &str) -> bool {
    // A byte that has no other token; tokens of bytes are merged nowhere.
    let byte = token.len() > "<0x0A>".len() && token.contains("<0x0A>");
    byte || token.split('\n').skip(1).any(|rest| rest.starts_with(char::is_alphabetic))
}

/// Whether a normalizer changes nothing across the end of a line.
fn keeps_lines(normalizer: &Value) -> bool {
    match normalizer["type"].as_str() {
        None => normalizer.is_null(),
        Some("Sequence") => normalizer["normalizers"]
            .as_array()
            .is_some_and(|normalizers| normalizers.iter().all(keeps_lines)),
        // Spaces to SentencePiece's marks, and one more in front.
        Some("Replace") => normalizer["pattern"] == json!({"String": " "}),
        Some("Prepend") => true,
        // Marks combine with letters, never with a line break.
        Some("NFC") => true,
        Some(_) => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::data::{DataSpec, Dataset};
    use crate::testing::{byte_tokenizer, shared};

    #[test]
    fn cuts_lie_between_a_line_and_a_letter() {
        let text = "one\n two\n\n3\n\u{e9}four\r\nfive\n";
        let cut = |text: &str, from| Seam::last_cut(text, from);
        let five = text.find("five").unwrap();
        assert_eq!(cut(text, 0), Some(five));
        assert_eq!(cut(&text[..five], 0), Some(text.find('\u{e9}').unwrap()));
        assert_eq!(cut(text, five), None);
        assert_eq!(cut("no line", 0), None);
    }

    #[test]
    fn vocabularies_that_join_lines_are_not_cut() {
        for (token, joined) in [
            ("\n", false),
            ("a\n", false),
            ("\n\n", false),
            ("\nb", true),
            ("a\n\nb", true),
            ("<0x0A>", false),
            ("<0x0A>b", true),
        ] {
            assert_eq!(joins(token), joined, "{token:?}");
        }
        assert!(keeps_lines(&Value::Null) && keeps_lines(&json!({"type": "NFC"})));
        assert!(!keeps_lines(&json!({"type": "Strip"})));
        let (dir, tokenizer) = byte_tokenizer(None);
        assert!(Seam::of(&tokenizer.unwrap()).is_some());
        let path = dir.path().join("tokenizer.json");
        let text = std::fs::read_to_string(&path).unwrap();
        for (from, to) in [
            ("\"normalizer\":null", "\"normalizer\":{\"type\":\"Lowercase\"}"),
            ("\"pre_tokenizer\":null", "\"pre_tokenizer\":{\"type\":\"Whitespace\"}"),
            ("\"lstrip\":false", "\"lstrip\":true"),
        ] {
            assert!(text.contains(from), "{from}");
            std::fs::write(&path, text.replace(from, to)).unwrap();
            assert_eq!(Seam::of(&Tokenizer::load(dir.path()).unwrap()), None, "{to}");
        }
    }

    /// Real tokenizers on a real text, and on what is hard about line ends.
    #[test]
    fn blocks_have_the_ids_of_the_whole() {
        let Some(shared) = shared() else { return };
        let assets = shared.join("assets");
        let play = assets.join("datasets/tinyshakespeare/input.txt");
        let play = std::fs::read_to_string(play).unwrap();
        let hard: String = [
            "\u{e9}t\u{e9}.\n\nabc\n",
            "x  \n \n\n\tif (a) {\n}\r\n\r\nlet's\n's it\n",
            "42\nsix</s>\nseven <|endoftext|>\nA\n",
            "\u{4e2d}\u{6587}\n\u{4e2d}\u{1f600}\na\n",
            " \u{a0}\nb.\n...\nc\n\u{301}d!\ne\n",
        ]
        .concat();
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a.txt");
        std::fs::write(&path, hard.repeat(40) + &play[..300_000]).unwrap();
        let spec = DataSpec { data: vec![path], val_fraction: 0.3, ..DataSpec::default() };
        for name in ["gpt2", "llama2", "llama3", "qwen2.5", "smollm2"] {
            let tokenizer = Tokenizer::load(&assets.join("tokenizers").join(name)).unwrap();
            assert!(Seam::of(&tokenizer).is_some(), "{name}");
            let whole = Dataset::load_by(&spec, &tokenizer, [usize::MAX; 2]).unwrap();
            for block in [40, 5000] {
                let cut = Dataset::load_by(&spec, &tokenizer, [1 << 12, block]).unwrap();
                assert!(cut.train == whole.train && cut.valid == whole.valid, "{name} {block}");
            }
        }
    }
}
