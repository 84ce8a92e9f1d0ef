//! The schedule of a step: which blocks stay on the device, how many transfer slots there are,
//! how large micro-batches are, which way they take, whether activations are computed again, and
//! how large a chunk of logits is.
//!
//! The space is small enough to be searched whole: every micro-batch that divides the step, every
//! path, with and without recomputation, one to four slots, and for each of these as many resident
//! blocks as the budget allows, nearest to the exit, nearest to the input or spread evenly. The
//! result does not depend on anything but the arguments.

use crate::job::Job;
use crate::plan::{DeviceFacts, Plan};
use crate::shape::ModelShape;
use crate::simulate::{TaskTimes, Timeline, TransferRates, price};
use crate::step::{Path, StepShape, tasks};
use crate::stream::{Streaming, block_parts};

/// Most transfer slots that are considered: one is in use, one waits, two more even bursts out.
pub const SLOTS_MAX: u32 = 4;

/// Up to so many blocks every number of resident ones is priced; above, the largest that fits.
pub const EXACT_BLOCKS: u32 = 16;

/// A window that is trained, and how often.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Turns {
    /// Number of the window.
    pub window: usize,
    /// Its share of the steps, above 0.
    pub share: f64,
    /// Whether its steps read hidden states from the trunk cache.
    pub cached: bool,
}

/// What is searched for.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub enum Objective {
    /// The fastest step within the budget.
    #[default]
    Time,
    /// The least device memory with steps of at most this time.
    Memory {
        /// Longest step, seconds.
        step_s: f64,
    },
    /// The least energy by [`Energy`].
    Energy(Energy),
}

/// A model of what a step costs a battery: the device draws `compute_w` while it computes and
/// `idle_w` while it waits, and each byte that is loaded costs `byte_j`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Energy {
    /// Watts while computing.
    pub compute_w: f64,
    /// Watts while waiting.
    pub idle_w: f64,
    /// Joules for each byte from storage to the device.
    pub byte_j: f64,
}

impl Energy {
    /// Joules of a step.
    pub fn of(&self, timeline: &Timeline) -> f64 {
        let idle_s = timeline.step_s - timeline.compute_s;
        self.compute_w * timeline.compute_s
            + self.idle_w * idle_s
            + self.byte_j * timeline.load_bytes as f64
    }
}

impl Default for Energy {
    /// A phone: 4 W and 1 W; 1 nJ a byte from flash memory and through DRAM.
    fn default() -> Self {
        Self { compute_w: 4.0, idle_w: 1.0, byte_j: 1e-9 }
    }
}

/// Times of the tasks of a step, for a micro-batch of so many sequences.
pub type Times<'a> = dyn Fn(&Job, &Turns) -> TaskTimes + 'a;

/// Where to search.
pub struct Space<'a> {
    /// The model.
    pub shape: &'a ModelShape,
    /// The run; its micro-batch, recomputation and streaming are what is searched for.
    pub job: &'a Job,
    /// The device.
    pub facts: DeviceFacts,
    /// Sequences of a step.
    pub batch: u32,
    /// Micro-batches to consider; each divides `batch`.
    pub micro_batches: Vec<u32>,
    /// Whether to consider recomputation, and whether nothing else.
    pub recompute: Vec<bool>,
    /// Paths to consider.
    pub paths: Vec<Path>,
    /// Sizes of a chunk of logits to consider, bytes.
    pub logits_bytes: Vec<u64>,
    /// Numbers of transfer slots to consider.
    pub slots: Vec<u32>,
    /// Whether slots need staging memory.
    pub staged: bool,
    /// Whether blocks may be streamed.
    pub streaming: bool,
    /// Blocks that stay on the device, where that is not to be chosen.
    pub resident: Option<u32>,
    /// Whether streamed blocks are loaded ahead of their turn: what to consider. Where transfers
    /// slow compute down by more than they take, it is better not to.
    pub ahead: Vec<bool>,
    /// The windows that take turns.
    pub turns: &'a [Turns],
    /// How fast weights come.
    pub rates: TransferRates,
    /// Most bytes of device memory.
    pub budget_bytes: Option<u64>,
    /// What tasks take.
    pub times: &'a Times<'a>,
}

