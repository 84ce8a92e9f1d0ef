//! `data`: what a data set is made of, before a run spends time on it.

use std::collections::BTreeMap;
use std::io::IsTerminal;

use anyhow::{Result, ensure};
use serde::Serialize;

use super::args::DataArgs;
use super::report::print_json;
use crate::batch::{Batch, IGNORE, check_seq_len};
use crate::data::{DataSpec, Dataset, Stream};
use crate::packing::Packing;
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
    /// How many examples have which length; none of text.
    pub histogram: Vec<Bucket>,
    /// What `--packing` makes of the examples in batches of 4, the default of `tune`; none of text.
    pub packing: Option<Packing>,
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
    fn of(counts: &BTreeMap<usize, usize>) -> Option<Self> {
        let total: usize = counts.values().sum();
        let at = |share: usize| {
            let rank = (total * share).div_ceil(100).max(1);
            let mut before = 0;
            let mut lengths = counts.iter();
            let found = lengths.find(|(_, count)| {
                before += **count;
                before >= rank
            });
            found.map(|(length, _)| *length)
        };
        Some(Self { min: at(0)?, median: at(50)?, p95: at(95)?, max: at(100)? })
    }
}

/// Examples of about the same length.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub(super) struct Bucket {
    /// Least tokens.
    pub from: usize,
    /// Most tokens.
    pub to: usize,
    /// Examples.
    pub count: usize,
}

/// Sequences of a batch in which padding is counted.
const BATCH_SIZE: usize = 4;

/// Lines of a histogram at most.
const BUCKETS: usize = 12;

/// Widest bar of a histogram, characters.
const BAR: usize = 40;

impl Bucket {
    /// Buckets of equal width, a power of two, from the shortest to the longest.
    fn all(counts: &BTreeMap<usize, usize>) -> Vec<Self> {
        let (Some((&min, _)), Some((&max, _))) =
            (counts.first_key_value(), counts.last_key_value())
        else {
            return Vec::new();
        };
        let buckets = |width: usize| max / width - min / width + 1;
        let mut width = 1;
        while buckets(width) > BUCKETS {
            width *= 2;
        }
        let bucket = |index: usize| {
            let (from, end) = (index * width, (index + 1) * width);
            Self { from, to: end - 1, count: counts.range(from..end).map(|(_, count)| count).sum() }
        };
        (min / width..=max / width).map(bucket).collect()
    }

    /// A line for people, its bar as long as the count beside the largest.
    fn line(&self, most: usize, width: usize) -> String {
        let bar = "#".repeat((self.count * BAR).div_ceil(most.max(1)));
        let line = format!("{:>width$}-{:<width$} {:>8} {bar}", self.from, self.to, self.count);
        line.trim_end().to_owned()
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
        columns: args.columns.clone(),
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
    let count = stream.eval_batch_count(seq_len, 1, None);
    let mut batches = stream.eval_batches(seq_len, 1, None)?;
    let wanted = number.checked_sub(1).and_then(|before| batches.nth(before));
    wanted.ok_or_else(|| {
        anyhow::anyhow!("--sample is {number}: {} has samples 1 to {count}", stream.source)
    })
}

fn report(
    stream: &Stream,
    seq_len: usize,
    sample: &Batch,
    tokenizer: &Tokenizer,
) -> Result<DataReport> {
    let fit = stream.fit(seq_len);
    let text = stream.examples.is_empty();
    let mut counts = BTreeMap::new();
    for example in stream.examples.iter() {
        *counts.entry(example.len).or_default() += 1;
    }
    Ok(DataReport {
        kind: if text { "text" } else { "examples" },
        tokens: stream.ids.len(),
        seq_len,
        sequences: stream.windows(seq_len),
        skipped: fit.skipped,
        cut: fit.cut,
        trained_tokens: stream.trained_tokens(seq_len),
        lengths: Lengths::of(&counts),
        histogram: Bucket::all(&counts),
        packing: Packing::of(stream, seq_len, BATCH_SIZE, 0)?,
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
        let most = report.histogram.iter().map(|bucket| bucket.count).max().unwrap_or(0);
        for bucket in &report.histogram {
            eprintln!("  {}", bucket.line(most, max.to_string().len()));
        }
        eprintln!("cut at {seq_len} tokens (--seq-len): {}", report.cut);
        eprintln!("left out, since no answer begins before that: {}", report.skipped);
        if let Some(packing) = report.packing {
            eprintln!("packed (--packing), in batches of {BATCH_SIZE}: {}", packing.text());
        }
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
        // 6 and 8 tokens that do not go together, in either case a batch of 2 x 8.
        let packing = report.packing.expect("examples");
        assert_eq!((packing.examples, packing.sequences), (2, 2));
        assert_eq!((packing.padding_share, packing.unpacked_padding_share), (0.125, 0.125));
        let lengths = Lengths { min: 6, median: 11, p95: 11, max: 11 };
        assert_eq!(report.lengths, Some(lengths));
        let counted = |length: usize| usize::from(length == 6) + 2 * usize::from(length == 11);
        let bucket = |length| Bucket { from: length, to: length, count: counted(length) };
        assert_eq!(report.histogram, (6..=11).map(bucket).collect::<Vec<_>>());
        // The second that is used, cut at 8 tokens.
        assert_eq!(look("a.jsonl", &text, 8, 2).unwrap().sample, "<s>é[é123]");
        assert!(message(look("a.jsonl", &text, 8, 3)).contains("--sample is 3: "));
        assert!(message(look("a.jsonl", &text, 8, 0)).contains("has samples 1 to 2"));
    }

    #[test]
    fn a_histogram_has_few_lines_of_equal_width() {
        let counts = BTreeMap::from([(5, 2), (60, 40), (63, 1), (64, 7), (700, 1)]);
        let buckets = Bucket::all(&counts);
        assert_eq!(buckets.len(), 11);
        assert_eq!(buckets[0], Bucket { from: 0, to: 63, count: 43 });
        assert_eq!(buckets[1], Bucket { from: 64, to: 127, count: 7 });
        assert_eq!(buckets[10], Bucket { from: 640, to: 703, count: 1 });
        assert_eq!(buckets[0].line(43, 3), format!("  0-63        43 {}", "#".repeat(40)));
        assert_eq!(buckets[2].line(43, 3), "128-191        0");
        assert_eq!(buckets[10].line(43, 3), "640-703        1 #");
        assert_eq!(Bucket::all(&BTreeMap::new()), []);
    }

    #[test]
    fn text_is_trained_but_for_the_first_token_of_a_window() {
        let report = look("a.txt", "abcdefgh", 4, 2).unwrap();
        assert_eq!(report.sample, "d[efg]");
        assert_eq!((report.kind, report.sequences, report.trained_tokens), ("text", 2, 6));
        assert_eq!((report.lengths, report.cut, report.skipped), (None, 0, 0));
        assert_eq!(report.packing, None);
    }
}
