//! Windows of a token stream, in shuffled order for training and in order for evaluation.
//!
//! A window is `seq_len` consecutive tokens: its first token is given and the others are
//! predicted, in training and in evaluation alike. Of examples each is a sequence, of which the
//! answer is predicted; those of a batch are padded on the right to the longest of them. In
//! training a sequence may hold several examples ([`crate::packing`]), which do not see each other.

use anyhow::{Result, bail, ensure};
use edge_kernels::util::SeededRng;
use rand::{Rng, SeedableRng};
use serde::{Deserialize, Serialize};

use crate::data::{Example, Stream};
use crate::packing::pack;

/// A target that does not count: the loss kernels skip it.
pub const IGNORE: u32 = u32::MAX;

/// Lengths of padded sequences are multiples of this, so that there are few of them.
const PADDED_TO: usize = 16;

/// Examples of a stream against a length.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Fit {
    /// Numbers of those whose answer begins before it.
    pub usable: Vec<u32>,
    /// How many of these lose their end.
    pub cut: usize,
    /// The others: nothing of their answer is left.
    pub skipped: usize,
}

/// Sequences of one length.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Batch {
    /// Input ids `[sequences * seq_len]`.
    pub ids: Vec<u32>,
    /// The id after each input, [`IGNORE`] at the end of each sequence `[sequences * seq_len]`.
    pub targets: Vec<u32>,
    /// The samples of sequences `[sequences * seq_len]`: of each row, the first row of its sample
    /// in the sequence and the row behind the last. A row sees its own sample alone, and its
    /// position is that in the sample. A row of padding is a sample of its own.
    pub segments: Vec<[u32; 2]>,
    /// Number of sequences.
    pub sequences: usize,
    /// Tokens of a sequence.
    pub seq_len: usize,
    /// Targets that count.
    pub trained_tokens: usize,
    /// Ids that are no padding.
    pub tokens: usize,
    /// Number of each sequence among those of its data.
    pub indices: Vec<u32>,
}

impl Batch {
    /// A batch of whole sequences of `seq_len` tokens.
    ///
    /// # Panics
    /// When `ids` is no multiple of `seq_len`: a mistake of the caller.
    pub fn new(ids: Vec<u32>, seq_len: usize) -> Self {
        assert!(seq_len > 0 && ids.len().is_multiple_of(seq_len));
        let sequences = ids.len() / seq_len;
        let mut targets = Vec::with_capacity(ids.len());
        for sequence in ids.chunks_exact(seq_len) {
            targets.extend_from_slice(&sequence[1..]);
            targets.push(IGNORE);
        }
        let trained_tokens = sequences * (seq_len - 1);
        let (tokens, indices) = (ids.len(), (0..sequences as u32).collect());
        let segments = vec![[0, seq_len as u32]; ids.len()];
        Self { ids, targets, segments, sequences, seq_len, trained_tokens, tokens, indices }
    }

    /// A batch of examples by their numbers in a stream, several a sequence, none of which exceeds
    /// `seq_len` tokens when its examples are cut to that. `indices`: numbers of the sequences.
    fn of_examples(
        stream: &Stream,
        seq_len: usize,
        sequences: &[&[u32]],
        indices: Vec<u32>,
    ) -> Self {
        let tokens = |sequence: &&[u32]| stream.tokens_of(sequence, seq_len);
        let padded = padded(sequences.iter().map(tokens), seq_len);
        let rows = sequences.len() * padded;
        let mut batch = Self {
            ids: Vec::with_capacity(rows),
            targets: Vec::with_capacity(rows),
            segments: Vec::with_capacity(rows),
            sequences: sequences.len(),
            seq_len: padded,
            trained_tokens: 0,
            tokens: sequences.iter().map(tokens).sum(),
            indices,
        };
        for (sequence, first) in sequences.iter().zip((0..).step_by(padded)) {
            for &example in *sequence {
                batch.add_example(stream, stream.examples[example as usize], first, seq_len);
            }
            let end = first + padded;
            let padding = (batch.ids.len() - first..padded).map(|row| [row as u32, row as u32 + 1]);
            batch.segments.extend(padding);
            batch.ids.resize(end, 0);
            batch.targets.resize(end, IGNORE);
        }
        batch
    }

