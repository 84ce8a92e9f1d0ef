//! Blocks that are not kept on the device: their weights come into transfer slots when their turn
//! is near.
//!
//! Streamed blocks are numbered from the bottom up and block `i` of `n` always lies in slot
//! `i mod slots`, so that what a dispatch binds never changes. Going up takes the slots in turn,
//! and so does going down: what was used last at the turning point is still there.

use crate::job::Job;
use crate::params::ALIGN_WORDS;
use crate::shape::{ModelShape, Projection, Shard};

/// Which blocks are streamed, and through what.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Streaming {
    /// Of each block, whether it stays on the device.
    pub resident: Vec<bool>,
    /// Transfer slots: blocks that are on the device at once beside those that stay. At least 1.
    pub slots: u32,
    /// Whether a slot has staging memory of its own, for devices whose memory the host cannot
    /// write.
    pub staged: bool,
    /// Whether a block is loaded ahead of its turn, while the device computes; without, when it is
    /// its turn.
    pub ahead: bool,
}

impl Streaming {
    /// The slot of each block; `None` where it stays on the device.
    pub fn slot_of(&self) -> Vec<Option<usize>> {
        let mut streamed = 0;
        let slot = |resident: &bool| {
            (!resident).then(|| {
                streamed += 1;
                (streamed - 1) % self.slots.max(1) as usize
            })
        };
        self.resident.iter().map(slot).collect()
    }

    /// Whether a block is streamed.
    pub fn streams(&self, block: u32) -> bool {
        !self.resident.get(block as usize).copied().unwrap_or(true)
    }

    /// Blocks that are streamed.
    pub fn streamed(&self) -> u32 {
        self.resident.iter().filter(|resident| !**resident).count() as u32
    }

    /// Name of a slot's buffer.
    pub fn slot_name(slot: usize) -> String {
        format!("stream.{slot}")
    }
}

/// A part of a block's weights in its slot.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BlockPart {
    /// Of this projection.
    pub projection: Projection,
    /// Number of the shard.
    pub index: usize,
    /// Its rows.
    pub shard: Shard,
    /// Scales and minima instead of values.
    pub scales: bool,
    /// First word in the slot, a multiple of [`ALIGN_WORDS`].
    pub offset: u64,
    /// Words.
    pub words: u64,
}

/// The parts of a block in its slot, in the order in which files have them, and the words that
/// they take there.
pub fn block_parts(
    shape: &ModelShape,
    job: &Job,
    block: u32,
    max_shard_bytes: u64,
) -> (Vec<BlockPart>, u64) {
    let (mut parts, mut offset) = (Vec::new(), 0u64);
    for projection in Projection::ALL {
        let (_, k) = shape.projection(projection);
        let format = job.blocks[block as usize].get(projection);
        let shards = job.projection_shards(shape, block, projection, max_shard_bytes);
        for (index, shard) in shards.into_iter().enumerate() {
            let mut add = |scales, words: u64| {
                parts.push(BlockPart { projection, index, shard, scales, offset, words });
                offset = (offset + words).next_multiple_of(ALIGN_WORDS);
            };
            add(false, format.value_words(shard.rows, k));
            if format.is_packed() {
                add(true, format.scale_words(shard.rows, k));
            }
        }
    }
    (parts, offset)
}

/// Words of each transfer slot: room for the largest of the blocks that take turns in it.
pub(crate) fn slot_words(shape: &ModelShape, job: &Job, max_shard_bytes: u64) -> Vec<u64> {
    let Some(streaming) = &job.streaming else { return Vec::new() };
    let mut most = vec![0; streaming.slots.min(streaming.streamed()) as usize];
    for (block, slot) in (0..).zip(streaming.slot_of()) {
        let Some(slot) = slot else { continue };
        let (_, words) = block_parts(shape, job, block, max_shard_bytes);
        most[slot] = words.max(most[slot]);
    }
    most
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slots_go_round_over_streamed_blocks() {
        let resident = vec![false, true, false, false, true, false];
        let streaming = Streaming { resident, slots: 2, staged: false, ahead: true };
        let expected = [Some(0), None, Some(1), Some(0), None, Some(1)];
        assert_eq!(streaming.slot_of(), expected);
        assert_eq!(
            (streaming.streamed(), streaming.streams(1), streaming.streams(5)),
            (4, false, true)
        );
    }
}
