//! Windows of a token stream, in shuffled order for training and in order for evaluation.
//!
//! A window is `seq_len` consecutive tokens: its first token is given and the others are
//! predicted, in training and in evaluation alike. Of examples each is a sequence, of which the
//! answer is predicted; those of a batch are padded on the right, which causal attention does not
//! see, to the longest of them.

use anyhow::{Result, bail, ensure};
use edge_kernels::util::SeededRng;
use rand::{Rng, SeedableRng};
use serde::{Deserialize, Serialize};

use crate::data::{Example, Stream};

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
        Self { ids, targets, sequences, seq_len, trained_tokens, tokens, indices }
    }

    /// A batch of examples, the numbers `indices` of a stream, none above `seq_len` tokens.
    fn of_examples(stream: &Stream, seq_len: usize, indices: &[u32]) -> Self {
        let cut = |&index: &u32| {
            let example = stream.examples[index as usize];
            let ids = example.start..example.start + example.len.min(seq_len);
            (&stream.ids[ids.clone()], &stream.answers[ids])
        };
        let examples: Vec<(&[u32], &[u8])> = indices.iter().map(cut).collect();
        let longest = examples.iter().map(|(ids, _)| ids.len()).max().unwrap_or(1);
        let padded = longest.next_multiple_of(PADDED_TO).min(seq_len);
        let mut batch = Self {
            ids: Vec::with_capacity(examples.len() * padded),
            targets: Vec::with_capacity(examples.len() * padded),
            sequences: examples.len(),
            seq_len: padded,
            trained_tokens: 0,
            tokens: examples.iter().map(|(ids, _)| ids.len()).sum(),
            indices: indices.to_vec(),
        };
        for (ids, answers) in examples {
            batch.ids.extend(ids);
            batch.ids.resize(batch.ids.len() + padded - ids.len(), 0);
            let next = ids.iter().zip(answers).skip(1);
            batch.targets.extend(next.map(|(&id, &answer)| if answer > 0 { id } else { IGNORE }));
            batch.targets.resize(batch.ids.len(), IGNORE);
            batch.trained_tokens += answers.iter().skip(1).filter(|answer| **answer > 0).count();
        }
        batch
    }
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
    /// Windows of exactly `seq_len` tokens, of which the rest of the stream is left out; examples.
    pub fn windows(&self, seq_len: usize) -> usize {
        if self.examples.is_empty() { self.ids.len() / seq_len } else { self.examples.len() }
    }

    /// Tokens of a sequence in a batch of its own.
    pub fn padded_len(&self, index: usize, seq_len: u32) -> u32 {
        let padded = |example: &Example| example.len.next_multiple_of(PADDED_TO);
        let len = self.examples.get(index).map_or(seq_len as usize, padded);
        len.min(seq_len as usize) as u32
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
                Batch::of_examples(self, seq_len, &numbers[first..last])
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
/// number of the epoch decide.
#[derive(Clone, Debug)]
pub struct Sampler {
    seed: u64,
    seq_len: usize,
    position: Position,
    /// Windows or examples that are used, rising.
    numbers: Vec<u32>,
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
        let numbers = stream.numbers(seq_len)?;
        let windows = numbers.len();
        ensure!(
            position.index <= windows,
            "{} has {windows} windows and the checkpoint stands at window {}: resume with the \
             data that the run began with",
            stream.source,
            position.index
        );
        let mut sampler = Self { seed, seq_len, position, order: numbers.clone(), numbers };
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
        if !stream.examples.is_empty() {
            return Batch::of_examples(stream, self.seq_len, &indices);
        }
        let mut ids = Vec::with_capacity(sequences * self.seq_len);
        for &index in &indices {
            let start = index as usize * self.seq_len;
            ids.extend_from_slice(&stream.ids[start..start + self.seq_len]);
        }
        Batch { indices, ..Batch::new(ids, self.seq_len) }
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
        let batch = Batch::of_examples(&stream, 64, &[1, 0]);
        assert_eq!((batch.sequences, batch.seq_len), (2, 16));
        let own = [(0, 64), (2, 64), (2, 20)].map(|(index, len)| stream.padded_len(index, len));
        assert_eq!(own, [16, 48, 20]);
        assert_eq!((batch.tokens, batch.trained_tokens), (10, 3));
        assert_eq!(batch.ids[..7], [4, 5, 6, 7, 8, 9, 0]);
        let trained = |from: usize| -> Vec<(usize, u32)> {
            let targets = batch.targets[from..from + 16].iter().copied().enumerate();
            targets.filter(|(_, target)| *target != IGNORE).collect()
        };
        assert_eq!(trained(0), [(4, 9)]);
        assert_eq!(trained(16), [(1, 2), (2, 3)]);
        let cut = Batch::of_examples(&stream, 20, &[2]);
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