    /// Adds an example, cut to `seq_len` tokens, to the sequence that begins at row `first`.
    fn add_example(&mut self, stream: &Stream, example: Example, first: usize, seq_len: usize) {
        let place = example.start..example.start + example.len.min(seq_len);
        let (ids, answers) = (&stream.ids[place.clone()], &stream.answers[place]);
        let start = self.ids.len() - first;
        let segment = [start as u32, (start + ids.len()) as u32];
        self.segments.resize(self.segments.len() + ids.len(), segment);
        self.ids.extend(ids);
        let next = ids.iter().zip(answers).skip(1);
        self.targets.extend(next.map(|(&id, &answer)| if answer > 0 { id } else { IGNORE }));
        self.targets.resize(self.ids.len(), IGNORE);
        self.trained_tokens += answers.iter().skip(1).filter(|answer| **answer > 0).count();
    }
}

/// The length to which a batch of sequences of these lengths is padded.
fn padded(tokens: impl Iterator<Item = usize>, seq_len: usize) -> usize {
    tokens.max().unwrap_or(1).next_multiple_of(PADDED_TO).min(seq_len)
}

/// Makes sure that windows of `seq_len` tokens predict something and fit the model.
///
/// # Errors
/// `seq_len` is below 2 or above `max_position_embeddings`.
pub fn check_seq_len(seq_len: usize, max_position_embeddings: usize) -> Result<()> {
    ensure!(seq_len >= 2, "--seq-len is {seq_len}, and a window needs at least 2 tokens: raise it");
    ensure!(
        seq_len <= max_position_embeddings,
        "--seq-len is {seq_len} and the model's context (max_position_embeddings) is \
         {max_position_embeddings}: use --seq-len {max_position_embeddings} or less"
    );
    Ok(())
}

impl Stream {
    /// Windows of exactly `seq_len` tokens, of which the rest of the stream is left out; examples,
    /// or the sequences that they are packed into.
    pub fn windows(&self, seq_len: usize) -> usize {
        match (self.examples.len(), self.packing) {
            (0, _) => self.ids.len() / seq_len,
            (examples, false) => examples,
            (_, true) => self.packs(&self.fit(seq_len).usable, seq_len).len(),
        }
    }

    /// Packs examples into sequences.
    fn packs(&self, examples: &[u32], seq_len: usize) -> Vec<Vec<u32>> {
        let tokens = |example: &u32| self.tokens_of(&[*example], seq_len);
        let mut packs = pack(&examples.iter().map(tokens).collect::<Vec<_>>(), seq_len);
        for place in packs.iter_mut().flatten() {
            *place = examples[*place as usize];
        }
        packs
    }

    /// Tokens of these examples, each cut to `seq_len`.
    fn tokens_of(&self, examples: &[u32], seq_len: usize) -> usize {
        examples.iter().map(|&example| self.examples[example as usize].len.min(seq_len)).sum()
    }

    /// Tokens of each of [`Stream::windows`] in a batch of its own.
    pub fn padded_lens(&self, seq_len: usize) -> Vec<u32> {
        let padded_len = |examples: &[u32]| {
            let tokens = std::iter::once(self.tokens_of(examples, seq_len));
            padded(tokens, seq_len) as u32
        };
        match (self.examples.len(), self.packing) {
            (0, _) => vec![seq_len as u32; self.windows(seq_len)],
            (examples, false) => (0..examples as u32).map(|index| padded_len(&[index])).collect(),
            (_, true) => {
                let packs = self.packs(&self.fit(seq_len).usable, seq_len);
                packs.iter().map(|pack| padded_len(pack)).collect()
            }
        }
    }

    /// Batches that [`Stream::eval_batches`] makes.
    pub fn eval_batch_count(
        &self,
        seq_len: usize,
        sequences: usize,
        max_windows: Option<usize>,
    ) -> u64 {
        let (most, sequences) = (max_windows.unwrap_or(usize::MAX), sequences.max(1));
        if !self.examples.is_empty() {
            return self.fit(seq_len).usable.len().min(most).div_ceil(sequences) as u64;
        }
        let whole = (self.ids.len() / seq_len).min(most);
        // The last and shorter window is a batch of its own.
        let last = whole < most && self.ids.len() % seq_len >= 2;
        (whole.div_ceil(sequences) + usize::from(last)) as u64
    }

