//! `data`: what a data set is made of, before a run spends time on it.

use std::io::IsTerminal;

use anyhow::{Result, ensure};
use serde::Serialize;

use super::args::DataArgs;
use super::report::print_json;
use crate::batch::{Batch, IGNORE, check_seq_len};
use crate::data::{DataSpec, Dataset, Stream};
use crate::session::open_tuned;
use crate::tokenizer::Tokenizer;

/// `data --json`; the keys in this order.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub(super) struct DataReport {
    /// `text` or `examples`.
    pub kind: &'static str,
    /// Tokens of all texts or examples, uncut.
    pub tokens: usize,
    /// Most tokens of a sequence.
    pub seq_len: usize,
    /// Examples, or whole windows of `seq_len` tokens.
    pub sequences: usize,
    /// Examples left out, since no answer begins within `seq_len` tokens.
    pub skipped: usize,
    /// Examples that lose their end.
    pub cut: usize,
    /// Tokens that count in an epoch's loss.
    pub trained_tokens: usize,
    /// Lengths of the examples, uncut, tokens; none of text.
    pub lengths: Option<Lengths>,
    /// One sequence, its trained tokens in brackets.
    pub sample: String,
}

/// Of the lengths of examples, tokens.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub(super) struct Lengths {
    /// Shortest.
    pub min: usize,
    /// Half are no longer.
    pub median: usize,
    /// 95 of 100 are no longer.
    pub p95: usize,
    /// Longest.
    pub max: usize,
}

impl Lengths {
    /// By nearest rank.
    fn of(stream: &Stream) -> Option<Self> {
        let mut lengths: Vec<usize> = stream.examples.iter().map(|example| example.len).collect();
        lengths.sort_unstable();
        let rank = |share: usize| lengths.get((lengths.len() * share).div_ceil(100).max(1) - 1);
        let at = |share| rank(share).copied();
        Some(Self { min: at(0)?, median: at(50)?, p95: at(95)?, max: at(100)? })
    }
}

