//! Files to token ids: documents are tokenised in parallel by chunks, and added in their order.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use rayon::prelude::*;
use serde_json::Value;

use super::columns::{Columns, Seen, absent_of};
use super::files::{DataFile, Form, Piece};
use super::seam::Seam;
use super::store::Writer;
use super::{DataSpec, Example, Stream};
use crate::cli::report::Progress;
use crate::example::{self, Document};
use crate::tokenizer::Tokenizer;

/// Work that takes longer shows its progress.
const SHOWN_AFTER: Duration = Duration::from_secs(2);

/// Reads files into [`Builder`]s.
pub(super) struct Loader<'a> {
    tokenizer: &'a Tokenizer,
    columns: Option<&'a Columns>,
    seen: Seen,
    seam: Option<Option<Seam>>,
    meter: Meter,
    block: usize,
}

/// The parts of a file: what is in front of a split, and what is behind it.
type Parts<'a> = [&'a mut Builder; 2];

impl<'a> Loader<'a> {
    /// For files of `bytes` in all, in blocks of `block` bytes.
    pub(super) fn new(
        spec: &'a DataSpec,
        tokenizer: &'a Tokenizer,
        bytes: u64,
        block: usize,
    ) -> Self {
        let meter = Meter::new(bytes, spec.quiet);
        let (columns, seen) = (spec.columns.as_ref(), Seen::default());
        Self { tokenizer, columns, seen, seam: None, meter, block }
    }

    /// Characters of a plain text, or documents.
    ///
    /// # Errors
    /// The file is not usable.
    pub(super) fn count(&mut self, file: &DataFile) -> Result<u64> {
        let mut count = 0;
        file.read(true, &mut |piece, at| {
            count += match piece {
                Piece::Text(text) => text.chars().count() as u64,
                _ => 1,
            };
            self.meter.reach(at);
            Ok(())
        })?;
        self.meter.end(file.bytes);
        Ok(count)
    }

    /// Adds the first characters or documents of a file to the first builder and the others to
    /// the second; without a number, all to the first.
    ///
    /// # Errors
    /// The file is not usable, or a part of it is empty.
    pub(super) fn read(&mut self, file: &DataFile, first: Option<u64>, parts: Parts) -> Result<()> {
        let shown = file.path.display().to_string();
        let [a, b] = parts;
        let counts = match file.form {
            Form::Plain => self.text(file, first, [&mut *a, &mut *b])?,
            Form::Lines | Form::Array => self.documents(file, first, [&mut *a, &mut *b])?,
        };
        let least = if first.is_some() { counts[0].min(counts[1]) } else { counts[0] };
        ensure!(
            least > 0,
            "{shown} has too little text to be split: change --val-fraction or give --valid"
        );
        a.sources.push(shown.clone());
        if first.is_some() {
            b.sources.push(shown);
        }
        self.meter.end(file.bytes);
        Ok(())
    }

    /// Refuses columns that were nowhere.
    ///
    /// # Errors
    /// There are some.
    pub(super) fn finish(self, source: &str) -> Result<()> {
        if let Some(progress) = self.meter.shown {
            progress.finish();
        }
        self.columns.map_or(Ok(()), |columns| self.seen.check(columns, source))
    }

    /// A plain text; how many bytes each part has.
    fn text(&mut self, file: &DataFile, first: Option<u64>, parts: Parts) -> Result<[u64; 2]> {
        let [a, b] = parts;
        let tokenizer = self.tokenizer;
        if file.bytes > self.block as u64 && self.seam.is_none() {
            self.seam = Some(Seam::of(tokenizer));
        }
        let seam = self.seam.clone().flatten();
        let shown = file.path.display().to_string();
        let blocks = || Blocks::new(tokenizer, seam.as_ref(), self.block, &shown);
        let (mut head, mut tail) = (blocks(), blocks());
        let (mut left, mut split) = (first.unwrap_or(u64::MAX), false);
        file.read(false, &mut |piece, at| {
            let Piece::Text(text) = piece else { return Ok(()) };
            let share = self.meter.reach(at);
            let end = match (first, split) {
                (None, _) => text.len(),
                (_, true) => 0,
                (_, false) => {
                    let at = text.char_indices().nth(left as usize).map(|(at, _)| at);
                    left -= at.map_or(text.chars().count() as u64, |_| left);
                    at.unwrap_or(text.len())
                }
            };
            head.push(&text[..end], a, share)?;
            if end < text.len() && !split {
                split = true;
                head.finish(a, share)?;
            }
            tail.push(&text[end..], b, share)
        })?;
        if !split {
            head.finish(a, 1.0)?;
        }
        tail.finish(b, 1.0)?;
        Ok([head.bytes, tail.bytes])
    }