/// A schedule and what is predicted of it.
#[derive(Clone, Debug, PartialEq)]
pub struct Schedule {
    /// The run by this schedule.
    pub job: Job,
    /// Micro-batches of a step.
    pub micro_batches: u32,
    /// Their way.
    pub path: Path,
    /// Peak bytes on the device.
    pub bytes: u64,
    /// Step time, the mean over windows by their share, seconds.
    pub step_s: f64,
    /// The share of steps that is spent waiting for weights.
    pub wait_share: f64,
    /// A step of the window that has the largest share, without spans.
    pub timeline: Timeline,
    /// Joules of a step by [`Energy::default`] or the objective's.
    pub energy_j: f64,
}

impl Schedule {
    /// The tasks of a window's step.
    pub fn step(&self, turns: &Turns) -> StepShape {
        StepShape {
            window: self.job.windows[turns.window],
            micro_batches: self.micro_batches,
            path: self.path,
            recompute: self.job.recompute,
            cached: turns.cached,
        }
    }

    /// Blocks that stay on the device.
    pub fn resident_blocks(&self) -> u32 {
        let all = self.job.blocks.len() as u32;
        all - self.job.streaming.as_ref().map_or(0, Streaming::streamed)
    }
}

/// What a search found.
#[derive(Clone, Debug, PartialEq)]
pub struct Found {
    /// The best schedule.
    pub best: Schedule,
    /// The best of each other kind (path, recomputation, micro-batch), best first.
    pub others: Vec<Schedule>,
    /// Schedules that were priced.
    pub considered: u64,
}

/// Nothing fits.
#[derive(Clone, Debug, PartialEq)]
pub struct Misfit {
    /// The schedule that takes the least memory; `None` where the space is empty.
    pub least: Option<Schedule>,
}

/// Searches the space.
///
/// # Errors
/// Nothing fits the budget (or the step time of [`Objective::Memory`]), and the error has what
/// takes least; or the space is empty.
pub fn search(space: &Space<'_>, objective: Objective) -> Result<Found, Box<Misfit>> {
    let mut search = Search { space, objective, fitting: Vec::new(), least: None, considered: 0 };
    for &micro_batch in &space.micro_batches {
        for &recompute in &space.recompute {
            for &path in &space.paths {
                for &logits_bytes in &space.logits_bytes {
                    search.path((micro_batch, logits_bytes), recompute, path);
                }
            }
        }
    }
    search.finish()
}

/// Which blocks stay, of those that fit.
#[derive(Clone, Copy)]
enum Choice {
    Top,
    Bottom,
    Even,
}

impl Choice {
    const ALL: [Self; 3] = [Self::Top, Self::Bottom, Self::Even];

    /// `count` of `all` blocks.
    fn resident(self, count: u32, all: u32) -> Vec<bool> {
        let keeps = |block: u32| match self {
            Self::Top => block >= all - count,
            Self::Bottom => block < count,
            Self::Even => (block + 1) * count / all > block * count / all,
        };
        (0..all).map(keeps).collect()
    }
}

struct Search<'a, 'b> {
    space: &'a Space<'b>,
    objective: Objective,
    fitting: Vec<Schedule>,
    least: Option<Schedule>,
    considered: u64,
}

