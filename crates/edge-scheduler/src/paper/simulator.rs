//! The cost model of [`crate::paper`]: bytes and operations of each step, and their time.

use super::{Compute, Feature, LLAMA_7B, Stage, StudyCase, StudyOptions, THROUGHPUTS};
use crate::profiles::DeviceProfile;
use crate::shape::{ModelShape, Projection, Window};

/// Bits of vanilla's weights, and those that the assumed throughput is of.
const VANILLA_BITS: f64 = 8.0;

/// Blocks that get one bit more, by the released code.
const SENSITIVE_BLOCKS: [u32; 4] = [2, 29, 30, 31];

/// Bytes of a trained value: 16 bits, and f32 for its gradient and Adam's two moments.
const TRAINED_BYTES: f64 = 2.0 + 4.0 + 8.0;

/// What is switched on.
#[derive(Clone, Copy)]
struct Setup {
    on: [bool; 5],
    compute: Compute,
    bits: u32,
}

impl Setup {
    fn has(&self, feature: Feature) -> bool {
        self.on[feature as usize]
    }
}

/// The transfers of Eq. 3 in bytes, and computing as operations of 8-bit products.
#[derive(Clone, Copy, Debug, Default)]
struct Cost {
    r_to_sram_bytes: f64,
    w_to_dram_bytes: f64,
    r_to_dram_bytes: f64,
    w_to_ssd_bytes: f64,
    flops: f64,
}

/// What of a block's data is on SSD, 0 to 1.
#[derive(Clone, Copy, Debug)]
struct OnSsd {
    weights: f64,
    values: f64,
}

/// The cost model of one device and one set of options.
pub(super) struct Simulator<'a> {
    profile: &'a DeviceProfile,
    /// The options, within their ranges.
    pub(super) options: StudyOptions,
    shape: ModelShape,
    windows: Vec<Window>,
}

impl<'a> Simulator<'a> {
    pub(super) fn new(profile: &'a DeviceProfile, mut options: StudyOptions) -> Self {
        let shape = LLAMA_7B;
        options.batch = options.batch.max(1);
        options.seq_len = options.seq_len.max(1);
        options.windows = options.windows.clamp(1, shape.num_blocks);
        options.sparsity = options.sparsity.clamp(0.0, 1.0);
        let windows = Window::split(shape.num_blocks, options.windows);
        Self { profile, options, shape, windows }
    }

    pub(super) fn case(&self, compute: Compute, bits: u32) -> StudyCase {
        let mut setup = Setup { on: [false; 5], compute, bits };
        let (vanilla_s, _) = self.step_s(&setup);
        setup.on[Feature::Scheduling as usize] = true;
        let (vanilla_scheduled_s, _) = self.step_s(&setup);
        setup.on = [false; 5];
        let (mut before_s, mut group) = (vanilla_s, 1);
        let stages = Feature::ALL.map(|feature| {
            setup.on[feature as usize] = true;
            let step_s;
            (step_s, group) = self.step_s(&setup);
            let factor = before_s / step_s;
            before_s = step_s;
            Stage { feature, step_s, ratio: vanilla_s / step_s, factor }
        });
        let ratios = THROUGHPUTS.map(|factor| self.ratio(compute, bits, factor));
        StudyCase { compute, bits, vanilla_s, vanilla_scheduled_s, stages, group, ratios }
    }

    /// Vanilla's time over that with all features, with the throughput times `factor`.
    fn ratio(&self, compute: Compute, bits: u32, factor: f64) -> f64 {
        let mut profile = *self.profile;
        profile.flops_f16.value *= factor;
        let simulator = Simulator::new(&profile, self.options);
        let step_s = |on| simulator.step_s(&Setup { on, compute, bits }).0;
        step_s([false; 5]) / step_s([true; 5])
    }

    /// A tuning step in seconds, and the sequences at a time: the best if the order is searched,
    /// else one.
    fn step_s(&self, setup: &Setup) -> (f64, u32) {
        let mut best = (self.step_in_groups_s(setup, 1), 1);
        let most = if setup.has(Feature::Scheduling) { self.options.batch } else { 1 };
        for group in (2..=most).filter(|group| self.options.batch.is_multiple_of(*group)) {
            let step_s = self.step_in_groups_s(setup, group);
            // Rounding alone is no reason to keep the values of more sequences.
            if step_s < best.0 * (1.0 - 1e-9) {
                best = (step_s, group);
            }
        }
        best
    }

