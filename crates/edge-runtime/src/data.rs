//! Texts and examples to streams of token ids: which files, which part of them, which documents.
//!
//! A plain text is one document. A JSONL file has one document a line. Documents follow each other
//! in one stream, each with the special tokens that the tokenizer puts around a text and an
//! end-of-sequence token between them; [`crate::batch`] cuts streams into windows.
//!
//! An example is a prompt and its answer, or a conversation with several, a sequence of its own of
//! which the answers alone are trained.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail, ensure};
use serde_json::Value;

use crate::example::{self, Document};
use crate::tokenizer::Tokenizer;

/// What to read.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct DataSpec {
    /// Files, or directories with `train.*`, `valid.*` and `test.*`; read in this order.
    pub data: Vec<PathBuf>,
    /// A validation file or directory, instead of a part of `data`.
    pub valid: Option<PathBuf>,
    /// Share of each file of `data` to validate on: its last characters (plain text) or documents
    /// (JSONL). 0: none. Unused where validation data are given.
    pub val_fraction: f64,
    /// The same as a number of documents, instead of a share.
    pub val_items: Option<usize>,
    /// Trains on all tokens of examples instead of their answers; validation stays with answers.
    pub train_on_prompt: bool,
}

/// Token ids of documents, one after the other.
#[derive(Clone, Debug, PartialEq)]
pub struct Stream {
    /// The ids.
    pub ids: Vec<u32>,
    /// The files, for messages.
    pub source: String,
    /// Where each example lies among the ids; empty where they are text.
    pub examples: Vec<Example>,
    /// With examples, of each id whether it is answer, and so trained; else empty.
    pub answers: Vec<bool>,
    /// Whether there are conversations among the examples.
    pub chats: bool,
}

/// An example in a stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Example {
    /// Its first id.
    pub start: usize,
    /// Ids of prompt and answer.
    pub len: usize,
    /// Ids of the prompt: in front of the first answer.
    pub prompt: usize,
}

impl Stream {
    /// A stream of text.
    pub fn text(ids: Vec<u32>, source: String) -> Self {
        Self { ids, source, examples: Vec::new(), answers: Vec::new(), chats: false }
    }

    /// The same ids as one text.
    pub fn into_text(self) -> Self {
        Self::text(self.ids, self.source)
    }
}

/// The streams of a run.
#[derive(Clone, Debug)]
pub struct Dataset {
    /// To train on.
    pub train: Stream,
    /// To validate on.
    pub valid: Option<Stream>,
}

impl Dataset {
    /// Reads and tokenises.
    ///
    /// # Errors
    /// A file is absent, empty, not UTF-8 (with the byte) or not of a known form (with the line);
    /// validation data are given twice; a part has no text.
    pub fn load(spec: &DataSpec, tokenizer: &Tokenizer) -> Result<Self> {
        ensure!(!spec.data.is_empty(), "no data are given: give --data a file or a directory");
        ensure!(
            (0.0..1.0).contains(&spec.val_fraction),
            "the validation fraction is {} instead of a share in 0..1: correct --val-fraction",
            spec.val_fraction
        );
        let mut train = Builder { train_on_prompt: spec.train_on_prompt, ..Builder::default() };
        let mut valid = Builder::default();
        for path in &spec.data {
            let held_out = if path.is_dir() { part_file(path, "valid")? } else { None };
            let fraction = match (&held_out, &spec.valid) {
                (None, None) => spec.val_fraction,
                _ => 0.0,
            };
            let items = spec.val_items.filter(|_| held_out.is_none() && spec.valid.is_none());
            let documents = Documents::read(&train_file(path)?)?;
            let (first, last) = match items {
                Some(items) => documents.split_items(items)?,
                None => documents.split(fraction),
            };
            train.push(&first, tokenizer)?;
            if let Some(last) = last {
                valid.push(&last, tokenizer)?;
            }
            if let (Some(file), None) = (&held_out, &spec.valid) {
                valid.push(&Documents::read(file)?, tokenizer)?;
            }
        }
        if let Some(path) = &spec.valid {
            valid.push(&Documents::read(&eval_file(path, &["valid", "test"])?)?, tokenizer)?;
        }
        let valid = if valid.sources.is_empty() { None } else { Some(valid.finish()?) };
        Ok(Self { train: train.finish()?, valid })
    }
}

