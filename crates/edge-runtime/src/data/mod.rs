//! Texts and examples to streams of token ids: which files, which part of them, which documents.
//!
//! A plain text is one document. A JSONL file has one document a line. Documents follow each other
//! in one stream, each with the special tokens that the tokenizer puts around a text and an
//! end-of-sequence token between them; [`crate::batch`] cuts streams into windows.
//!
//! Files are read in pieces and many ids lie in a temporary file that is mapped (`store.rs`), so
//! that the size of the data is not bounded by memory.
//!
//! An example is a prompt and its answer, or a conversation with several, a sequence of its own of
//! which the answers alone are trained.

mod build;
pub(crate) mod columns;
mod files;
mod seam;
mod store;

use std::path::{Path, PathBuf};

use anyhow::{Result, ensure};
use bytemuck::{Pod, Zeroable};

use self::build::{Builder, Loader};
pub use self::columns::Columns;
use self::files::{DataFile, Form, named_file, part_file};
pub use self::store::Table;
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
    /// Which columns of JSON data stand for which names of ours.
    pub columns: Option<Columns>,
    /// No progress on stderr; without, that of what takes over two seconds.
    pub quiet: bool,
}

/// Bytes of a table of token ids that are kept in memory; of more, all lie in a file.
const MEMORY_BYTES: usize = 64 << 20;

/// Bytes of text that are tokenised as one piece: the blocks of a plain text, and what of lines a
/// chunk has for each thread.
const BLOCK: usize = 1 << 18;

/// Token ids of documents, one after the other.
#[derive(Clone, Debug, PartialEq)]
pub struct Stream {
    /// The ids.
    pub ids: Table<u32>,
    /// The files, for messages.
    pub source: String,
    /// Where each example lies among the ids; empty where they are text.
    pub examples: Table<Example>,
    /// With examples, 1 for each id that is answer, and so trained, else 0; without, empty.
    pub answers: Table<u8>,
    /// Whether there are conversations among the examples.
    pub chats: bool,
    /// Whether examples are trained several to a sequence ([`crate::packing`]).
    pub packing: bool,
}

/// An example in a stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Pod, Zeroable)]
#[repr(C)]
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
        let (examples, answers) = (Table::default(), Table::default());
        Self { ids: ids.into(), source, examples, answers, chats: false, packing: false }
    }

    /// The same ids as one text.
    pub fn into_text(self) -> Self {
        let (examples, answers) = (Table::default(), Table::default());
        Self { examples, answers, chats: false, packing: false, ..self }
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
    /// The same data, trained with packing or without. Copies share their tables.
    #[must_use]
    pub fn with_packing(&self, packing: bool) -> Self {
        Self { train: Stream { packing, ..self.train.clone() }, valid: self.valid.clone() }
    }

    /// Reads and tokenises.
    ///
    /// # Errors
    /// A file is absent, empty, not UTF-8 (with the byte) or not of a known form (with the line);
    /// validation data are given twice; a part has no text.
    pub fn load(spec: &DataSpec, tokenizer: &Tokenizer) -> Result<Self> {
        Self::load_by(spec, tokenizer, [MEMORY_BYTES, BLOCK])
    }

    /// [`Dataset::load`] with up to `memory_bytes` of a table in memory, and texts in blocks of
    /// `block` bytes.
    fn load_by(
        spec: &DataSpec,
        tokenizer: &Tokenizer,
        [memory_bytes, block]: [usize; 2],
    ) -> Result<Self> {
        ensure!(!spec.data.is_empty(), "no data are given: give --data a file or a directory");
        ensure!(
            (0.0..1.0).contains(&spec.val_fraction),
            "the validation fraction is {} instead of a share in 0..1: correct --val-fraction",
            spec.val_fraction
        );
        let sources = spec.data.iter().map(|path| Source::of(path, spec));
        let sources = sources.collect::<Result<Vec<Source>>>()?;
        let valid_file = match &spec.valid {
            Some(path) => Some(DataFile::open(&named_file(path, &["valid", "test"])?)?),
            None => None,
        };
        let bytes = sources.iter().map(Source::bytes).sum::<u64>()
            + valid_file.as_ref().map_or(0, |file| file.bytes);
        let mut loader = Loader::new(spec, tokenizer, bytes, block);
        let mut train = Builder::new(memory_bytes, spec.train_on_prompt);
        let mut valid = Builder::new(memory_bytes, false);
        for Source { file, held_out, split } in &sources {
            let first = match split {
                Split::None => None,
                split => Some(split.first(file, loader.count(file)?)?),
            };
            loader.read(file, first, [&mut train, &mut valid])?;
            if let Some(file) = held_out {
                loader.read(file, None, [&mut valid, &mut train])?;
            }
        }
        if let Some(file) = &valid_file {
            loader.read(file, None, [&mut valid, &mut train])?;
        }
        let valid = if valid.is_empty() { None } else { Some(valid.finish()?) };
        let train = train.finish()?;
        loader.finish(&train.source)?;
        Ok(Self { train, valid })
    }
}

