//! The speed-up of Edge-LLM (arXiv 2406.15758) on the paper's memory hierarchy, simulated.
//!
//! The paper reports 2.92 x over vanilla tuning from a simulator that is not public. This is its
//! cost model with LLaMA-7B's shapes, and what each part of the method adds to the ratio.
//!
//! A *step* is a block (or the head) for a group of the batch's sequences, forward or backward:
//!
//! ```text
//! Eq. 3   T = max(r_to_sram, w_to_dram, r_to_dram, w_to_ssd, T_comp)     transfers overlap
//! naive   T = r_to_sram + w_to_dram + r_to_dram + w_to_ssd + T_comp      one after the other
//! ```
//!
//! and a tuning step takes the sum over its steps. Vanilla is LoRA on 8-bit weights: forward and
//! backward through all blocks, sequence by sequence, naive. Features are switched on one after
//! another, in the order of [`Feature::ALL`]; other orders divide the same total differently.
//!
//! # Traffic
//! * SRAM: half of it holds a tile of f32 sums `[m, n]`, so a product `[M, K] x [K, N]` reads its
//!   weight `M / m` times and its input `N / n` times, with the `m` that reads least. Tiles are
//!   not rounded to whole ones: a lower bound.
//! * Values between products go through DRAM, as 1 MB does not hold them: written once, read by
//!   whoever needs them, and in the backward pass the same again for their gradients.
//! * DRAM holds all blocks' weights, embedding and head in 16 bits, all adapters with gradient and
//!   Adam's moments, and the values that the backward pass needs. What does not fit is on SSD:
//!   weights first, which are read in each pass, then values, which are written and read.
//! * Sequence by sequence, weights on SSD are read for every sequence. A group of sequences
//!   (column order, if it is the whole batch) reads them once, has tiles of more rows, and keeps
//!   the values of all. The scheduler tries every group size that divides the batch.
//!
//! # Assumptions that the paper does not settle
//! * [`Compute`]: whether the array is faster with fewer bits and with pruned weights.
//! * Throughput of an 8-bit product: the profile's `flops_f16`, which is assumed for the paper's.
//! * Activations, gradients and adapters have [`StudyOptions::value_bits`]; attention, adapters
//!   and the head are computed at that width. Nothing is recomputed, as in the released code.
//! * Pruned weights are stored as values and a mask of one bit a position, or dense if smaller.
//! * Bits as in Eq. 1: one more in blocks 2, 29, 30 and 31 (the released code's list).
//! * Windows take turns, so that steps of each are equally many. The first block of a window
//!   hands a gradient down that nobody needs; the optimiser's update is left out. Both below 2 %.

use crate::profiles::DeviceProfile;
use crate::shape::{Extras, ModelShape};

mod display;
mod simulator;
// Minutes of arithmetic for Miri.
#[cfg(all(test, not(miri)))]
mod tests;

use simulator::Simulator;

/// The paper's speed-up over vanilla tuning; at which bits, it does not say.
pub const PAPER_RATIO: f64 = 2.92;

/// Multiples of the throughput for which a case has the ratio too, as the paper's is assumed.
pub const THROUGHPUTS: [f64; 5] = [0.25, 0.5, 1.0, 2.0, 4.0];

/// A part of the method.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Feature {
    /// Backward through one window instead of all blocks.
    Depth,
    /// Forward stops at the window's exit.
    Exit,
    /// LUC's bits instead of 8.
    Bits,
    /// LUC's pruning.
    Sparsity,
    /// Transfers overlap with computing, and the order of sequences is searched.
    Scheduling,
}

impl Feature {
    /// All features, in the order in which they are switched on.
    pub const ALL: [Self; 5] =
        [Self::Depth, Self::Exit, Self::Bits, Self::Sparsity, Self::Scheduling];

    /// A word for tables.
    pub fn name(self) -> &'static str {
        match self {
            Self::Depth => "depth",
            Self::Exit => "exit",
            Self::Bits => "bits",
            Self::Sparsity => "sparsity",
            Self::Scheduling => "scheduling",
        }
    }
}

/// What the array makes of compressed weights; the paper's is not published.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Compute {
    /// A product takes `bits / 8` of the time of 8 bits, and pruned weights are skipped: a
    /// bit-serial array, or one of scalable precision, that uses every zero.
    Scales,
    /// A product takes the time of 8 bits, dense, whatever is stored: less is moved only.
    Fixed,
}