    /// Tokens that count in the loss of an epoch with sequences of `seq_len` tokens.
    pub fn trained_tokens(&self, seq_len: usize) -> usize {
        if self.examples.is_empty() {
            return self.windows(seq_len) * seq_len.saturating_sub(1);
        }
        let trained = |index: u32| {
            let Example { start, len, .. } = self.examples[index as usize];
            let answers = &self.answers[start..start + len.min(seq_len)];
            answers.iter().skip(1).filter(|answer| **answer > 0).count()
        };
        self.fit(seq_len).usable.into_iter().map(trained).sum()
    }

    /// What of the examples `seq_len` tokens do not hold, for people; `None` where they hold all.
    pub fn cut_note(&self, seq_len: usize) -> Option<String> {
        let fit = self.fit(seq_len);
        (fit.cut + fit.skipped > 0).then(|| {
            format!(
                "{} of {} examples are cut at {seq_len} tokens (--seq-len), {} are left out \
                 because their answer begins behind that",
                fit.cut,
                self.examples.len(),
                fit.skipped
            )
        })
    }

    /// Which examples have an answer within `seq_len` tokens.
    pub fn fit(&self, seq_len: usize) -> Fit {
        let mut fit = Fit::default();
        for (example, index) in self.examples.iter().zip(0..) {
            if example.prompt.max(1) >= example.len.min(seq_len) {
                fit.skipped += 1;
                continue;
            }
            fit.usable.push(index);
            fit.cut += usize::from(example.len > seq_len);
        }
        fit
    }

    /// The numbers of windows or usable examples.
    ///
    /// # Errors
    /// There is none.
    fn numbers(&self, seq_len: usize) -> Result<Vec<u32>> {
        if !self.examples.is_empty() {
            let fit = self.fit(seq_len);
            let nearest = self.examples.iter().zip(1..).min_by_key(|(example, _)| example.prompt);
            if let (true, Some((example, number))) = (fit.usable.is_empty(), nearest) {
                bail!(
                    "{} has no example whose answer begins within {seq_len} tokens, the nearest \
                     one, number {number}, begins behind {}: raise --seq-len",
                    self.source,
                    example.prompt
                );
            }
            return Ok(fit.usable);
        }
        let windows = self.windows(seq_len);
        ensure!(
            windows > 0,
            "{} has {} tokens, fewer than one window of {seq_len}: add text or use --seq-len {}",
            self.source,
            self.ids.len(),
            self.ids.len().max(2)
        );
        Ok((0..windows as u32).collect())
    }

    /// All windows in order, up to `sequences` a batch and `max_windows` in total; the last,
    /// shorter window is a batch of its own if it has at least 2 tokens.
    ///
    /// # Errors
    /// The stream has fewer than 2 tokens.
    pub fn eval_batches(
        &self,
        seq_len: usize,
        sequences: usize,
        max_windows: Option<usize>,
    ) -> Result<Box<dyn Iterator<Item = Batch> + '_>> {
        if !self.examples.is_empty() {
            let mut numbers = self.numbers(seq_len)?;
            numbers.truncate(max_windows.unwrap_or(usize::MAX));
            let step = sequences.max(1);
            let batches = (0..numbers.len()).step_by(step).map(move |first| {
                let last = (first + step).min(numbers.len());
                let numbers = &numbers[first..last];
                let alone: Vec<&[u32]> = numbers.iter().map(std::slice::from_ref).collect();
                Batch::of_examples(self, seq_len, &alone, numbers.to_vec())
            });
            return Ok(Box::new(batches));
        }
        ensure!(
            self.ids.len() >= 2,
            "{} has {} tokens, and evaluation needs at least 2: add text",
            self.source,
            self.ids.len()
        );
        let limit = max_windows.map_or(self.ids.len(), |max| max.saturating_mul(seq_len));
        let ids = &self.ids[..limit.min(self.ids.len())];
        let (whole, rest) = ids.split_at(ids.len() / seq_len * seq_len);
        let last = (rest.len() >= 2).then(|| Batch::new(rest.to_vec(), rest.len()));
        let batches = whole.chunks(seq_len * sequences.max(1));
        Ok(Box::new(batches.map(move |ids| Batch::new(ids.to_vec(), seq_len)).chain(last)))
    }
}

/// Where a [`Sampler`] stands: what a checkpoint stores.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Position {
    /// Completed passes over the stream.
    pub epoch: u64,
    /// Windows of this epoch already used.
    pub index: usize,
}