/// Marks in front of and behind trained tokens.
type Marks = [&'static str; 2];

const BRACKETS: Marks = ["[", "]"];

/// Green.
const COLOUR: Marks = ["\x1b[32m", "\x1b[0m"];

pub(super) fn run(args: &DataArgs) -> Result<()> {
    ensure!(!args.data.is_empty(), "there is nothing to look at: give --data a file or a folder");
    let (source, _) = open_tuned(args.model.as_deref(), None, None)?;
    check_seq_len(args.seq_len, source.config.max_position_embeddings)?;
    let spec = DataSpec {
        data: args.data.clone(),
        train_on_prompt: args.train_on_prompt,
        ..DataSpec::default()
    };
    let stream = Dataset::load(&spec, &source.tokenizer)?.train;
    let batch = sample(&stream, args.seq_len, args.sample)?;
    let report = report(&stream, args.seq_len, &batch, &source.tokenizer)?;
    let marks = if std::io::stderr().is_terminal() { COLOUR } else { BRACKETS };
    eprintln!("{}\n", rendered(&batch, &source.tokenizer, marks)?);
    show(&report, &stream, source.tokenizer.has_chat_template());
    if args.json {
        print_json(&report)?;
    }
    Ok(())
}

/// Sequence `number`, counted from 1, as it is trained.
fn sample(stream: &Stream, seq_len: usize, number: usize) -> Result<Batch> {
    let count = if stream.examples.is_empty() {
        stream.ids.len().div_ceil(seq_len)
    } else {
        stream.fit(seq_len).usable.len()
    };
    let mut batches = stream.eval_batches(seq_len, 1, None)?;
    let wanted = number.checked_sub(1).and_then(|before| batches.nth(before));
    wanted.ok_or_else(|| {
        anyhow::anyhow!("--sample is {number} and {} has {count}: give 1 or more", stream.source)
    })
}

fn report(
    stream: &Stream,
    seq_len: usize,
    sample: &Batch,
    tokenizer: &Tokenizer,
) -> Result<DataReport> {
    let fit = stream.fit(seq_len);
    let batches = stream.eval_batches(seq_len, 1, None)?;
    let text = stream.examples.is_empty();
    // Training leaves out a last, shorter window.
    let whole = batches.filter(|batch| !text || batch.seq_len == seq_len);
    Ok(DataReport {
        kind: if text { "text" } else { "examples" },
        tokens: stream.ids.len(),
        seq_len,
        sequences: stream.windows(seq_len),
        skipped: fit.skipped,
        cut: fit.cut,
        trained_tokens: whole.map(|batch| batch.trained_tokens).sum(),
        lengths: Lengths::of(stream),
        sample: rendered(sample, tokenizer, BRACKETS)?,
    })
}

/// The text of a batch of one sequence, special tokens included, with marks at trained tokens.
fn rendered(batch: &Batch, tokenizer: &Tokenizer, [open, close]: Marks) -> Result<String> {
    let ids = &batch.ids[..batch.tokens];
    // A token is trained where it is the target of the one in front of it.
    let trained = |at: &usize| *at > 0 && batch.targets[at - 1] != IGNORE;
    let mut text = String::new();
    let mut before = String::new();
    for run in (0..ids.len()).collect::<Vec<_>>().chunk_by(|a, b| trained(a) == trained(b)) {
        let (first, end) = (run[0], run[run.len() - 1] + 1);
        // Decoders drop or keep a leading space by what precedes.
        let whole = tokenizer.decode_all(&ids[..end])?;
        let piece = match whole.strip_prefix(&before) {
            Some(piece) => piece.to_owned(),
            None => tokenizer.decode_all(&ids[first..end])?,
        };
        if trained(&first) {
            text.extend([open, &piece, close]);
        } else {
            text += &piece;
        }
        before = whole;
    }
    Ok(text)
}

fn show(report: &DataReport, stream: &Stream, template: bool) {
    let DataReport { tokens, sequences, seq_len, .. } = report;
    if let Some(Lengths { min, median, p95, max }) = report.lengths {
        eprintln!("{}: {sequences} examples, {tokens} tokens", stream.source);
        eprintln!("lengths: {min} at least, {median} median, {p95} at 95 %, {max} at most");
        eprintln!("cut at {seq_len} tokens (--seq-len): {}", report.cut);
        eprintln!("left out, since no answer begins before that: {}", report.skipped);
    } else {
        eprintln!("{}: {tokens} tokens of text", stream.source);
        eprintln!("windows of {seq_len} tokens (--seq-len): {sequences}");
    }
    eprintln!("trained in an epoch: {} tokens", report.trained_tokens);
    if stream.chats && !template {
        eprintln!("the model has no chat template: roles are written as ### User: and so on");
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{byte_tokenizer, message};

    fn look(name: &str, text: &str, seq_len: usize, number: usize) -> Result<DataReport> {
        let settings = serde_json::json!({"bos_token": "<s>", "eos_token": "</s>"});
        let (dir, tokenizer) = byte_tokenizer(Some(settings));
        let (path, tokenizer) = (dir.path().join(name), tokenizer.unwrap());
        std::fs::write(&path, text).unwrap();
        let spec = DataSpec { data: vec![path], ..DataSpec::default() };
        let stream = Dataset::load(&spec, &tokenizer).unwrap().train;
        report(&stream, seq_len, &sample(&stream, seq_len, number)?, &tokenizer)
    }

    #[test]
    fn examples_are_counted_and_one_is_shown() {
        let line = |prompt: &str, said: &str| {
            serde_json::json!({"prompt": prompt, "completion": said}).to_string() + "\n"
        };
        let text = [line("ab", "cd"), line("abcdefgh", "i"), line("é", "é12345")].concat();
        let report = look("a.jsonl", &text, 8, 1).unwrap();
        assert_eq!(report.sample, "<s>ab[cd</s>]");
        assert_eq!((report.kind, report.sequences, report.tokens), ("examples", 3, 28));
        assert_eq!((report.cut, report.skipped, report.trained_tokens), (1, 1, 3 + 5));
        let lengths = Lengths { min: 6, median: 11, p95: 11, max: 11 };
        assert_eq!(report.lengths, Some(lengths));
        // The second that is used, cut at 8 tokens.
        assert_eq!(look("a.jsonl", &text, 8, 2).unwrap().sample, "<s>é[é123]");
        assert!(message(look("a.jsonl", &text, 8, 3)).contains("--sample is 3 and"));
        assert!(message(look("a.jsonl", &text, 8, 0)).contains("has 2: give 1 or more"));
    }

    #[test]
    fn text_is_trained_but_for_the_first_token_of_a_window() {
        let report = look("a.txt", "abcdefgh", 4, 2).unwrap();
        assert_eq!(report.sample, "d[efg]");
        assert_eq!((report.kind, report.sequences, report.trained_tokens), ("text", 2, 6));
        assert_eq!((report.lengths, report.cut, report.skipped), (None, 0, 0));
    }
}