    /// Lines or items; how many each part has.
    fn documents(&mut self, file: &DataFile, first: Option<u64>, parts: Parts) -> Result<[u64; 2]> {
        let first = first.unwrap_or(u64::MAX);
        let most = self.block * rayon::current_num_threads();
        let mut chunk = Chunk::new(file, parts, first);
        let mut at_last = 0;
        file.read(false, &mut |piece, at| {
            let (raw, number) = match piece {
                Piece::Line(line, number) => (Raw::Line(line.to_owned()), number),
                Piece::Item(value, number) => (Raw::Item(value), number),
                Piece::Text(_) | Piece::Counted => return Ok(()),
            };
            chunk.bytes += raw.bytes();
            chunk.raw.push((raw, number));
            if chunk.bytes >= most {
                let share = self.meter.reach(at_last);
                self.add(&mut chunk, share)?;
            }
            at_last = at;
            Ok(())
        })?;
        self.add(&mut chunk, 1.0)?;
        Ok(chunk.counts)
    }

    /// Tokenises a chunk and adds it to its parts.
    fn add(&mut self, chunk: &mut Chunk, share: f64) -> Result<()> {
        let (tokenizer, columns) = (self.tokenizer, self.columns);
        let (shown, unit) = (chunk.shown.as_str(), chunk.unit);
        let raw = std::mem::take(&mut chunk.raw);
        chunk.bytes = 0;
        let encode = |(raw, number): (Raw, u64)| {
            encode(raw, &format!("{shown} {unit} {number}"), columns, tokenizer)
        };
        let encoded: Vec<Result<Encoded>> = raw.into_par_iter().map(encode).collect();
        for encoded in encoded {
            let encoded = encoded?;
            let part = usize::from(chunk.counts[0] >= chunk.first);
            chunk.counts[part] += 1;
            self.seen.add(&encoded.present, encoded.names);
            let builder = &mut *chunk.parts[part];
            match encoded.answers {
                None => {
                    builder.separate(tokenizer, share)?;
                    builder.ids.extend(&encoded.ids, share)?;
                }
                Some(answers) => {
                    builder.example(&encoded.ids, &answers, share)?;
                    builder.chats |= encoded.chat;
                }
            }
        }
        Ok(())
    }
}

/// Documents that are tokenised together.
struct Chunk<'a> {
    shown: String,
    unit: &'static str,
    raw: Vec<(Raw, u64)>,
    bytes: usize,
    parts: Parts<'a>,
    first: u64,
    counts: [u64; 2],
}

/// A document as it stands in the file.
enum Raw {
    Line(String),
    Item(Value),
}

impl<'a> Chunk<'a> {
    fn new(file: &DataFile, parts: Parts<'a>, first: u64) -> Self {
        let unit = if file.form == Form::Array { "item" } else { "line" };
        let shown = file.path.display().to_string();
        Self { shown, unit, raw: Vec::new(), bytes: 0, parts, first, counts: [0; 2] }
    }
}

impl Raw {
    /// About what it takes of memory.
    fn bytes(&self) -> usize {
        match self {
            Self::Line(line) => line.len(),
            Self::Item(value) => size(value),
        }
    }
}

fn size(value: &Value) -> usize {
    size_of::<Value>()
        + match value {
            Value::String(text) => text.len(),
            Value::Array(items) => items.iter().map(size).sum(),
            Value::Object(keys) => keys.iter().map(|(key, value)| key.len() + size(value)).sum(),
            _ => 0,
        }
}

