//! Files of data, read in pieces: which file a name means, its lines, items or text.

use std::cell::Cell;
use std::fs::File;
use std::io::{BufRead, BufReader, Read};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, anyhow, bail, ensure};
use serde::de::{Deserializer as _, Error as _, IgnoredAny, SeqAccess, Visitor};
use serde_json::Value;

use crate::whole_file;

const ENDINGS: [&str; 4] = ["jsonl", "json", "txt", "md"];

/// Bytes that are read at once.
const BUFFER: usize = 1 << 18;

/// Bytes of a document of JSON at most: parsed, it takes up to twenty times its length.
const DOCUMENT: u64 = 64 << 20;

/// What Windows editors put first, which no model has seen in training.
const BYTE_ORDER_MARK: &[u8] = "\u{FEFF}".as_bytes();

/// `dir/part.ENDING`; two of them are an error, because which one is meant cannot be known.
pub(super) fn part_file(dir: &Path, part: &str) -> Result<Option<PathBuf>> {
    let files = ENDINGS.map(|ending| dir.join(format!("{part}.{ending}")));
    let mut files = files.into_iter().filter(|path| path.exists());
    let found = files.next();
    if let (Some(one), Some(two)) = (&found, files.next()) {
        bail!("there are both {} and {}: remove one", one.display(), two.display());
    }
    Ok(found)
}

/// The file itself, or the first of `parts` in a directory.
pub(super) fn named_file(path: &Path, parts: &[&str]) -> Result<PathBuf> {
    if !path.is_dir() {
        return Ok(path.to_owned());
    }
    for part in parts {
        if let Some(file) = part_file(path, part)? {
            return Ok(file);
        }
    }
    let files: Vec<String> =
        parts.iter().map(|part| format!("{part}.jsonl or {part}.txt")).collect();
    bail!("{} has no {}: add one, or name a file", path.display(), files.join(", "))
}

/// How documents lie in a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Form {
    /// The whole is one text, which may be cut anywhere.
    Plain,
    /// One in each line.
    Lines,
    /// One in each item of a JSON array.
    Array,
}

/// A file of data.
#[derive(Clone, Debug)]
pub(super) struct DataFile {
    pub(super) path: PathBuf,
    pub(super) form: Form,
    /// Its size.
    pub(super) bytes: u64,
}