/// Endless windows of a stream: each epoch all of them once, in an order that the seed and the
/// number of the epoch decide. Of examples they are sequences of one, or, packed, of several.
#[derive(Clone, Debug)]
pub struct Sampler {
    seed: u64,
    seq_len: usize,
    position: Position,
    /// Windows, examples or packed sequences that are used, rising.
    numbers: Vec<u32>,
    /// Examples of each packed sequence; empty where they are not packed.
    packs: Vec<Vec<u32>>,
    /// Those of this epoch, in order of use.
    order: Vec<u32>,
}

impl Sampler {
    /// A sampler at the start of the first epoch.
    ///
    /// # Errors
    /// The stream is too short for one window of `seq_len` tokens.
    pub fn new(stream: &Stream, seq_len: usize, seed: u64) -> Result<Self> {
        Self::resume(stream, seq_len, seed, Position::default())
    }

    /// A sampler that continues from a stored position.
    ///
    /// # Errors
    /// The stream is too short for one window, or has fewer windows than the position says.
    pub fn resume(stream: &Stream, seq_len: usize, seed: u64, position: Position) -> Result<Self> {
        let mut numbers = stream.numbers(seq_len)?;
        let mut packs = Vec::new();
        if stream.packing && !stream.examples.is_empty() {
            packs = stream.packs(&numbers, seq_len);
            numbers = (0..packs.len() as u32).collect();
        }
        let windows = numbers.len();
        ensure!(
            position.index <= windows,
            "{} has {windows} windows and the checkpoint stands at window {}: resume with the \
             data that the run began with",
            stream.source,
            position.index
        );
        let mut sampler = Self { seed, seq_len, position, order: numbers.clone(), numbers, packs };
        sampler.shuffle();
        Ok(sampler)
    }

    /// The position after the last batch.
    pub fn position(&self) -> Position {
        self.position
    }

    /// Windows in an epoch.
    pub fn windows(&self) -> usize {
        self.order.len()
    }

    /// The next `sequences` windows; a batch may end one epoch and begin the next.
    pub fn next_batch(&mut self, stream: &Stream, sequences: usize) -> Batch {
        let mut indices = Vec::with_capacity(sequences);
        for _ in 0..sequences {
            if self.position.index == self.order.len() {
                self.position = Position { epoch: self.position.epoch + 1, index: 0 };
                self.shuffle();
            }
            indices.push(self.order[self.position.index]);
            self.position.index += 1;
        }
        self.batch_of(stream, indices)
    }

    /// The windows of this epoch, in order of use.
    pub(crate) fn order(&self) -> &[u32] {
        &self.order
    }

    /// A batch of these windows.
    pub(crate) fn batch_of(&self, stream: &Stream, indices: Vec<u32>) -> Batch {
        if !stream.examples.is_empty() {
            let sequences: Vec<&[u32]> =
                indices.iter().map(|number| self.examples_of(number)).collect();
            return Batch::of_examples(stream, self.seq_len, &sequences, indices.clone());
        }
        let mut ids = Vec::with_capacity(indices.len() * self.seq_len);
        for &index in &indices {
            let start = index as usize * self.seq_len;
            ids.extend_from_slice(&stream.ids[start..start + self.seq_len]);
        }
        Batch { indices, ..Batch::new(ids, self.seq_len) }
    }

    /// Examples of a sequence.
    fn examples_of<'a>(&'a self, number: &'a u32) -> &'a [u32] {
        self.packs.get(*number as usize).map_or(std::slice::from_ref(number), |pack| &pack[..])
    }

    /// Share of this epoch's batches of `sequences` examples or packs that is padding.
    pub(crate) fn padding_share(&self, stream: &Stream, sequences: usize) -> f64 {
        let (mut tokens, mut rows) = (0, 0);
        for batch in self.order.chunks(sequences.max(1)) {
            let lengths = batch.iter().map(|number| {
                let examples = self.examples_of(number);
                stream.tokens_of(examples, self.seq_len)
            });
            tokens += lengths.clone().sum::<usize>();
            rows += batch.len() * padded(lengths, self.seq_len);
        }
        1.0 - tokens as f64 / rows.max(1) as f64
    }