    /// The same with `group` sequences at a time.
    fn step_in_groups_s(&self, setup: &Setup, group: u32) -> f64 {
        let num_blocks = self.shape.num_blocks;
        let all = [Window { first: 0, end: num_blocks }];
        let windows = if setup.has(Feature::Depth) { &self.windows[..] } else { &all };
        let seconds = |cost: Cost| self.seconds(cost, setup.has(Feature::Scheduling));
        let mut sum_s = 0.0;
        for window in windows {
            let end = if setup.has(Feature::Exit) { window.end } else { num_blocks };
            let on_ssd = self.on_ssd(setup, group, window.depth());
            for block in 0..end {
                let tuned = window.contains(block);
                sum_s += seconds(self.forward(setup, group, block, tuned, on_ssd));
            }
            for block in window.first..window.end {
                sum_s += seconds(self.backward(setup, group, block, on_ssd));
            }
            sum_s += 2.0 * seconds(self.head(setup, group));
        }
        let groups = f64::from(self.options.batch / group);
        sum_s / windows.len() as f64 * groups
    }

    fn seconds(&self, cost: Cost, overlap: bool) -> f64 {
        let memory_bytes_per_s = self.profile.memory_bytes_per_s.value;
        let storage_bytes_per_s = self.profile.storage_bytes_per_s.value;
        let parts_s = [
            cost.r_to_sram_bytes / memory_bytes_per_s,
            cost.w_to_dram_bytes / memory_bytes_per_s,
            cost.r_to_dram_bytes / storage_bytes_per_s,
            cost.w_to_ssd_bytes / storage_bytes_per_s,
            cost.flops / self.profile.flops_f16.value,
        ];
        if overlap { parts_s.into_iter().fold(0.0, f64::max) } else { parts_s.iter().sum() }
    }

    /// Bits of a block's stored weights, and the share that is stored.
    fn bits_and_density(&self, setup: &Setup, block: u32) -> (f64, f64) {
        let extra = u32::from(SENSITIVE_BLOCKS.contains(&block));
        let bits = f64::from(setup.bits + extra);
        let bits = if setup.has(Feature::Bits) { bits } else { VANILLA_BITS };
        let density = if setup.has(Feature::Sparsity) { 1.0 - self.options.sparsity } else { 1.0 };
        (bits, density)
    }

    /// Bytes of a weight in a block with bits of LUC and pruned.
    #[cfg(test)]
    pub(super) fn bytes_of(&self, bits: u32, block: u32) -> f64 {
        self.weight_bytes(&Setup { on: [true; 5], compute: Compute::Scales, bits }, block)
    }

    /// Bytes of a weight in a block, as it is stored.
    fn weight_bytes(&self, setup: &Setup, block: u32) -> f64 {
        let (bits, density) = self.bits_and_density(setup, block);
        // A mask has a bit a position, and no mask is needed if nothing is pruned.
        bits.min(bits * density + 1.0) / 8.0
    }

    /// Time of a product with a weight of the block, as a multiple of 8 bits' and dense.
    fn weight_scale(&self, setup: &Setup, block: u32) -> f64 {
        let (bits, density) = self.bits_and_density(setup, block);
        match setup.compute {
            Compute::Scales => bits / VANILLA_BITS * density,
            Compute::Fixed => 1.0,
        }
    }

    /// The same of a product whose operands are values.
    fn value_scale(&self, setup: &Setup) -> f64 {
        match setup.compute {
            Compute::Scales => self.options.value_bits / VANILLA_BITS,
            Compute::Fixed => 1.0,
        }
    }

    fn value_bytes(&self) -> f64 {
        self.options.value_bits / 8.0
    }

    fn tokens(&self, group: u32) -> f64 {
        f64::from(group) * f64::from(self.options.seq_len)
    }

    /// Weights in the projections of a block.
    fn block_weights(&self) -> f64 {
        let size = |(n, k): (u32, u32)| f64::from(n) * f64::from(k);
        Projection::ALL.into_iter().map(|p| size(self.shape.projection(p))).sum()
    }

    /// Values of a block's adapters.
    fn adapter_values(&self) -> f64 {
        let sides = |(n, k): (u32, u32)| f64::from(n) + f64::from(k);
        let sum: f64 = Projection::ALL.into_iter().map(|p| sides(self.shape.projection(p))).sum();
        f64::from(self.options.rank) * sum
    }

    /// Values between a block's products, for each token: residual stream and norm twice, q, k,
    /// v, attention's output, and probabilities; gate, up and their product.
    fn values_per_token(&self) -> f64 {
        let (d, inner) = (self.shape.hidden_size, self.shape.intermediate_size);
        let attention = 2 * self.shape.q_dim() + 2 * self.shape.kv_dim();
        f64::from(4 * d + attention + 3 * inner) + self.probabilities_per_token()
    }

    fn probabilities_per_token(&self) -> f64 {
        f64::from(self.shape.num_heads) * f64::from(self.options.seq_len)
    }

