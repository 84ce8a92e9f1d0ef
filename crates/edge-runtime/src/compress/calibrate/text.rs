//! Calibration text: windows of a token stream, chosen evenly or at random.

use std::path::PathBuf;

use anyhow::{Result, ensure};

use super::hash::Fnv;
use crate::batch::{Batch, Sampler};
use crate::data::{DataSpec, Dataset, Stream};
use crate::tokenizer::Tokenizer;

/// Windows of `seq_len` tokens that a model is calibrated with.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CalibrationSet {
    ids: Vec<u32>,
    seq_len: usize,
}

impl CalibrationSet {
    /// Reads and tokenises texts (of a folder its `train.*`) and takes `sequences` of their
    /// windows: evenly spaced ones in order, or with a seed random ones, none twice.
    ///
    /// # Errors
    /// A file is not usable, or the texts have too few tokens; the sentence says how many there
    /// are and how many are needed.
    pub fn new(
        tokenizer: &Tokenizer,
        paths: &[PathBuf],
        seq_len: usize,
        sequences: usize,
        seed: Option<u64>,
    ) -> Result<Self> {
        let spec = DataSpec { data: paths.to_vec(), ..DataSpec::default() };
        let stream = Dataset::load(&spec, tokenizer)?.train.into_text();
        Self::of_stream(&stream, seq_len, sequences, seed)
    }

    /// As [`CalibrationSet::new`], of a stream.
    ///
    /// # Errors
    /// It has too few tokens.
    pub fn of_stream(
        stream: &Stream,
        seq_len: usize,
        sequences: usize,
        seed: Option<u64>,
    ) -> Result<Self> {
        ensure!(seq_len >= 2, "a calibration sequence has at least 2 tokens, not {seq_len}");
        ensure!(sequences >= 1, "calibration needs at least one sequence");
        let windows = stream.windows(seq_len);
        ensure!(
            sequences <= windows,
            "{} has {} tokens, and calibration with {sequences} sequences of {seq_len} tokens \
             needs {}: add text, or take fewer or shorter sequences",
            stream.source,
            stream.ids.len(),
            sequences.saturating_mul(seq_len)
        );
        let ids = match seed {
            Some(seed) => {
                let mut sampler = Sampler::new(stream, seq_len, seed)?;
                sampler.next_batch(stream, sequences).ids
            }
            None => {
                let window = |index| index * windows / sequences * seq_len;
                let starts = (0..sequences).map(window);
                starts.flat_map(|start| &stream.ids[start..start + seq_len]).copied().collect()
            }
        };
        Ok(Self { ids, seq_len })
    }

    /// Number of sequences.
    pub fn sequences(&self) -> usize {
        self.ids.len() / self.seq_len
    }

    /// Tokens of a sequence.
    pub fn seq_len(&self) -> usize {
        self.seq_len
    }

    /// Tokens in all.
    pub fn tokens(&self) -> usize {
        self.ids.len()
    }

    /// `count` sequences from `first` on.
    ///
    /// # Panics
    /// When there are fewer.
    pub fn batch(&self, first: usize, count: usize) -> Batch {
        let ids = &self.ids[first * self.seq_len..][..count * self.seq_len];
        Batch::new(ids.to_vec(), self.seq_len)
    }

    /// Hash of the ids and of where they are cut.
    pub fn hash(&self) -> String {
        let mut hash = Fnv::default();
        hash.number(self.seq_len as u64);
        hash.bytes(bytemuck::cast_slice(&self.ids));
        hash.hex()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{byte_tokenizer, message};

    fn stream(len: u32) -> Stream {
        Stream::text((0..len).collect(), "a.txt".to_owned())
    }

    fn starts(set: &CalibrationSet) -> Vec<u32> {
        set.ids.iter().copied().step_by(set.seq_len).collect()
    }

    #[test]
    fn windows_are_spread_over_the_text() {
        let set = |sequences, seed| {
            CalibrationSet::of_stream(&stream(43), 4, sequences, seed).expect("a set")
        };
        assert_eq!(starts(&set(3, None)), [0, 12, 24]);
        assert_eq!(starts(&set(10, None)), (0..40).step_by(4).collect::<Vec<_>>());
        let mut random = starts(&set(10, Some(1)));
        assert_ne!(random, starts(&set(10, Some(2))));
        assert_eq!(random, starts(&set(10, Some(1))));
        random.sort_unstable();
        assert_eq!(random, starts(&set(10, None)));
        assert_eq!(set(3, None).batch(1, 2).ids, [12, 13, 14, 15, 24, 25, 26, 27]);
        assert_eq!((set(3, None).tokens(), set(3, None).sequences()), (12, 3));
    }

    #[test]
    fn the_hash_knows_ids_and_lengths() {
        let hash = |len, seq_len, sequences| {
            CalibrationSet::of_stream(&stream(len), seq_len, sequences, None).expect("a set").hash()
        };
        assert_eq!(hash(16, 4, 4), hash(17, 4, 4));
        assert_ne!(hash(16, 4, 4), hash(16, 8, 2));
        assert_ne!(hash(16, 4, 4), hash(16, 4, 3));
    }

    #[test]
    fn a_text_that_is_too_short_says_by_how_much() {
        let error = message(CalibrationSet::of_stream(&stream(43), 4, 11, None));
        assert!(error.contains("a.txt has 43 tokens") && error.contains("needs 44"), "{error}");
        assert!(message(CalibrationSet::of_stream(&stream(43), 1, 1, None)).contains("at least 2"));
        assert!(message(CalibrationSet::of_stream(&stream(43), 4, 0, None)).contains("at least"));
        let (dir, tokenizer) = byte_tokenizer(None);
        let path = dir.path().join("b.txt");
        std::fs::write(&path, "0123456789").expect("a text");
        let tokenizer = tokenizer.expect("a tokenizer");
        let set = |sequences| {
            CalibrationSet::new(&tokenizer, std::slice::from_ref(&path), 5, sequences, None)
        };
        // `<s>` and ten bytes.
        assert_eq!(set(2).expect("a set").tokens(), 10);
        assert!(message(set(3)).contains("b.txt has 11 tokens"));
    }
}