    /// Fisher and Yates' shuffle of 0.., written out so that no release of `rand` changes it.
    fn shuffle(&mut self) {
        let mut seed = [0; 32];
        seed[..8].copy_from_slice(&self.seed.to_le_bytes());
        seed[8..16].copy_from_slice(&self.position.epoch.to_le_bytes());
        let mut rng = SeededRng::from_seed(seed);
        self.order.copy_from_slice(&self.numbers);
        for last in (1..self.order.len()).rev() {
            // The high word of the product is uniform up to a bias of 2^-32.
            let pick = (u128::from(rng.next_u64()) * (last as u128 + 1)) >> 64;
            self.order.swap(last, pick as usize);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::message;

    fn stream(len: u32) -> Stream {
        Stream::text((0..len).collect(), "a.txt".to_owned())
    }

    #[test]
    fn targets_are_shifted_inside_each_sequence() {
        let batch = Batch::new(vec![5, 6, 7, 8, 9, 10], 3);
        assert_eq!(batch.targets, [6, 7, IGNORE, 9, 10, IGNORE]);
        assert_eq!((batch.sequences, batch.trained_tokens), (2, 4));
        assert_eq!(batch.segments, [[0, 3]; 6]);
    }

    #[test]
    fn what_is_counted_is_what_batches_have() {
        let mut trained = Vec::new();
        for (stream, seq_len) in [(stream(41), 4), (examples(), 5), (examples(), 64)] {
            let batches = stream.eval_batches(seq_len, 2, Some(stream.windows(seq_len))).unwrap();
            let found: usize = batches.map(|batch| batch.trained_tokens).sum();
            assert_eq!(found, stream.trained_tokens(seq_len));
            trained.push(found);
        }
        assert_eq!(trained, [30, 6, 41]);
    }

    #[test]
    fn evaluation_covers_the_stream_in_order() {
        let lens = |len: u32, max: Option<usize>| -> Vec<(usize, usize)> {
            let stream = stream(len);
            let batches: Vec<_> = stream.eval_batches(4, 2, max).unwrap().collect();
            assert_eq!(stream.eval_batch_count(4, 2, max), batches.len() as u64, "{len} {max:?}");
            let ids: Vec<u32> = batches.iter().flat_map(|batch| batch.ids.clone()).collect();
            assert_eq!(ids, (0..ids.len() as u32).collect::<Vec<_>>());
            batches.iter().map(|batch| (batch.sequences, batch.seq_len)).collect()
        };
        assert_eq!(lens(14, None), [(2, 4), (1, 4), (1, 2)]);
        assert_eq!(lens(13, None), [(2, 4), (1, 4)]);
        assert_eq!(lens(3, None), [(1, 3)]);
        assert_eq!(lens(14, Some(2)), [(2, 4)]);
        assert_eq!(lens(14, Some(9)), [(2, 4), (1, 4), (1, 2)]);
        assert!(message(stream(1).eval_batches(4, 2, None)).contains("a.txt has 1 tokens"));
    }

    #[test]
    fn an_epoch_has_each_window_once_and_another_order_than_the_next() {
        let stream = stream(41);
        let mut sampler = Sampler::new(&stream, 4, 7).unwrap();
        assert_eq!(sampler.windows(), 10);
        let mut epoch = || -> Vec<u32> {
            (0..5).flat_map(|_| sampler.next_batch(&stream, 2).ids).step_by(4).collect()
        };
        let (first, second) = (epoch(), epoch());
        assert_ne!(first, second);
        for mut starts in [first, second] {
            starts.sort_unstable();
            assert_eq!(starts, (0..40).step_by(4).collect::<Vec<_>>());
        }
        let order = |seed| Sampler::new(&stream, 4, seed).unwrap().order;
        assert_eq!(order(7), order(7));
        assert_ne!(order(7), order(8));
    }

    #[test]
    fn a_resumed_sampler_goes_on_alike() {
        let stream = stream(22);
        let mut sampler = Sampler::new(&stream, 2, 3).unwrap();
        for _ in 0..9 {
            // 27 windows used: across two ends of an epoch, once inside a batch.
            sampler.next_batch(&stream, 3);
            let text = serde_json::to_string(&sampler.position()).unwrap();
            let position = serde_json::from_str(&text).unwrap();
            let mut other = Sampler::resume(&stream, 2, 3, position).unwrap();
            let mut same = sampler.clone();
            assert_eq!(other.next_batch(&stream, 5), same.next_batch(&stream, 5));
        }
        assert_eq!(sampler.position(), Position { epoch: 2, index: 5 });
        let far = Position { epoch: 0, index: 12 };
        assert!(message(Sampler::resume(&stream, 2, 3, far)).contains("11 windows"));
    }

    /// Prompts of 2, 5 and 1 ids; sequences of 4, 6 and 40.
    fn examples() -> Stream {
        let all = [(0, 4, 2), (4, 6, 5), (10, 40, 1)];
        let example = |(start, len, prompt)| Example { start, len, prompt };
        let answers =
            all.iter().flat_map(|(_, len, prompt)| (0..*len).map(move |at| at >= *prompt));
        // Another question between two answers.
        let answers = answers.enumerate().map(|(at, answer)| u8::from(answer && at != 20));
        let answers = answers.collect();
        Stream { examples: all.into_iter().map(example).collect(), answers, ..stream(50) }
    }

    #[test]
    fn answers_are_trained_and_padding_is_not() {
        let stream = examples();
        let batch = Batch::of_examples(&stream, 64, &[&[1], &[0]], vec![1, 0]);
        assert_eq!((batch.sequences, batch.seq_len), (2, 16));
        assert_eq!(stream.padded_lens(64), [16, 16, 48]);
        assert_eq!(stream.padded_lens(20), [16, 16, 20]);
        assert_eq!((batch.tokens, batch.trained_tokens), (10, 3));
        assert_eq!(batch.ids[..7], [4, 5, 6, 7, 8, 9, 0]);
        assert_eq!(batch.segments[4..8], [[0, 6], [0, 6], [6, 7], [7, 8]]);
        assert_eq!(batch.segments[16], [0, 4]);
        let trained = |from: usize| -> Vec<(usize, u32)> {
            let targets = batch.targets[from..from + 16].iter().copied().enumerate();
            targets.filter(|(_, target)| *target != IGNORE).collect()
        };
        assert_eq!(trained(0), [(4, 9)]);
        assert_eq!(trained(16), [(1, 2), (2, 3)]);
        let cut = Batch::of_examples(&stream, 20, &[&[2]], vec![2]);
        assert_eq!((cut.seq_len, cut.tokens, cut.trained_tokens), (20, 20, 18));
        assert_eq!(cut.targets[8..11], [19, IGNORE, 21]);
    }

    #[test]
    fn examples_are_sampled_and_evaluated_whole() {
        let stream = examples();
        assert_eq!(stream.fit(5), Fit { usable: vec![0, 2], cut: 1, skipped: 1 });
        assert_eq!(stream.fit(64).usable, [0, 1, 2]);
        let mut sampler = Sampler::new(&stream, 5, 3).unwrap();
        assert_eq!(sampler.windows(), 2);
        let mut seen = sampler.next_batch(&stream, 2).indices;
        seen.sort_unstable();
        assert_eq!(seen, [0, 2]);
        let batches: Vec<Batch> = stream.eval_batches(64, 2, None).unwrap().collect();
        let shapes: Vec<_> = batches.iter().map(|b| (b.sequences, b.seq_len)).collect();
        assert_eq!(shapes, [(2, 16), (1, 48)]);
        assert_eq!(stream.eval_batches(64, 2, Some(1)).unwrap().count(), 1);
        let count = |max| stream.eval_batch_count(64, 2, max);
        assert_eq!((count(None), count(Some(1))), (2, 1));
        let error = message(Sampler::new(&stream, 1, 0));
        assert!(error.contains("number 3, begins behind 1: raise --seq-len"), "{error}");
        assert_eq!((stream.trained_tokens(5), stream.trained_tokens(64)), (2 + 4, 2 + 1 + 38));
        let note = stream.cut_note(5).unwrap();
        assert!(
            note.starts_with("1 of 3 examples are cut at 5 tokens (--seq-len), 1 are"),
            "{note}"
        );
        assert_eq!(stream.cut_note(40), None);
    }

    #[test]
    fn lengths_that_cannot_work_are_refused() {
        assert!(message(Sampler::new(&stream(7), 8, 0)).contains("--seq-len 7"));
        assert!(message(check_seq_len(1, 64)).contains("at least 2"));
        assert!(message(check_seq_len(65, 64)).contains("--seq-len 64 or less"));
        check_seq_len(64, 64).unwrap();
    }
}