/// A piece of a file.
pub(super) enum Piece<'a> {
    /// Of a plain text.
    Text(&'a str),
    /// A line that is not blank, and its number from 1.
    Line(&'a str, u64),
    /// An item of an array, and its number from 1.
    Item(Value, u64),
    /// An item of an array that is only counted.
    Counted,
}

/// What takes the pieces, with the bytes of the file that are read so far.
type Sink<'a> = &'a mut dyn FnMut(Piece<'_>, u64) -> Result<()>;

impl DataFile {
    /// Looks at a file.
    ///
    /// # Errors
    /// It cannot be read, or its name does not say what it is.
    pub(super) fn open(path: &Path) -> Result<Self> {
        let shown = path.display();
        let ending = path.extension().and_then(|ending| ending.to_str()).unwrap_or_default();
        ensure!(
            ENDINGS.contains(&ending),
            "{shown} ends in none of .txt, .md, .jsonl, .json: rename it after its contents"
        );
        let mut file = Self { path: path.to_owned(), form: Form::Plain, bytes: 0 };
        let (mut reader, _) = file.reader()?;
        file.bytes = reader.get_ref().metadata().with_context(|| file.unreadable())?.len();
        if matches!(ending, "jsonl" | "json") {
            file.form = match first_byte(&mut reader).with_context(|| file.unreadable())? {
                Some(b'[') => Form::Array,
                _ => Form::Lines,
            };
        }
        Ok(file)
    }

    fn unreadable(&self) -> String {
        format!("cannot read {}: correct the path of the data", self.path.display())
    }

    fn empty(&self) -> String {
        format!("{} is empty: name a file with text", self.path.display())
    }

    /// Behind a byte-order mark.
    fn reader(&self) -> Result<(BufReader<File>, Place)> {
        let file = whole_file::open(&self.path).with_context(|| self.unreadable())?;
        let mut reader = BufReader::with_capacity(BUFFER, file);
        let start = reader.fill_buf().with_context(|| self.unreadable())?;
        let mut place = Place { shown: self.path.display().to_string(), bytes: 0, line: 1 };
        if start.starts_with(BYTE_ORDER_MARK) {
            reader.consume(BYTE_ORDER_MARK.len());
            place.bytes = BYTE_ORDER_MARK.len() as u64;
        }
        Ok((reader, place))
    }

    /// Reads everything; with `count`, items are only counted.
    ///
    /// # Errors
    /// The file is empty, not UTF-8 or no JSON, or the sink refuses a piece.
    pub(super) fn read(&self, count: bool, sink: Sink) -> Result<()> {
        match self.form {
            Form::Plain => self.text(sink),
            Form::Lines => self.lines(sink),
            Form::Array => self.items(count, sink),
        }
    }

    fn text(&self, sink: Sink) -> Result<()> {
        let (mut any, mut read) = (false, 0);
        self.chunks(&mut |text| {
            any |= !text.trim().is_empty();
            read += text.len() as u64;
            sink(Piece::Text(text), read)
        })?;
        ensure!(any, self.empty());
        Ok(())
    }

    /// Valid UTF-8 by pieces of about [`BUFFER`] bytes.
    fn chunks(&self, sink: &mut dyn FnMut(&str) -> Result<()>) -> Result<()> {
        let (mut reader, mut place) = self.reader()?;
        // The start of a character whose end was not read yet.
        let mut bytes: Vec<u8> = Vec::new();
        loop {
            let read = reader.fill_buf().with_context(|| self.unreadable())?;
            let count = read.len();
            bytes.extend_from_slice(read);
            reader.consume(count);
            let valid = match std::str::from_utf8(&bytes) {
                Ok(text) => text,
                Err(error) => {
                    let whole = &bytes[..error.valid_up_to()];
                    ensure!(error.error_len().is_none() && count > 0, place.not_utf8(whole));
                    std::str::from_utf8(whole).unwrap_or_default()
                }
            };
            sink(valid)?;
            let valid = valid.len();
            place.pass(&bytes[..valid]);
            bytes.drain(..valid);
            if count == 0 {
                return Ok(());
            }
        }
    }

    fn lines(&self, sink: Sink) -> Result<()> {
        let (mut reader, mut place) = self.reader()?;
        let (mut line, mut any) = (Vec::new(), false);
        loop {
            line.clear();
            let count = (&mut reader).take(DOCUMENT + 1).read_until(b'\n', &mut line);
            let count = count.with_context(|| self.unreadable())?;
            if count == 0 {
                break;
            }
            ensure!(
                line.len() as u64 <= DOCUMENT,
                "{} line {} has more than {} MiB: cut it into documents",
                self.path.display(),
                place.line,
                DOCUMENT >> 20
            );
            let text = std::str::from_utf8(&line)
                .map_err(|error| anyhow!(place.not_utf8(&line[..error.valid_up_to()])))?;
            let text = text.strip_suffix('\n').unwrap_or(text);
            let text = text.strip_suffix('\r').unwrap_or(text);
            if !text.trim().is_empty() {
                any = true;
                sink(Piece::Line(text, place.line), place.bytes + count as u64)?;
            }
            place.pass(&line);
        }
        ensure!(any, self.empty());
        Ok(())
    }

    fn items(&self, count: bool, sink: Sink) -> Result<()> {
        let left = Cell::new(DOCUMENT);
        let reader = Bounded { reader: self.reader()?.0, left: &left };
        let mut json = serde_json::Deserializer::from_reader(reader);
        let bytes = self.bytes;
        let mut items = Items { bytes, count, number: 0, left: &left, sink, refused: None };
        let read = (&mut json).deserialize_seq(&mut items).and_then(|()| json.end());
        let Items { number, refused, .. } = items;
        if let Some(error) = refused {
            return Err(error);
        }
        let shown = self.path.display();
        read.map_err(|error| anyhow!("{shown} is no JSON ({error}): correct it"))?;
        ensure!(number > 0, self.empty());
        Ok(())
    }
}

/// The first byte that is no space; what is read is used up.
fn first_byte(reader: &mut impl BufRead) -> std::io::Result<Option<u8>> {
    loop {
        let read = reader.fill_buf()?;
        if let Some(byte) = read.iter().find(|byte| !byte.is_ascii_whitespace()) {
            return Ok(Some(*byte));
        }
        let count = read.len();
        if count == 0 {
            return Ok(None);
        }
        reader.consume(count);
    }
}

/// Where a reader stands.
struct Place {
    shown: String,
    bytes: u64,
    line: u64,
}

impl Place {
    fn pass(&mut self, bytes: &[u8]) {
        self.bytes += bytes.len() as u64;
        self.line += newlines(bytes);
    }

    /// The sentence of a byte behind `before` that begins no character.
    fn not_utf8(&self, before: &[u8]) -> String {
        let (at, line) = (self.bytes + before.len() as u64, self.line + newlines(before));
        format!("{} is not UTF-8 at byte {at}, line {line}: convert it to UTF-8", self.shown)
    }
}

fn newlines(bytes: &[u8]) -> u64 {
    bytes.iter().filter(|&&byte| byte == b'\n').count() as u64
}

/// A reader of items, each of which has a bounded length.
struct Bounded<'a> {
    reader: BufReader<File>,
    /// Bytes that the item may go on for.
    left: &'a Cell<u64>,
}

impl Read for Bounded<'_> {
    fn read(&mut self, out: &mut [u8]) -> std::io::Result<usize> {
        let count = self.reader.read(out)?;
        let left = self.left.get().checked_sub(count as u64);
        let most = DOCUMENT >> 20;
        self.left.set(left.ok_or_else(|| {
            std::io::Error::other(format!("an item has more than {most} MiB, cut it"))
        })?);
        Ok(count)
    }
}

/// Gives the items of an array to a sink, one by one.
struct Items<'a> {
    bytes: u64,
    count: bool,
    number: u64,
    left: &'a Cell<u64>,
    sink: Sink<'a>,
    /// What the sink said, since a visitor can only give an error of its own.
    refused: Option<anyhow::Error>,
}

impl<'de> Visitor<'de> for &mut Items<'_> {
    type Value = ();

    fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("an array")
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut array: A) -> Result<(), A::Error> {
        loop {
            let item = match self.count {
                true => array.next_element::<IgnoredAny>()?.map(|_| Piece::Counted),
                false => array.next_element()?.map(|value| Piece::Item(value, self.number + 1)),
            };
            let Some(item) = item else { return Ok(()) };
            self.number += 1;
            self.left.set(DOCUMENT);
            // How far it is cannot be told; the size is at least not too little.
            if let Err(error) = (self.sink)(item, self.bytes) {
                self.refused = Some(error);
                return Err(A::Error::custom("refused"));
            }
        }
    }
}
