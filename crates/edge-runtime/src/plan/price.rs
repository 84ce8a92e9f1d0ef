//! What the tasks of a step take: each is listed by production's own code on a dry device, and
//! each dispatch of the list has a price.

use std::collections::HashMap;
use std::sync::Mutex;

use anyhow::Result;
use edge_gpu::{Device, Listed};
use edge_scheduler::profiles::DeviceProfile;
use edge_scheduler::rates::{Cost, Rates};
use edge_scheduler::search::Turns;
use edge_scheduler::simulate::TaskTimes;
use edge_scheduler::{Job, Task};

use crate::batch::Batch;
use crate::config::ModelConfig;
use crate::model::Model;
use crate::tune::trainer::{AdamW, Trainer};

/// Share of the peak throughput that products are assumed to reach on a device that is not here.
/// WGSL kernels without matrix units reach 0.4 to 0.6 of it on the GPUs of `kernels.md`'s sources.
const PROFILE_FLOPS_SHARE: f64 = 0.5;
/// Share of the memory bandwidth.
const PROFILE_BYTES_SHARE: f64 = 0.7;

/// How fast a device is.
#[derive(Clone, Debug)]
pub enum Speed {
    /// By measurements of its kernels.
    Measured {
        /// Of dispatches on their own.
        rates: Rates,
        /// Seconds of the host for each.
        host_s: f64,
        /// What a dispatch takes in a step over what it takes on its own.
        scale: f64,
        /// Seconds of a step beside its dispatches.
        between_s: f64,
    },
    /// By its data sheet.
    Profile(&'static DeviceProfile),
}

impl Speed {
    /// Seconds of a dispatch.
    pub fn seconds(&self, cost: &Cost) -> f64 {
        match self {
            Self::Measured { rates, scale, .. } => scale * rates.seconds(cost),
            Self::Profile(profile) => {
                let flops_s = cost.flops / (PROFILE_FLOPS_SHARE * profile.flops_f32.value);
                let bytes_s = cost.bytes / (PROFILE_BYTES_SHARE * profile.memory_bytes_per_s.value);
                profile.dispatch_s.value + flops_s.max(bytes_s)
            }
        }
    }

    /// Seconds of the dispatches of a task: the device's or, where it does not keep up, the
    /// host's.
    pub fn task_s(&self, calls: &[Listed]) -> f64 {
        let device_s: f64 = calls.iter().map(|call| self.seconds(&cost(call))).sum();
        match self {
            Self::Measured { host_s, .. } => device_s.max(host_s * calls.len() as f64),
            Self::Profile(_) => device_s,
        }
    }

    fn between_s(&self) -> f64 {
        match self {
            Self::Measured { between_s, .. } => *between_s,
            Self::Profile(profile) => 10.0 * profile.dispatch_s.value,
        }
    }
}

/// A dispatch as far as its time goes.
pub fn cost((op, call): &Listed) -> Cost {
    let work = op.work(call);
    let sizes = match op.sizes(call) {
        Some(sizes) => sizes.iter().map(|size| f64::from(*size)).collect(),
        None => vec![work.flops as f64, work.bytes as f64],
    };
    Cost {
        kind: (op.name().to_owned(), call.format.name().to_owned()),
        sizes,
        flops: work.flops as f64,
        bytes: work.bytes as f64,
    }
}

/// What decides the dispatches of a step.
#[derive(Clone, PartialEq, Eq, Hash)]
struct Key {
    batch: u32,
    recompute: bool,
    waits: bool,
    columns: bool,
    logits_bytes: u64,
    window: usize,
    cached: bool,
}

/// Prices the steps of a run.
pub struct Pricer<'a> {
    dry: Device,
    config: &'a ModelConfig,
    speed: &'a Speed,
    /// Bytes a second from the host to the device, for hidden states from the trunk cache.
    upload_bytes_per_s: f64,
    /// Share of the targets that count.
    counted: f64,
    known: Mutex<HashMap<Key, TaskTimes>>,
}

impl<'a> Pricer<'a> {
    /// For a device with the limits of `device`.
    pub fn new(
        device: &Device,
        config: &'a ModelConfig,
        speed: &'a Speed,
        upload_bytes_per_s: f64,
        counted: f64,
    ) -> Self {
        let known = Mutex::default();
        Self { dry: device.dry(), config, speed, upload_bytes_per_s, counted, known }
    }