/// Reads what `eval --data` names: whole files, and of directories `test.*` or else `valid.*`.
///
/// # Errors
/// As [`Dataset::load`].
pub fn load_eval(data: &[PathBuf], tokenizer: &Tokenizer) -> Result<Stream> {
    ensure!(!data.is_empty(), "no data are given: give --data a file or a directory");
    let mut stream = Builder::default();
    for path in data {
        stream.push(&Documents::read(&eval_file(path, &["test", "valid"])?)?, tokenizer)?;
    }
    stream.finish()
}

const ENDINGS: [&str; 4] = ["jsonl", "json", "txt", "md"];

/// `dir/part.ENDING`; two of them are an error, because which one is meant cannot be known.
fn part_file(dir: &Path, part: &str) -> Result<Option<PathBuf>> {
    let files = ENDINGS.map(|ending| dir.join(format!("{part}.{ending}")));
    let mut files = files.into_iter().filter(|path| path.exists());
    let found = files.next();
    if let (Some(one), Some(two)) = (&found, files.next()) {
        bail!("there are both {} and {}: remove one", one.display(), two.display());
    }
    Ok(found)
}

fn train_file(path: &Path) -> Result<PathBuf> {
    eval_file(path, &["train"])
}

fn eval_file(path: &Path, parts: &[&str]) -> Result<PathBuf> {
    if !path.is_dir() {
        return Ok(path.to_owned());
    }
    for part in parts {
        if let Some(file) = part_file(path, part)? {
            return Ok(file);
        }
    }
    bail!(
        "{} has no {}.jsonl or {0}.txt: add one, or name a file",
        path.display(),
        parts.join(".jsonl, ")
    )
}

/// The documents of a file.
struct Documents {
    path: PathBuf,
    texts: Vec<Document>,
    /// Where each lies in the file, for messages: a line or an item; none for a plain text.
    places: Vec<String>,
    /// One plain text, which may be cut anywhere.
    plain: bool,
}

impl Documents {
    fn read(path: &Path) -> Result<Self> {
        let shown = path.display();
        let ending = path.extension().and_then(|ending| ending.to_str()).unwrap_or_default();
        ensure!(
            ENDINGS.contains(&ending),
            "{shown} ends in none of .txt, .md, .jsonl, .json: rename it after its contents"
        );
        let bytes = std::fs::read(path)
            .with_context(|| format!("cannot read {shown}: correct the path of the data"))?;
        let text = String::from_utf8(bytes).map_err(|error| {
            let at = error.utf8_error().valid_up_to();
            let line = 1 + error.as_bytes()[..at].iter().filter(|&&byte| byte == b'\n').count();
            anyhow::anyhow!("{shown} is not UTF-8 at byte {at}, line {line}: convert it to UTF-8")
        })?;
        // Windows editors put a byte-order mark first, which no model has seen in training.
        let text = text.strip_prefix('\u{FEFF}').unwrap_or(&text);
        ensure!(!text.trim().is_empty(), "{shown} is empty: name a file with text");
        let plain = matches!(ending, "txt" | "md");
        let (texts, places) = match (plain, text.trim_start().starts_with('[')) {
            (true, _) => (vec![Document::Text(text.to_owned())], vec![String::new()]),
            (false, true) => json_array(text, path)?.into_iter().unzip(),
            (false, false) => json_lines(text, path)?.into_iter().unzip(),
        };
        Ok(Self { path: path.to_owned(), texts, places, plain })
    }

    /// The first part and, where `fraction` is above 0, the last.
    fn split(mut self, fraction: f64) -> (Self, Option<Self>) {
        if fraction <= 0.0 {
            return (self, None);
        }
        let cut = |len: usize| (len as f64 * (1.0 - fraction)) as usize;
        let last = match (&mut self.texts[..], self.plain) {
            ([Document::Text(text)], true) => {
                let chars = cut(text.chars().count());
                let at = text.char_indices().nth(chars).map_or(text.len(), |(at, _)| at);
                vec![Document::Text(text.split_off(at))]
            }
            (texts, _) => {
                let at = cut(texts.len());
                self.texts.split_off(at)
            }
        };
        self.with(last)
    }

    /// All but the last `items` documents, and these.
    fn split_items(mut self, items: usize) -> Result<(Self, Option<Self>)> {
        let (shown, count) = (self.path.display(), self.texts.len());
        ensure!(!self.plain, "{shown} is one text: give --val-fraction instead of --val-items");
        ensure!(
            items < count,
            "{shown} has {count} items and --val-items is {items}: leave some to train on"
        );
        let last = self.texts.split_off(count - items);
        Ok(self.with(last))
    }