/// A document as ids.
struct Encoded {
    ids: Vec<u32>,
    /// Which are answer; none of a text.
    answers: Option<Vec<bool>>,
    chat: bool,
    /// Which columns it has.
    present: Vec<bool>,
    /// Its names, where a column is absent.
    names: Vec<String>,
}

fn encode(
    raw: Raw,
    place: &str,
    columns: Option<&Columns>,
    tokenizer: &Tokenizer,
) -> Result<Encoded> {
    let mut value = match raw {
        Raw::Item(value) => value,
        Raw::Line(line) => serde_json::from_str(&line)
            .map_err(|error| anyhow::anyhow!("{place} is no JSON ({error}): correct it"))?,
    };
    let (mut present, mut names) = (Vec::new(), Vec::new());
    if let (Some(columns), Value::Object(keys)) = (columns, &mut value) {
        present = columns.present(keys);
        if present.contains(&false) {
            names = keys.keys().cloned().collect();
        }
        *keys = columns.apply(std::mem::take(keys));
    }
    let document = Document::read(&value, place).map_err(|error| {
        let absent = columns.and_then(|columns| absent_of(columns, &names, &present));
        absent.map_or(error, |absent| anyhow::anyhow!("{place} does not have {absent}"))
    })?;
    let chat = matches!(document, Document::Chat(_));
    let (ids, answers) = match &document {
        Document::Text(text) => {
            let ids = tokenizer.encode(text, true);
            (ids.with_context(|| format!("{place} cannot be tokenised"))?, None)
        }
        document => {
            let encoded = example::encode(document, tokenizer);
            let (ids, answers) = encoded.with_context(|| format!("{place} cannot be used"))?;
            // The first token of a sequence is given, and so never trained.
            ensure!(
                answers.iter().skip(1).any(|answer| *answer),
                "{place} has no token that is trained, since its answer has none: remove it, or \
                 write an answer"
            );
            (ids, Some(answers))
        }
    };
    Ok(Encoded { ids, answers, chat, present, names })
}

/// The blocks of a plain text.
struct Blocks<'a> {
    tokenizer: &'a Tokenizer,
    /// How blocks are joined; none where the text has to be tokenised as a whole.
    seam: Option<&'a Seam>,
    block: usize,
    shown: &'a str,
    pending: String,
    /// Bytes of it in which there is no place to cut.
    searched: usize,
    ready: Vec<String>,
    begun: bool,
    /// Bytes that were pushed.
    bytes: u64,
}

impl<'a> Blocks<'a> {
    fn new(tokenizer: &'a Tokenizer, seam: Option<&'a Seam>, block: usize, shown: &'a str) -> Self {
        let (pending, ready) = (String::new(), Vec::new());
        Self { tokenizer, seam, block, shown, pending, searched: 0, ready, begun: false, bytes: 0 }
    }

    fn push(&mut self, text: &str, builder: &mut Builder, share: f64) -> Result<()> {
        self.bytes += text.len() as u64;
        self.pending.push_str(text);
        if self.seam.is_none() || self.pending.len() < self.block {
            return Ok(());
        }
        let Some(at) = Seam::last_cut(&self.pending, self.searched) else {
            // A cut may lie at the very end, where its next character is not known yet.
            self.searched = self.pending.len() - 1;
            return Ok(());
        };
        let rest = self.pending.split_off(at);
        self.ready.push(std::mem::replace(&mut self.pending, rest));
        self.searched = 0;
        if self.ready.len() >= rayon::current_num_threads() {
            self.flush(false, builder, share)?;
        }
        Ok(())
    }

    fn finish(&mut self, builder: &mut Builder, share: f64) -> Result<()> {
        if self.bytes == 0 {
            return Ok(());
        }
        self.ready.push(std::mem::take(&mut self.pending));
        self.flush(true, builder, share)
    }