    /// What tasks take; infinite where they cannot be listed, so that nobody chooses them.
    pub fn times(&self, job: &Job, turns: &Turns) -> TaskTimes {
        let key = Key {
            batch: job.batch,
            recompute: job.recompute,
            waits: job.streams > 0,
            columns: job.columns,
            logits_bytes: job.logits_bytes,
            window: turns.window,
            cached: turns.cached,
        };
        let mut known = self.known.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        let never = |_| {
            let each = vec![f64::INFINITY; job.blocks.len()];
            TaskTimes {
                trunk_s: each.clone(),
                forward_s: each.clone(),
                backward_s: each,
                ..TaskTimes::default()
            }
        };
        let price = || self.price(job, turns).unwrap_or_else(never);
        known.entry(key).or_insert_with(price).clone()
    }

    /// Whether the device can bind the buffers of a job's steps.
    ///
    /// # Errors
    /// It cannot; the sentence names the op and the buffer.
    pub fn check(device: &Device, config: &ModelConfig, job: &Job) -> Result<()> {
        let dry = device.dry();
        let one = u32::from(job.streams > 0);
        let job = Job { streaming: None, streams: one, ..job.clone() };
        let mut trainer = Trainer::new(Model::hollow(&dry, config, &job)?, AdamW::default());
        let batch = sample(&job, 1.0);
        for window in 0..job.windows.len() {
            trainer.list(window, &batch, false)?;
        }
        Ok(())
    }

    fn price(&self, job: &Job, turns: &Turns) -> Result<TaskTimes> {
        let one = u32::from(job.streams > 0);
        let job = Job { streaming: None, streams: one, ..job.clone() };
        let model = Model::hollow(&self.dry, self.config, &job)?;
        let mut trainer = Trainer::new(model, AdamW::default());
        let batch = sample(&job, self.counted);
        let none = vec![0.0; job.blocks.len()];
        let mut times = TaskTimes {
            trunk_s: none.clone(),
            forward_s: none.clone(),
            backward_s: none,
            between_s: self.speed.between_s(),
            ..TaskTimes::default()
        };
        for (task, calls) in trainer.list(turns.window, &batch, turns.cached)? {
            let seconds = self.speed.task_s(&calls);
            match task {
                Task::Embed { .. } => times.embed_s = seconds,
                Task::Restore { .. } => {
                    let numbers = batch.ids.len() * self.config.hidden_size;
                    times.restore_s = seconds + 4.0 * numbers as f64 / self.upload_bytes_per_s;
                }
                Task::Trunk { block, .. } => times.trunk_s[block as usize] = seconds,
                Task::Forward { block, .. } => times.forward_s[block as usize] = seconds,
                Task::Loss { .. } => times.loss_s = seconds,
                Task::Backward { block, .. } => times.backward_s[block as usize] = seconds,
                Task::Update => times.update_s = seconds,
            }
        }
        Ok(times)
    }
}

