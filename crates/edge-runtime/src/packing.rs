//! Packing: several examples in a sequence, so that little of a batch is padding.
//!
//! Best fit decreasing: the longest examples first, each into the sequence that it fills most, a
//! new one where none has room. What is packed together depends on the lengths alone, not on seed
//! or epoch: an epoch is all sequences in another order, and a sequence's number says what is in
//! it, for checkpoints that resume and for hidden states that are kept.

use std::collections::BTreeMap;

use anyhow::Result;
use serde::{Deserialize, Serialize};

use crate::batch::{Position, Sampler};
use crate::data::Stream;

/// Puts examples of these lengths into sequences of at most `room` tokens; the sequences, each with
/// the places of its examples in `lengths`, rising.
///
/// # Panics
/// When a length exceeds `room`: a mistake of the caller.
pub(crate) fn pack(lengths: &[usize], room: usize) -> Vec<Vec<u32>> {
    let mut longest_first: Vec<u32> = (0..lengths.len() as u32).collect();
    // A stable sort: examples of one length keep their order.
    longest_first.sort_by_key(|&place| std::cmp::Reverse(lengths[place as usize]));
    let mut sequences: Vec<Vec<u32>> = Vec::new();
    // Sequences by the tokens that are left in them.
    let mut open: BTreeMap<usize, Vec<usize>> = BTreeMap::new();
    for place in longest_first {
        let len = lengths[place as usize];
        assert!(len <= room, "an example of {len} tokens and room for {room}");
        let tightest = open.range(len..).next().map(|(left, _)| *left);
        let (sequence, left) = match tightest {
            Some(left) => {
                let same = open.entry(left).or_default();
                let sequence = same.pop().unwrap_or_default();
                if same.is_empty() {
                    open.remove(&left);
                }
                (sequence, left)
            }
            None => {
                sequences.push(Vec::new());
                (sequences.len() - 1, room)
            }
        };
        sequences[sequence].push(place);
        open.entry(left - len).or_default().push(sequence);
    }
    for sequence in &mut sequences {
        sequence.sort_unstable();
    }
    sequences
}

/// What packing makes of examples.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Packing {
    /// Examples that are used.
    pub examples: usize,
    /// Sequences that they are packed into.
    pub sequences: usize,
    /// Share of an epoch's batches that is padding, packed.
    pub padding_share: f64,
    /// The same with each example a sequence of its own.
    pub unpacked_padding_share: f64,
}

impl Packing {
    /// Of a stream's first epoch, in batches of `batch` sequences; `None` of text, of which there
    /// is nothing to pack.
    ///
    /// # Errors
    /// As [`Sampler::new`].
    pub fn of(stream: &Stream, seq_len: usize, batch: usize, seed: u64) -> Result<Option<Self>> {
        if stream.examples.is_empty() {
            return Ok(None);
        }
        let share = |packing: bool| -> Result<(usize, f64)> {
            let stream = Stream { packing, ..stream.clone() };
            let sampler = Sampler::resume(&stream, seq_len, seed, Position::default())?;
            Ok((sampler.windows(), sampler.padding_share(&stream, batch)))
        };
        let ((examples, unpacked_padding_share), (sequences, padding_share)) =
            (share(false)?, share(true)?);
        Ok(Some(Self { examples, sequences, padding_share, unpacked_padding_share }))
    }