impl Search<'_, '_> {
    fn path(&mut self, (micro_batch, logits_bytes): (u32, u64), recompute: bool, path: Path) {
        let space = self.space;
        let micro_batches = space.batch / micro_batch;
        // A path differs only where there are several micro-batches; a column keeps inputs alone.
        let pointless = path != Path::Rows && micro_batches == 1;
        if pointless || (path == Path::Columns && !recompute) {
            return;
        }
        let mut job = space.job.clone();
        job.batch = micro_batch;
        job.eval_batch = job.eval_batch.min(micro_batch).max(1);
        job.recompute = recompute;
        job.logits_bytes = logits_bytes;
        job.streams = path.streams(micro_batches);
        job.columns = path == Path::Columns;
        job.streaming = None;
        let times: Vec<TaskTimes> =
            space.turns.iter().map(|turns| (space.times)(&job, turns)).collect();
        let all = job.blocks.len() as u32;
        let whole = space.resident.is_none_or(|resident| resident >= all)
            && self.consider(job.clone(), micro_batches, path, &times);
        // Where everything may stay, streaming is never faster.
        if whole && !matches!(self.objective, Objective::Memory { .. }) || !space.streaming {
            return;
        }
        for &ahead in &space.ahead {
            // What is loaded when its turn comes needs one slot.
            let slots = if ahead { &space.slots[..] } else { &space.slots[..1] };
            for &slots in slots {
                for choice in Choice::ALL {
                    self.resident(&job, (slots, ahead), choice, (micro_batches, path), &times);
                }
            }
        }
    }

    /// The most resident blocks that fit, and none.
    fn resident(
        &mut self,
        job: &Job,
        (slots, ahead): (u32, bool),
        choice: Choice,
        (micro_batches, path): (u32, Path),
        times: &[TaskTimes],
    ) {
        let all = job.blocks.len() as u32;
        let with = |count: u32| {
            let resident = choice.resident(count, all);
            let staged = self.space.staged;
            let streaming = Streaming { resident, slots, staged, ahead };
            Job { streaming: Some(streaming), ..job.clone() }
        };
        let fits = |count: u32| {
            self.space.budget_bytes.is_none_or(|budget| self.bytes(&with(count)) <= budget)
        };
        if let Some(count) = self.space.resident.filter(|count| *count < all) {
            self.consider(with(count), micro_batches, path, times);
            return;
        }
        // Bytes grow with the count, but for the last blocks of a slot: those are looked at apart.
        let (mut low, mut high) = (0, all);
        while low + 1 < high {
            let middle = low.midpoint(high);
            if fits(middle) { low = middle } else { high = middle }
        }
        // More resident blocks are not always faster: which ones stay changes with their number.
        // With many blocks all numbers would take too long.
        let exact = all <= EXACT_BLOCKS || matches!(self.objective, Objective::Memory { .. });
        let first = if exact { 0 } else { low };
        for count in first..=low {
            self.consider(with(count), micro_batches, path, times);
        }
    }

    fn bytes(&self, job: &Job) -> u64 {
        Plan::new(self.space.shape, job, self.space.facts).bytes()
    }

    /// Prices a schedule; whether it fits the budget.
    fn consider(&mut self, job: Job, micro_batches: u32, path: Path, times: &[TaskTimes]) -> bool {
        let space = self.space;
        self.considered += 1;
        let bytes = self.bytes(&job);
        let mut schedule = Schedule {
            job,
            micro_batches,
            path,
            bytes,
            step_s: 0.0,
            wait_share: 0.0,
            timeline: Timeline::default(),
            energy_j: 0.0,
        };
        let fits = space.budget_bytes.is_none_or(|budget| bytes <= budget);
        let least = self.least.as_ref().is_none_or(|least| bytes < least.bytes);
        if !fits && !least {
            return false;
        }
        let energy = match self.objective {
            Objective::Energy(energy) => energy,
            _ => Energy::default(),
        };
        weigh(space, &mut schedule, times, energy);
        if least {
            self.least = Some(schedule.clone());
        }
        if fits {
            self.fitting.push(schedule);
        }
        fits
    }