/// Reads what `eval --data` names: whole files, and of directories `test.*` or else `valid.*`. Of
/// the specification `data`, `columns` and `quiet` count.
///
/// # Errors
/// As [`Dataset::load`].
pub fn load_eval(spec: &DataSpec, tokenizer: &Tokenizer) -> Result<Stream> {
    ensure!(!spec.data.is_empty(), "no data are given: give --data a file or a directory");
    let file = |path: &PathBuf| DataFile::open(&named_file(path, &["test", "valid"])?);
    let files = spec.data.iter().map(file).collect::<Result<Vec<DataFile>>>()?;
    let bytes = files.iter().map(|file| file.bytes).sum();
    let mut loader = Loader::new(spec, tokenizer, bytes, BLOCK);
    let mut stream = Builder::new(MEMORY_BYTES, false);
    let mut nothing = Builder::new(0, false);
    for file in &files {
        loader.read(file, None, [&mut stream, &mut nothing])?;
    }
    let stream = stream.finish()?;
    loader.finish(&stream.source)?;
    Ok(stream)
}

/// Refuses a number of items to hold out beside a folder that has validation data of its own.
///
/// # Errors
/// There is such a folder.
pub fn refuse_val_items(data: &[PathBuf], val_items: Option<usize>) -> Result<()> {
    for path in data.iter().filter(|path| val_items.is_some() && path.is_dir()) {
        ensure!(
            part_file(path, "valid")?.is_none(),
            "{} has validation data of its own: leave --val-items out, or name the file in it",
            path.display()
        );
    }
    Ok(())
}

/// A file to train on, and what of it or beside it is to be validated on.
struct Source {
    file: DataFile,
    held_out: Option<DataFile>,
    split: Split,
}

/// Which part of a file is not trained on.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Split {
    None,
    /// The last share of its characters (plain text) or documents.
    Fraction(f64),
    /// The last documents.
    Items(usize),
}

impl Source {
    fn of(path: &Path, spec: &DataSpec) -> Result<Self> {
        let held_out = if path.is_dir() { part_file(path, "valid")? } else { None };
        let split = match (&held_out, &spec.valid, spec.val_items) {
            (None, None, Some(items)) => Split::Items(items),
            (None, None, None) if spec.val_fraction > 0.0 => Split::Fraction(spec.val_fraction),
            _ => Split::None,
        };
        let held_out = match held_out.filter(|_| spec.valid.is_none()) {
            Some(path) => Some(DataFile::open(&path)?),
            None => None,
        };
        Ok(Self { file: DataFile::open(&named_file(path, &["train"])?)?, held_out, split })
    }

    /// Bytes that are read of it: what is split is counted first.
    fn bytes(&self) -> u64 {
        let passes = if self.split == Split::None { 1 } else { 2 };
        passes * self.file.bytes + self.held_out.as_ref().map_or(0, |file| file.bytes)
    }
}

impl Split {
    /// How many of `count` characters or documents are trained on.
    fn first(self, file: &DataFile, count: u64) -> Result<u64> {
        let shown = file.path.display();
        match self {
            Self::None => Ok(count),
            Self::Fraction(fraction) => Ok((count as f64 * (1.0 - fraction)) as u64),
            Self::Items(items) => {
                ensure!(
                    file.form != Form::Plain,
                    "{shown} is one text: give --val-fraction instead of --val-items"
                );
                ensure!(
                    (items as u64) < count,
                    "{shown} has {count} items and --val-items is {items}: leave some to train on"
                );
                Ok(count - items as u64)
            }
        }
    }
}

#[cfg(test)]
mod tests;