    /// Tokenises the blocks that are ready.
    fn flush(&mut self, end: bool, builder: &mut Builder, share: f64) -> Result<()> {
        let blocks = std::mem::take(&mut self.ready);
        let (count, tokenizer) = (blocks.len(), self.tokenizer);
        let encode = |(index, text): (usize, String)| {
            let edges = [index == 0 && !self.begun, end && index + 1 == count];
            match (self.seam, edges) {
                (Some(seam), edges) if edges != [true; 2] => seam.encode(tokenizer, &text, edges),
                _ => tokenizer.encode(&text, true),
            }
        };
        let encoded: Vec<Result<Vec<u32>>> =
            blocks.into_par_iter().enumerate().map(encode).collect();
        if !self.begun {
            builder.separate(tokenizer, share)?;
        }
        self.begun = true;
        for ids in encoded {
            let ids = ids.with_context(|| format!("{} cannot be tokenised", self.shown))?;
            builder.ids.extend(&ids, share)?;
        }
        Ok(())
    }
}

/// A stream while it is read.
pub(super) struct Builder {
    ids: Writer<u32>,
    answers: Writer<u8>,
    examples: Writer<Example>,
    sources: Vec<String>,
    texts: bool,
    chats: bool,
    train_on_prompt: bool,
}

impl Builder {
    /// One that keeps up to `memory_bytes` of each of its tables in memory.
    pub(super) fn new(memory_bytes: usize, train_on_prompt: bool) -> Self {
        Self {
            ids: Writer::new(memory_bytes),
            answers: Writer::new(memory_bytes),
            examples: Writer::new(memory_bytes),
            sources: Vec::new(),
            texts: false,
            chats: false,
            train_on_prompt,
        }
    }

    /// Whether no file was read into it.
    pub(super) fn is_empty(&self) -> bool {
        self.sources.is_empty()
    }

    /// Begins a text: a separator follows each document but the last, whose end may be no end,
    /// since a plain text is cut at the validation fraction.
    fn separate(&mut self, tokenizer: &Tokenizer, share: f64) -> Result<()> {
        self.texts = true;
        if let (Some(eos), Some(last)) = (tokenizer.eos_id(), self.ids.last())
            && last != eos
        {
            self.ids.extend(&[eos], share)?;
        }
        Ok(())
    }

    fn example(&mut self, ids: &[u32], answers: &[bool], share: f64) -> Result<()> {
        let trained = |answer: &bool| *answer || self.train_on_prompt;
        let prompt = answers.iter().position(trained).unwrap_or(answers.len());
        let answers: Vec<u8> = answers.iter().map(|answer| u8::from(trained(answer))).collect();
        let example = Example { start: self.ids.len(), len: ids.len(), prompt };
        self.examples.extend(&[example], share)?;
        self.ids.extend(ids, share)?;
        self.answers.extend(&answers, share)
    }

    /// The stream.
    ///
    /// # Errors
    /// There are texts and examples, or the ids cannot be mapped.
    pub(super) fn finish(self) -> Result<Stream> {
        let source = self.sources.join(", ");
        ensure!(
            self.examples.len() == 0 || !self.texts,
            "{source} has texts and examples with answers: give data of one kind"
        );
        Ok(Stream {
            ids: self.ids.finish()?,
            source,
            examples: self.examples.finish()?,
            answers: self.answers.finish()?,
            chats: self.chats,
            packing: false,
        })
    }
}

/// How far reading is, in bytes.
struct Meter {
    total: u64,
    /// Of the files that are done.
    before: u64,
    at: u64,
    started: Instant,
    shown: Option<Progress>,
    quiet: bool,
}

impl Meter {
    fn new(total: u64, quiet: bool) -> Self {
        Self { total, before: 0, at: 0, started: Instant::now(), shown: None, quiet }
    }

    /// `at` bytes of a file are read; the share of all that is.
    fn reach(&mut self, at: u64) -> f64 {
        let done = self.before + at;
        if self.shown.is_none() && self.started.elapsed() > SHOWN_AFTER {
            let progress = Progress::new("MiB read", self.total >> 20, self.quiet);
            self.shown = Some(progress.since(self.started));
        }
        if let Some(progress) = self.shown.as_mut().filter(|_| done >> 20 > self.at >> 20) {
            self.at = done;
            progress.reach(done >> 20, String::new);
        }
        done as f64 / self.total.max(1) as f64
    }

    /// A file of `bytes` is done.
    fn end(&mut self, bytes: u64) {
        self.before += bytes;
    }
}