    /// For people.
    pub fn text(&self) -> String {
        let Self { examples, sequences, padding_share, unpacked_padding_share } = self;
        format!(
            "{examples} examples in {sequences} sequences, {:.1} in each; padding is {:.1} % of a \
             batch, unpacked {:.1} %",
            *examples as f64 / *sequences as f64,
            100.0 * padding_share,
            100.0 * unpacked_padding_share
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::batch::{Batch, IGNORE};
    use crate::data::Example;

    /// Examples of these lengths, a third of each prompt; ids count up.
    fn stream(lengths: &[usize]) -> Stream {
        let (mut examples, mut answers) = (Vec::new(), Vec::new());
        for &len in lengths {
            let (start, prompt) = (answers.len(), len.div_ceil(3));
            examples.push(Example { start, len, prompt });
            answers.extend((0..len).map(|at| u8::from(at >= prompt)));
        }
        let text = Stream::text((0..answers.len() as u32).collect(), "a.jsonl".into());
        Stream { examples: examples.into(), answers: answers.into(), packing: true, ..text }
    }

    #[test]
    fn a_packed_sequence_has_its_examples_one_behind_the_other() {
        // Two that are cut to 20 tokens, and 9 + 6 + 4 = 19.
        let stream = stream(&[9, 30, 6, 4, 20]);
        let mut sampler = Sampler::new(&stream, 20, 1).unwrap();
        assert_eq!((sampler.windows(), stream.windows(20)), (3, 3));
        let batch = sampler.next_batch(&stream, 3);
        assert_eq!((batch.sequences, batch.seq_len, batch.tokens), (3, 20, 20 + 20 + 19));
        let row = 20 * batch.indices.iter().position(|&number| number == 2).unwrap();
        let segments = &batch.segments[row..row + 20];
        assert_eq!(segments[..9], [[0, 9]; 9]);
        assert_eq!(segments[9..15], [[9, 15]; 6]);
        assert_eq!(segments[15..], [[15, 19], [15, 19], [15, 19], [15, 19], [19, 20]]);
        let ids = &batch.ids[row..row + 20];
        assert_eq!(ids[..10], [0, 1, 2, 3, 4, 5, 6, 7, 8, 39]);
        assert_eq!((ids[15], ids[19]), (45, 0));
        // Answers alone, and nothing across an edge.
        let targets = batch.targets[row..row + 20].iter().enumerate();
        let trained: Vec<(usize, u32)> =
            targets.map(|(at, id)| (at, *id)).filter(|(_, id)| *id != IGNORE).collect();
        let first = [(2, 3), (3, 4), (4, 5), (5, 6), (6, 7), (7, 8)];
        let rest = [(10, 41), (11, 42), (12, 43), (13, 44), (16, 47), (17, 48)];
        assert_eq!(trained, [first, rest].concat());
        assert_eq!(batch.trained_tokens, 12 + 10 + 13);
    }

    #[test]
    fn an_epoch_trains_what_it_does_unpacked_with_less_padding() {
        let lengths: Vec<usize> = (0..60).map(|at| 2 + at * at * 17 % 41).collect();
        let stream = stream(&lengths);
        let unpacked = Stream { packing: false, ..stream.clone() };
        let epoch = |stream: &Stream, seed| -> Vec<Batch> {
            let mut sampler = Sampler::new(stream, 64, seed).unwrap();
            (0..sampler.windows()).map(|_| sampler.next_batch(stream, 1)).collect()
        };
        let sum =
            |batches: &[Batch], of: fn(&Batch) -> usize| batches.iter().map(of).sum::<usize>();
        let (packed, alone) = (epoch(&stream, 3), epoch(&unpacked, 3));
        let tokens = |batch: &Batch| batch.tokens;
        let trained = |batch: &Batch| batch.trained_tokens;
        assert_eq!(sum(&packed, tokens), sum(&alone, tokens));
        assert_eq!(sum(&packed, trained), stream.trained_tokens(64));
        let mut ids: Vec<u32> =
            packed.iter().flat_map(|batch| &batch.ids[..batch.tokens]).copied().collect();
        ids.sort_unstable();
        assert_eq!(ids, stream.ids[..]);
        // What a number stands for does not depend on the seed, the order does.
        let other = epoch(&stream, 4);
        assert_ne!(other[0].indices, packed[0].indices);
        for batch in &other {
            assert!(packed.contains(batch), "sequence {:?}", batch.indices);
        }
        let packing = Packing::of(&stream, 64, 4, 3).unwrap().unwrap();
        assert_eq!((packing.examples, packing.sequences), (60, packed.len()));
        assert!(
            packing.padding_share < 0.05 && packing.unpacked_padding_share > 0.3,
            "{packing:?}"
        );
        assert!(packing.text().starts_with("60 examples in "), "{}", packing.text());
        assert_eq!(Packing::of(&unpacked, 64, 4, 3).unwrap(), Some(packing));
    }

    #[test]
    fn a_resumed_sampler_packs_alike() {
        let stream = stream(&[9, 30, 6, 4, 20, 11, 7, 5, 3, 17]);
        let mut sampler = Sampler::new(&stream, 32, 3).unwrap();
        for _ in 0..4 {
            // Across the ends of epochs, also inside a batch.
            sampler.next_batch(&stream, 3);
            let mut other = Sampler::resume(&stream, 32, 3, sampler.position()).unwrap();
            assert_eq!(other.next_batch(&stream, 5), sampler.clone().next_batch(&stream, 5));
        }
        assert_eq!(sampler.position().epoch, 2);
    }

    #[test]
    fn there_is_nothing_to_pack_in_text() {
        let text = Stream::text((0..50).collect(), "a.txt".into());
        let packed = Stream { packing: true, ..text.clone() };
        assert_eq!(Packing::of(&packed, 8, 4, 0).unwrap(), None);
        let batch = |stream: &Stream| Sampler::new(stream, 8, 0).unwrap().next_batch(stream, 3);
        assert_eq!(batch(&packed), batch(&text));
        assert_eq!(packed.windows(8), 6);
    }

    #[test]
    fn each_goes_where_it_leaves_least_room() {
        assert_eq!(pack(&[3, 6, 4, 10, 2, 5], 10), [vec![3], vec![1, 2], vec![0, 4, 5]]);
        // 8 goes in front of 7; 3 then fits both and fills the second.
        assert_eq!(pack(&[7, 3, 8, 1], 10), [vec![2, 3], vec![0, 1]]);
        assert_eq!(pack(&[4; 5], 9), [vec![0, 1], vec![2, 3], vec![4]]);
        assert_eq!(pack(&[], 9), Vec::<Vec<u32>>::new());
    }

    #[test]
    fn everything_is_packed_once_and_fits() {
        let lengths: Vec<usize> = (0..500).map(|at| 1 + at * at * 31 % 97).collect();
        let sequences = pack(&lengths, 128);
        let mut seen: Vec<u32> = sequences.concat();
        seen.sort_unstable();
        assert_eq!(seen, (0..500).collect::<Vec<_>>());
        let filled = |sequence: &Vec<u32>| -> usize {
            sequence.iter().map(|&place| lengths[place as usize]).sum()
        };
        assert!(sequences.iter().all(|sequence| filled(sequence) <= 128));
        let tokens: usize = lengths.iter().sum();
        assert!(sequences.len() <= tokens.div_ceil(128) + 3, "{} sequences", sequences.len());
        assert_eq!(pack(&lengths, 128), sequences);
    }
}