/// A micro-batch of which the last targets count.
pub fn sample(job: &Job, counted: f64) -> Batch {
    let seq_len = job.seq_len as usize;
    let mut batch = Batch::new(vec![0; job.batch as usize * seq_len], seq_len);
    let kept = (counted * (seq_len - 1) as f64).round().max(1.0) as usize;
    for targets in batch.targets.chunks_exact_mut(seq_len) {
        let ignored = (seq_len - 1).saturating_sub(kept);
        targets[..ignored].fill(crate::batch::IGNORE);
    }
    batch.trained_tokens =
        batch.targets.iter().filter(|target| **target != crate::batch::IGNORE).count();
    batch
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use edge_gpu::Options;
    use edge_kernels::Format;
    use edge_scheduler::logits::LOGITS_BYTES;
    use edge_scheduler::{BlockFormats, Optimizer, Path, Projection, Trained, Window};

    use super::*;
    use crate::testing::tiny_config;

    fn job(config: &ModelConfig, path: Path, recompute: bool) -> Job {
        let all = config.num_hidden_layers as u32;
        Job {
            blocks: vec![BlockFormats::uniform(Format::Q4); all as usize],
            embedding: Format::F16,
            head: Format::F16,
            trained: Trained::Lora { rank: 2, targets: Projection::ALL.to_vec() },
            optimizer: Optimizer::AdamW,
            windows: Window::split(all, 2),
            exit_norms: true,
            exit_rank: 0,
            training: true,
            batch: 1,
            eval_batch: 1,
            seq_len: 8,
            cache: None,
            positions: 8,
            vote: false,
            calibration: None,
            recompute,
            phases: true,
            isolated: true,
            streaming: None,
            streams: path.streams(1),
            columns: path == Path::Columns,
            logits_bytes: LOGITS_BYTES,
        }
    }

    /// What is listed is what a step runs, op by op.
    #[test]
    fn lists_are_what_runs() {
        let config = tiny_config();
        let options = Options { profile: true, ..Options::default() };
        let device = Device::open("cpu", &options).expect("the cpu device");
        let ways = [(Path::Rows, false), (Path::Rows, true), (Path::Mixed, false)];
        for (path, recompute) in ways.into_iter().chain([(Path::Columns, true)]) {
            for counted in [1.0, 0.5] {
                let job = job(&config, path, recompute);
                let batch = sample(&job, counted);
                let trainer = |device: &Device| {
                    let model = Model::hollow(device, &config, &job).expect("a model");
                    Trainer::new(model, AdamW::default())
                };
                let mut listed: BTreeMap<&str, u64> = BTreeMap::new();
                let tasks = trainer(&device.dry()).list(1, &batch, false).expect("a list");
                for (op, _) in tasks.iter().flat_map(|(_, calls)| calls) {
                    *listed.entry(op.name()).or_default() += 1;
                }
                let mut real = trainer(&device);
                device.take_profile();
                real.step(1, &[batch], 1e-3).expect("a step");
                let mut ran: BTreeMap<&str, u64> = BTreeMap::new();
                for time in device.take_profile() {
                    *ran.entry(time.op).or_default() += time.calls;
                }
                assert_eq!(listed, ran, "{path:?} {recompute}");
            }
        }
    }

    #[test]
    fn a_step_of_small_dispatches_waits_for_the_host() {
        let config = tiny_config();
        let device = Device::open("cpu", &Options::default()).expect("the cpu device");
        let speed = |host_s| {
            let rates = Rates::new(1e-6);
            Speed::Measured { rates, host_s, scale: 1.0, between_s: 0.0 }
        };
        let job = job(&config, Path::Rows, false);
        let model = Model::hollow(&device.dry(), &config, &job).expect("a model");
        let mut trainer = Trainer::new(model, AdamW::default());
        let tasks = trainer.list(1, &sample(&job, 1.0), false).expect("a list");
        for (task, calls) in &tasks {
            let alone = speed(0.0).task_s(calls);
            let sum: f64 = calls.iter().map(|call| speed(0.0).seconds(&cost(call))).sum();
            assert_eq!(alone, sum, "{task:?}");
            // Less than its dispatches take hides behind them, more does not.
            let each = alone / calls.len() as f64;
            assert_eq!(speed(0.5 * each).task_s(calls), alone, "{task:?}");
            let waits = speed(2.0 * each).task_s(calls);
            assert!((waits / alone - 2.0).abs() < 1e-9, "{task:?}: {waits} {alone}");
        }
    }

    #[test]
    fn a_faster_device_takes_less_time() {
        let config = tiny_config();
        let device = Device::open("cpu", &Options::default()).expect("the cpu device");
        let seconds = |name: &str| {
            let speed = Speed::Profile(DeviceProfile::find(name).expect("a profile"));
            let job = job(&config, Path::Rows, false);
            let turns = Turns { window: 1, share: 1.0, cached: false };
            Pricer::new(&device, &config, &speed, 1e9, 1.0).times(&job, &turns).backward_s
        };
        // Both are reached through Vulkan, where a dispatch costs the same.
        let (slow, fast) = (seconds("raspberry-pi-5"), seconds("jetson-orin-nano"));
        assert!(slow.iter().sum::<f64>() > 0.0);
        assert!(slow.iter().zip(fast).all(|(slow, fast)| fast <= *slow));
    }
}