    /// These and documents that were split off.
    fn with(mut self, texts: Vec<Document>) -> (Self, Option<Self>) {
        let places = match self.plain {
            true => self.places.clone(),
            false => self.places.split_off(self.texts.len()),
        };
        let last = Self { path: self.path.clone(), texts, places, plain: self.plain };
        (self, Some(last))
    }
}

fn json_lines(text: &str, path: &Path) -> Result<Vec<(Document, String)>> {
    let mut texts = Vec::new();
    for (index, line) in text.lines().enumerate().filter(|(_, line)| !line.trim().is_empty()) {
        let place = format!("{} line {}", path.display(), index + 1);
        let value = serde_json::from_str(line)
            .map_err(|error| anyhow::anyhow!("{place} is no JSON ({error}): correct it"))?;
        texts.push((Document::read(&value, &place)?, format!("line {}", index + 1)));
    }
    Ok(texts)
}

fn json_array(text: &str, path: &Path) -> Result<Vec<(Document, String)>> {
    let shown = path.display();
    let items: Vec<Value> = serde_json::from_str(text)
        .map_err(|error| anyhow::anyhow!("{shown} is no JSON ({error}): correct it"))?;
    ensure!(!items.is_empty(), "{shown} is empty: name a file with text");
    let items = items.iter().enumerate();
    items
        .map(|(index, item)| {
            let place = format!("item {}", index + 1);
            Ok((Document::read(item, &format!("{shown} {place}"))?, place))
        })
        .collect()
}

#[derive(Default)]
struct Builder {
    ids: Vec<u32>,
    sources: Vec<String>,
    examples: Vec<Example>,
    answers: Vec<bool>,
    texts: bool,
    chats: bool,
    train_on_prompt: bool,
}

impl Builder {
    fn push(&mut self, documents: &Documents, tokenizer: &Tokenizer) -> Result<()> {
        let shown = documents.path.display().to_string();
        ensure!(
            documents.texts.iter().any(|text| !text.is_empty()),
            "{shown} has too little text to be split: change --val-fraction or give --valid"
        );
        for (document, place) in documents.texts.iter().zip(&documents.places) {
            let Document::Text(text) = document else {
                self.example(document, tokenizer)
                    .with_context(|| format!("{shown} {place} cannot be used"))?;
                continue;
            };
            self.texts = true;
            // A separator follows each document but the last, whose end may be no end: a plain
            // text is cut at the validation fraction.
            if let (Some(eos), false) = (tokenizer.eos_id(), self.ids.is_empty())
                && self.ids.last() != Some(&eos)
            {
                self.ids.push(eos);
            }
            let ids = tokenizer.encode(text, true);
            self.ids.extend(ids.with_context(|| format!("{shown} cannot be tokenised"))?);
        }
        self.sources.push(shown);
        Ok(())
    }

    fn example(&mut self, document: &Document, tokenizer: &Tokenizer) -> Result<()> {
        let (ids, mut answers) = example::encode(document, tokenizer)?;
        if self.train_on_prompt {
            answers.fill(true);
        }
        let prompt = answers.iter().position(|answer| *answer).unwrap_or(answers.len());
        self.examples.push(Example { start: self.ids.len(), len: ids.len(), prompt });
        self.ids.extend(ids);
        self.answers.extend(answers);
        self.chats |= matches!(document, Document::Chat(_));
        Ok(())
    }

    fn finish(self) -> Result<Stream> {
        let source = self.sources.join(", ");
        ensure!(
            self.examples.is_empty() || !self.texts,
            "{source} has texts and examples with answers: give data of one kind"
        );
        let Self { ids, examples, answers, chats, .. } = self;
        Ok(Stream { ids, source, examples, answers, chats })
    }
}

#[cfg(test)]
mod tests {
    use tempfile::{TempDir, tempdir};

    use super::*;
    use crate::testing::{byte_tokenizer, message, shared};

    /// Bytes are tokens `3 + byte`, `<s>` is 1 and starts each text, `</s>` is 2.
    fn tokenizer() -> Tokenizer {
        let settings = serde_json::json!({"bos_token": "<s>", "eos_token": "</s>"});
        byte_tokenizer(Some(settings)).1.unwrap()
    }

    fn folder(files: &[(&str, &[u8])]) -> TempDir {
        let dir = tempdir().unwrap();
        for (name, bytes) in files {
            std::fs::write(dir.path().join(name), bytes).unwrap();
        }
        dir
    }