    /// What does not fit into DRAM with the values of `depth` blocks.
    fn on_ssd(&self, setup: &Setup, group: u32, depth: u32) -> OnSsd {
        let blocks = 0..self.shape.num_blocks;
        let bytes: f64 = blocks.map(|block| self.weight_bytes(setup, block)).sum();
        let weights = bytes * self.block_weights();
        let table = f64::from(self.shape.vocab_size) * f64::from(self.shape.hidden_size);
        let adapters = self.adapter_values() * f64::from(self.shape.num_blocks) * TRAINED_BYTES;
        let per_token = self.values_per_token() * self.value_bytes();
        let values = f64::from(depth) * self.tokens(group) * per_token;
        let all = weights + 2.0 * table * self.value_bytes() + adapters + values;
        let excess = (all - self.profile.memory_bytes.value).max(0.0);
        let of_weights = excess.min(weights);
        OnSsd { weights: of_weights / weights, values: (excess - of_weights).min(values) / values }
    }

    /// Bytes that the tiles of a product `[rows, k] x [k, n]` read into SRAM.
    fn tile_bytes(&self, rows: f64, k: f64, n: f64, weight_bytes: f64) -> f64 {
        let sums = self.profile.sram_bytes.value / 2.0 / 4.0;
        let (weight, input) = (n * k * weight_bytes, rows * k * self.value_bytes());
        // weight · rows / m + input · n · m / sums is least where both are equal.
        let best = (weight * rows * sums / (input * n)).sqrt();
        let m = best.max(sums / n).min(rows);
        weight * (rows / m) + input * (n * m / sums).max(1.0)
    }

    fn forward(&self, setup: &Setup, group: u32, block: u32, tuned: bool, on_ssd: OnSsd) -> Cost {
        let (tokens, value_bytes) = (self.tokens(group), self.value_bytes());
        let weight_bytes = self.weight_bytes(setup, block);
        let tiles = Projection::ALL.into_iter().map(|projection| {
            let (n, k) = self.shape.projection(projection);
            self.tile_bytes(tokens, f64::from(k), f64::from(n), weight_bytes)
        });
        let attention = f64::from(self.shape.q_dim() + 2 * self.shape.kv_dim());
        let attention = attention + self.probabilities_per_token();
        let values = self.values_per_token() * tokens * value_bytes;
        let adapters = if tuned { self.adapter_values() } else { 0.0 };
        let products = 2.0 * tokens * self.block_weights() * self.weight_scale(setup, block);
        let others = 2.0 * tokens * adapters + self.attention_flops(tokens);
        Cost {
            r_to_sram_bytes: tiles.sum::<f64>() + attention * tokens * value_bytes,
            w_to_dram_bytes: values,
            r_to_dram_bytes: on_ssd.weights * self.block_weights() * weight_bytes,
            w_to_ssd_bytes: if tuned { on_ssd.values * values } else { 0.0 },
            flops: products + others * self.value_scale(setup),
        }
    }

    /// Gradients of a block's inputs and of its adapters.
    fn backward(&self, setup: &Setup, group: u32, block: u32, on_ssd: OnSsd) -> Cost {
        let (tokens, value_bytes) = (self.tokens(group), self.value_bytes());
        let weight_bytes = self.weight_bytes(setup, block);
        let tiles = Projection::ALL.into_iter().map(|projection| {
            let (n, k) = self.shape.projection(projection);
            self.tile_bytes(tokens, f64::from(n), f64::from(k), weight_bytes)
        });
        let values = self.values_per_token() * tokens * value_bytes;
        let products = 2.0 * tokens * self.block_weights() * self.weight_scale(setup, block);
        // Adapters and attention have gradients of both operands.
        let others = 2.0 * (2.0 * tokens * self.adapter_values() + self.attention_flops(tokens));
        let weights_on_ssd = on_ssd.weights * self.block_weights() * weight_bytes;
        Cost {
            r_to_sram_bytes: tiles.sum::<f64>() + values,
            w_to_dram_bytes: values,
            r_to_dram_bytes: weights_on_ssd + on_ssd.values * values,
            w_to_ssd_bytes: 0.0,
            flops: products + others * self.value_scale(setup),
        }
    }

    /// One pass through the head; its backward pass costs the same.
    fn head(&self, setup: &Setup, group: u32) -> Cost {
        let tokens = self.tokens(group);
        let (n, k) = (f64::from(self.shape.vocab_size), f64::from(self.shape.hidden_size));
        Cost {
            r_to_sram_bytes: self.tile_bytes(tokens, k, n, self.value_bytes()),
            w_to_dram_bytes: tokens * n * self.value_bytes(),
            flops: 2.0 * tokens * n * k * self.value_scale(setup),
            ..Cost::default()
        }
    }

    /// Both products of attention, without a gain from the mask.
    fn attention_flops(&self, tokens: f64) -> f64 {
        4.0 * tokens * f64::from(self.options.seq_len) * f64::from(self.shape.q_dim())
    }
}