impl Compute {
    /// Both, the optimistic one first.
    pub const ALL: [Self; 2] = [Self::Scales, Self::Fixed];
}

/// What is tuned.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct StudyOptions {
    /// Sequences of a tuning step; the released code accumulates 16 of one each.
    pub batch: u32,
    /// Tokens of a sequence.
    pub seq_len: u32,
    /// Rank of the adapters, on all linear layers.
    pub rank: u32,
    /// Windows of equally many blocks, with an exit each.
    pub windows: u32,
    /// Share of the weights that LUC prunes, 0 to 1.
    pub sparsity: f64,
    /// Bits of activations, gradients, adapters, and of the head's weights.
    pub value_bits: f64,
}

impl Default for StudyOptions {
    fn default() -> Self {
        Self { batch: 16, seq_len: 512, rank: 8, windows: 4, sparsity: 0.5, value_bits: 16.0 }
    }
}

/// A tuning step after one more feature was switched on.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Stage {
    /// The feature.
    pub feature: Feature,
    /// Mean time of a tuning step over the windows, seconds.
    pub step_s: f64,
    /// Vanilla's time over this one's.
    pub ratio: f64,
    /// The time of the stage before over this one's.
    pub factor: f64,
}

/// Edge-LLM at one target of bits, beside vanilla.
#[derive(Clone, Debug, PartialEq)]
pub struct StudyCase {
    /// The assumption about computing.
    pub compute: Compute,
    /// LUC's target `B`; some blocks have one more.
    pub bits: u32,
    /// A tuning step of vanilla, seconds.
    pub vanilla_s: f64,
    /// The same with the scheduling of Edge-LLM, seconds.
    pub vanilla_scheduled_s: f64,
    /// The stages, in the order of [`Feature::ALL`].
    pub stages: [Stage; 5],
    /// Sequences at a time, as the scheduler chose; of equally fast numbers the least.
    pub group: u32,
    /// [`StudyCase::ratio`] with the throughput times each of [`THROUGHPUTS`].
    pub ratios: [f64; 5],
}

impl StudyCase {
    /// A tuning step with all features, seconds.
    pub fn step_s(&self) -> f64 {
        self.stages[4].step_s
    }

    /// Vanilla's time over that with all features.
    pub fn ratio(&self) -> f64 {
        self.vanilla_s / self.step_s()
    }

    /// The ratio if vanilla is scheduled as well as Edge-LLM.
    pub fn ratio_scheduled(&self) -> f64 {
        self.vanilla_scheduled_s / self.step_s()
    }

    /// A stage's share of the speed-up, by logarithms: the shares add up to 1, or are all 0 if
    /// nothing became faster.
    pub fn share(&self, stage: &Stage) -> f64 {
        let all = self.ratio().ln();
        if all > 0.0 { stage.factor.ln() / all } else { 0.0 }
    }
}

/// The simulated claim of the paper on one device.
#[derive(Clone, Debug, PartialEq)]
pub struct Study {
    /// The device.
    pub profile: DeviceProfile,
    /// What was tuned.
    pub options: StudyOptions,
    /// 5, 4 and 3 bits for each of [`Compute::ALL`].
    pub cases: Vec<StudyCase>,
}

/// The shapes of LLaMA-7B, the paper's model.
pub const LLAMA_7B: ModelShape = ModelShape {
    vocab_size: 32_000,
    hidden_size: 4096,
    intermediate_size: 11_008,
    num_blocks: 32,
    num_heads: 32,
    num_kv_heads: 32,
    head_dim: 128,
    tied_head: false,
    extras: Extras::NONE,
};

/// Simulates tuning LLaMA-7B on a device: vanilla, and Edge-LLM with 5, 4 and 3 bits, 50 %
/// sparsity and 4 windows unless the options say otherwise. Counts of 0 are taken as 1.
pub fn study(profile: &DeviceProfile, options: StudyOptions) -> Study {
    let simulator = Simulator::new(profile, options);
    let mut cases = Vec::new();
    for compute in Compute::ALL {
        for bits in [5, 4, 3] {
            cases.push(simulator.case(compute, bits));
        }
    }
    Study { profile: *profile, options: simulator.options, cases }
}