    fn load(dir: &TempDir, name: &str, val_fraction: f64) -> Result<Dataset> {
        let data = vec![dir.path().join(name)];
        Dataset::load(&DataSpec { data, val_fraction, ..DataSpec::default() }, &tokenizer())
    }

    /// `<` for the start, `>` for the end of a sequence.
    fn shown(ids: &[u32]) -> String {
        let bytes = ids.iter().map(|id| match id {
            1 => b'<',
            2 => b'>',
            id => (id - 3) as u8,
        });
        String::from_utf8(bytes.collect()).unwrap()
    }

    #[test]
    fn a_plain_text_is_cut_by_characters() {
        let dir = folder(&[("a.txt", "éé456789AB".as_bytes())]);
        let dataset = load(&dir, "a.txt", 0.25).unwrap();
        assert_eq!(shown(&dataset.train.ids), "<éé45678");
        assert_eq!(shown(&dataset.valid.unwrap().ids), "<9AB");
        assert!(load(&dir, "a.txt", 0.0).unwrap().valid.is_none());
        let tiny = folder(&[("a.md", b"x")]);
        assert!(message(load(&tiny, "a.md", 0.5)).contains("--val-fraction"));
        assert!(message(load(&tiny, "a.md", 1.0)).contains("--val-fraction"));
        let eval = load_eval(&[dir.path().join("a.txt")], &tokenizer()).unwrap();
        assert_eq!(shown(&eval.ids), "<éé456789AB");
    }

    /// The count that came with mini12's published losses: all tokens of the text but the first.
    #[test]
    fn the_last_tenth_is_what_others_take() {
        let Some(shared) = shared() else { return };
        let assets = shared.join("assets");
        let tokenizer = Tokenizer::load(&assets.join("models/mini12")).unwrap();
        let data = vec![assets.join("datasets/tinyshakespeare/input.txt")];
        let spec = DataSpec { data, val_fraction: 0.1, ..DataSpec::default() };
        let valid = Dataset::load(&spec, &tokenizer).unwrap().valid.unwrap();
        assert_eq!(valid.ids.len() - 1, 47247);
        let batches = valid.eval_batches(256, 8, None).unwrap();
        let predicted: usize = batches.map(|batch| batch.trained_tokens).sum();
        // The first token of each window is given.
        assert_eq!(predicted, 47248 - 47248usize.div_ceil(256));
    }

    #[test]
    fn documents_are_joined_by_separators() {
        let lines = b"{\"text\": \"ab\", \"id\": 1}\n\n{\"text\": \"c\"}\r\n{\"text\": \"d\"}\n";
        let array = b"\n[{\"text\": \"ab\"}, {\"text\": \"c\"}, {\"text\": \"d\"}]";
        let dir = folder(&[("a.jsonl", lines), ("a.json", array)]);
        for name in ["a.jsonl", "a.json"] {
            let dataset = load(&dir, name, 0.34).unwrap();
            assert_eq!(shown(&dataset.train.ids), "<ab");
            assert_eq!(shown(&dataset.valid.unwrap().ids), "<c><d");
        }
        let data = vec![dir.path().join("a.jsonl"), dir.path().join("a.json")];
        let spec = DataSpec { data, ..DataSpec::default() };
        let both = Dataset::load(&spec, &tokenizer()).unwrap();
        assert_eq!(shown(&both.train.ids), "<ab><c><d><ab><c><d");
    }