    fn finish(mut self) -> Result<Found, Box<Misfit>> {
        if let Objective::Memory { step_s } = self.objective {
            self.fitting.retain(|schedule| schedule.step_s <= step_s);
        }
        let objective = self.objective;
        // Equal ones stay in the order in which they were found.
        self.fitting.sort_by(|a, b| {
            let [a, b] = [a, b].map(|schedule| match objective {
                Objective::Time => [schedule.step_s, schedule.bytes as f64],
                Objective::Memory { .. } => [schedule.bytes as f64, schedule.step_s],
                Objective::Energy(_) => [schedule.energy_j, schedule.step_s],
            });
            a[0].total_cmp(&b[0]).then(a[1].total_cmp(&b[1]))
        });
        let mut fitting = self.fitting.into_iter();
        let Some(best) = fitting.next() else {
            return Err(Box::new(Misfit { least: self.least }));
        };
        let kind =
            |schedule: &Schedule| (schedule.path, schedule.job.recompute, schedule.job.batch);
        let mut kinds = vec![kind(&best)];
        let mut others = Vec::new();
        for schedule in fitting {
            if !kinds.contains(&kind(&schedule)) {
                kinds.push(kind(&schedule));
                others.push(schedule);
            }
        }
        Ok(Found { best, others, considered: self.considered })
    }
}

/// A run that is only to fit, without prices: as many blocks as the budget allows stay on the
/// device, spread evenly, and the others come through two slots, or one. `None` where not even
/// that fits.
pub fn fit(
    shape: &ModelShape,
    job: &Job,
    facts: DeviceFacts,
    staged: bool,
    budget_bytes: u64,
) -> Option<Job> {
    let fits = |job: &Job| Plan::new(shape, job, facts).bytes() <= budget_bytes;
    if fits(job) {
        return Some(job.clone());
    }
    let all = job.blocks.len() as u32;
    let with = |slots, count| {
        let resident = Choice::Even.resident(count, all);
        let streaming = Streaming { resident, slots, staged, ahead: true };
        Job { streaming: Some(streaming), ..job.clone() }
    };
    let options = [2, 1].into_iter().flat_map(|slots| (0..all).rev().map(move |n| (slots, n)));
    options.map(|(slots, count)| with(slots, count)).find(fits)
}

/// Bytes of each block in its slot.
pub fn block_bytes(shape: &ModelShape, job: &Job, facts: DeviceFacts) -> Vec<u64> {
    let max_shard_bytes = crate::plan::max_shard_bytes(facts);
    let bytes = |block| 4 * block_parts(shape, job, block, max_shard_bytes).1;
    (0..job.blocks.len() as u32).map(bytes).collect()
}

/// Predicts the step of a schedule over the windows that take turns.
fn weigh(space: &Space<'_>, schedule: &mut Schedule, times: &[TaskTimes], energy: Energy) {
    let bytes = block_bytes(space.shape, &schedule.job, space.facts);
    let all: f64 = space.turns.iter().map(|turns| turns.share).sum();
    let (mut wait_s, mut most) = (0.0, 0.0);
    for (turns, times) in space.turns.iter().zip(times) {
        let tasks = tasks(&schedule.step(turns));
        let streaming = schedule.job.streaming.as_ref();
        let timeline = price(&tasks, times, streaming, &bytes, &space.rates);
        let share = turns.share / all;
        schedule.step_s += share * timeline.step_s;
        schedule.energy_j += share * energy.of(&timeline);
        wait_s += share * timeline.wait_s;
        if share > most {
            most = share;
            schedule.timeline = timeline;
        }
    }
    schedule.wait_share = wait_s / schedule.step_s.max(f64::MIN_POSITIVE);
    // Forever less forever is no number, and would be sorted anywhere.
    if !schedule.step_s.is_finite() {
        (schedule.step_s, schedule.energy_j) = (f64::INFINITY, f64::INFINITY);
        schedule.wait_share = 0.0;
    }
}

// Minutes of arithmetic for Miri.
#[cfg(all(test, not(miri)))]
mod tests;