    #[test]
    fn examples_are_sequences_of_their_own() {
        let lines = b"{\"prompt\": \"ab\", \"completion\": \"c\"}\n\
            {\"prompt\": \"d\", \"completion\": \"ef\"}\n\
            {\"prompt\": \"g\", \"completion\": \"h\"}";
        let dir = folder(&[("a.jsonl", lines), ("b.txt", b"text"), ("c.jsonl", lines)]);
        let data = vec![dir.path().join("a.jsonl")];
        let spec = DataSpec { data, val_items: Some(1), ..DataSpec::default() };
        let dataset = Dataset::load(&spec, &tokenizer()).unwrap();
        assert_eq!(shown(&dataset.train.ids), "<abc><def>");
        let example = |start, len, prompt| Example { start, len, prompt };
        assert_eq!(dataset.train.examples, [example(0, 5, 3), example(5, 5, 2)]);
        let valid = dataset.valid.unwrap();
        assert_eq!((shown(&valid.ids).as_str(), valid.examples.len()), ("<gh>", 1));
        assert_eq!(dataset.train.answers[..5], [false, false, false, true, true]);
        let whole = DataSpec { train_on_prompt: true, ..spec.clone() };
        let whole = Dataset::load(&whole, &tokenizer()).unwrap();
        assert!(whole.train.answers.iter().all(|trained| *trained));
        assert_eq!(whole.train.examples[1], example(5, 5, 0));
        assert_eq!(whole.valid.unwrap().answers, [false, false, true, true]);
        let load = |spec: &DataSpec| message(Dataset::load(spec, &tokenizer()));
        assert!(load(&DataSpec { val_items: Some(3), ..spec.clone() }).contains("3 items"));
        let text = DataSpec { data: vec![dir.path().join("b.txt")], ..spec.clone() };
        assert!(load(&text).contains("--val-fraction instead"));
        let data = vec![dir.path().join("b.txt"), dir.path().join("c.jsonl")];
        assert!(load(&DataSpec { data, ..DataSpec::default() }).contains("one kind"));
    }

    #[test]
    fn a_directory_has_its_parts() {
        let dir = folder(&[
            ("train.txt", b"train"),
            ("valid.jsonl", b"{\"text\": \"valid\"}"),
            ("test.txt", b"\xEF\xBB\xBFtest"),
        ]);
        let dataset = load(&dir, "", 0.5).unwrap();
        assert_eq!(shown(&dataset.train.ids), "<train");
        assert_eq!(shown(&dataset.valid.unwrap().ids), "<valid");
        let eval = load_eval(&[dir.path().to_owned()], &tokenizer()).unwrap();
        assert_eq!(shown(&eval.ids), "<test");
        let data = vec![dir.path().to_owned()];
        let valid = Some(dir.path().join("test.txt"));
        let spec = DataSpec { data, valid, val_fraction: 0.5, ..DataSpec::default() };
        let dataset = Dataset::load(&spec, &tokenizer()).unwrap();
        assert_eq!(shown(&dataset.train.ids), "<train");
        assert_eq!(shown(&dataset.valid.unwrap().ids), "<test");
        std::fs::write(dir.path().join("train.jsonl"), "").unwrap();
        assert!(message(load(&dir, "", 0.0)).contains("both"));
        let empty = tempdir().unwrap();
        assert!(message(load(&empty, "", 0.0)).contains("train.jsonl"));
        assert!(message(load_eval(&[empty.path().to_owned()], &tokenizer())).contains("valid"));
    }

    #[test]
    fn bad_files_are_refused_with_the_place() {
        for (name, bytes, expected) in [
            ("a.txt", &b" \n"[..], "is empty"),
            ("a.jsonl", b"", "is empty"),
            ("a.json", b"[]", "is empty"),
            ("a.txt", b"abc\xFFdef", "not UTF-8 at byte 3, line 1"),
            ("a.jsonl", b"{\"text\": \"a\"}\n\xFF", "line 2: convert"),
            ("a.jsonl", b"{\"prompt\": \"a\", \"completion\": 1}", "of "),
            (
                "a.json",
                b"[{\"messages\": [{\"role\": \"bard\", \"content\": \"\"}]}]",
                "item 1 message 1 has the unknown role \"bard\"",
            ),
            ("a.jsonl", b"{\"text\": \"a\"}\n{\"text\": ", "line 2 is no JSON"),
            (
                "a.jsonl",
                b"{\"text\": \"a\"}\n\n{\"q\": 1, \"z\": 2}",
                "line 3 has no \"text\" but [q, z]",
            ),
            ("a.jsonl", b"{\"text\": 5}", "line 1 is no string"),
            ("a.jsonl", b"{\"text\": \"\"}", "line 1 has an empty"),
            ("a.jsonl", b"3", "line 1 is no JSON object"),
            ("a.json", b"[{\"text\": \"a\"}, {}]", "item 2 has no \"text\""),
            ("a.json", b"[{\"text\": \"a\"}", "is no JSON"),
            ("a.csv", b"text", ".jsonl"),
        ] {
            let dir = folder(&[(name, bytes)]);
            let error = message(load(&dir, name, 0.0));
            assert!(error.contains(expected) && error.contains(name), "{error}");
        }
        let dir = tempdir().unwrap();
        assert!(message(load(&dir, "absent.txt", 0.0)).contains("absent.txt"));
    }
}
