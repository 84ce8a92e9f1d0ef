//! When each task of a step and each transfer runs: a discrete-event simulation of disk, host
//! copy, transfer and compute.
//!
//! Every resource does one thing at a time, in order. A load of a block reads its bytes from the
//! file, copies them into the slot (or into its staging memory, from where the device copies
//! them), and may begin to write the slot when the last task that used the slot's former block is
//! done. A task that needs the block waits for the load. The events follow from the order of tasks
//! by recurrence, so that a simulation takes a time proportional to their number.

use crate::step::{Task, block_uses};
use crate::stream::Streaming;

/// What does the work.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Track {
    /// Reading files.
    Disk,
    /// The host writing slots.
    HostCopy,
    /// The device copying from staging memory.
    Transfer,
    /// The device computing.
    Compute,
}

impl Track {
    /// In the order of timelines.
    pub const ALL: [Self; 4] = [Self::Disk, Self::HostCopy, Self::Transfer, Self::Compute];

    /// As timelines show it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Disk => "disk",
            Self::HostCopy => "host copy",
            Self::Transfer => "transfer",
            Self::Compute => "compute",
        }
    }
}

/// Times of tasks on a device, seconds each; by block where blocks differ.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct TaskTimes {
    /// [`Task::Embed`].
    pub embed_s: f64,
    /// [`Task::Restore`].
    pub restore_s: f64,
    /// [`Task::Trunk`].
    pub trunk_s: Vec<f64>,
    /// [`Task::Forward`].
    pub forward_s: Vec<f64>,
    /// [`Task::Loss`].
    pub loss_s: f64,
    /// [`Task::Backward`], recomputation included.
    pub backward_s: Vec<f64>,
    /// [`Task::Update`].
    pub update_s: f64,
    /// Between steps: reading the loss back, batches, records.
    pub between_s: f64,
}

impl TaskTimes {
    /// Time of a task.
    pub fn of(&self, task: Task) -> f64 {
        match task {
            Task::Embed { .. } => self.embed_s,
            Task::Restore { .. } => self.restore_s,
            Task::Trunk { block, .. } => self.trunk_s[block as usize],
            Task::Forward { block, .. } => self.forward_s[block as usize],
            Task::Loss { .. } => self.loss_s,
            Task::Backward { block, .. } => self.backward_s[block as usize],
            Task::Update => self.update_s,
        }
    }
}

/// How fast weights come to the device.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct TransferRates {
    /// File to host memory, bytes a second; what the system has in its cache already is read at
    /// this rate as well, so that it is measured for the case in question.
    pub read_bytes_per_s: f64,
    /// Host memory into a slot or its staging memory.
    pub copy_bytes_per_s: f64,
    /// Staging memory into the slot, by the device between tasks; `None` where the host writes
    /// slots directly.
    pub transfer_bytes_per_s: Option<f64>,
    /// Each load costs this much beside.
    pub load_s: f64,
    /// Seconds that a second of copying adds to compute that runs meanwhile, where both share
    /// memory or cores: 0 nothing, 1 as much as without overlap.
    pub interference: f64,
}

/// A piece of work in time.
#[derive(Clone, Debug, PartialEq)]
pub struct Span {
    /// By what.
    pub track: Track,
    /// What it is.
    pub name: String,
    /// Seconds from the start of the timeline.
    pub start_s: f64,
    /// Seconds from the start of the timeline.
    pub end_s: f64,
}

/// What a slot holds, or is about to hold.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Occupied {
    block: u32,
    /// When it is there, or in the slot's staging memory.
    end_s: f64,
    /// Whether the device has copied it from staging memory.
    copied: bool,
}

/// A simulated step in the middle of a run.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Timeline {
    /// All work of the step, and of transfers for the next one.
    pub spans: Vec<Span>,
    /// From the end of the step before to the end of this one.
    pub step_s: f64,
    /// Of these, compute.
    pub compute_s: f64,
    /// Of these, waiting for weights.
    pub wait_s: f64,
    /// Reading, copying and transfers of the step's loads, one after the other.
    pub load_s: f64,
    /// Blocks that were loaded.
    pub loads: u64,
    /// Bytes that were loaded.
    pub load_bytes: u64,
}

impl Timeline {
    /// What bounds the step.
    pub fn bound_by(&self) -> &'static str {
        match self.wait_s > 0.05 * self.step_s {
            true => "transfers",
            false => "compute",
        }
    }
}

/// Simulates a step that follows one like it. `streaming` says which blocks need loads and whether
/// they begin ahead; `block_bytes` what each takes.
pub fn simulate(
    tasks: &[Task],
    times: &TaskTimes,
    streaming: Option<&Streaming>,
    block_bytes: &[u64],
    rates: &TransferRates,
) -> Timeline {
    Clock::new(tasks, streaming, block_bytes, rates).run(tasks, times, true)
}

/// As [`simulate`], without spans: what a search compares.
pub fn price(
    tasks: &[Task],
    times: &TaskTimes,
    streaming: Option<&Streaming>,
    block_bytes: &[u64],
    rates: &TransferRates,
) -> Timeline {
    Clock::new(tasks, streaming, block_bytes, rates).run(tasks, times, false)
}

struct Clock<'a> {
    slot_of: Vec<Option<usize>>,
    /// Blocks of a step in order, those in slots alone.
    uses: Vec<u32>,
    block_bytes: &'a [u64],
    rates: &'a TransferRates,
    ahead: bool,
    /// Whether spans are kept.
    record: bool,
    /// End of the last task.
    now_s: f64,
    /// When disk and host copy are free again.
    free_s: [f64; 2],
    /// When the last load began: then the system is told what will be read next.
    told_s: f64,
    /// What each slot holds or is about to hold.
    slots: Vec<Option<Occupied>>,
    timeline: Timeline,
}

impl<'a> Clock<'a> {
    fn new(
        tasks: &[Task],
        streaming: Option<&Streaming>,
        block_bytes: &'a [u64],
        rates: &'a TransferRates,
    ) -> Self {
        let slot_of = streaming.map(Streaming::slot_of).unwrap_or_default();
        // No more are used than there are blocks that come through them.
        let slots = streaming.map_or(0, |streaming| streaming.slots.min(streaming.streamed()));
        let slots = vec![None; slots as usize];
        let mut uses = block_uses(tasks);
        uses.retain(|&block| slot_of.get(block as usize).is_some_and(Option::is_some));
        Self {
            slot_of,
            uses,
            block_bytes,
            rates,
            ahead: streaming.is_none_or(|streaming| streaming.ahead),
            record: false,
            now_s: 0.0,
            free_s: [0.0; 2],
            told_s: 0.0,
            slots,
            timeline: Timeline::default(),
        }
    }

    /// The second of two steps: the first starts with empty slots, the second finds what the
    /// first left.
    fn run(mut self, tasks: &[Task], times: &TaskTimes, record: bool) -> Timeline {
        self.step(tasks, times);
        let warm = self.now_s;
        self.timeline = Timeline::default();
        self.record = record;
        self.step(tasks, times);
        let mut timeline = self.timeline;
        timeline.step_s = self.now_s - warm;
        for span in &mut timeline.spans {
            span.start_s -= warm;
            span.end_s -= warm;
        }
        timeline
    }

    fn step(&mut self, tasks: &[Task], times: &TaskTimes) {
        if self.ahead {
            self.fill_empty();
        }
        // Place in `uses` of the block that is in use.
        let mut at = None::<usize>;
        let mut last = None;
        self.now_s += times.between_s;
        for &task in tasks {
            let block = task.block();
            let streamed = block.filter(|&block| self.slot(block).is_some());
            if let Some(block) = streamed
                && last != Some(block)
            {
                let next = at.map_or(0, |at| at + 1);
                if let (Some(before), true) = (at, self.ahead) {
                    self.release(before, next);
                }
                self.wait_for(block);
                at = Some(next);
            }
            // Runs of one block count once, with resident blocks between them twice.
            last = block.or(last);
            let start_s = self.now_s;
            let seconds = times.of(task);
            self.now_s += seconds + self.interference(start_s, seconds);
            self.timeline.compute_s += seconds;
            self.span(Track::Compute, || task.label(), start_s, self.now_s);
        }
        if let (Some(before), true) = (at, self.ahead) {
            self.release(before, before + 1);
        }
    }

    fn slot(&self, block: u32) -> Option<usize> {
        self.slot_of.get(block as usize).copied().flatten()
    }

    /// Fills slots that hold nothing yet with what is needed first.
    fn fill_empty(&mut self) {
        for at in 0..self.uses.len() {
            let block = self.uses[at];
            if let Some(slot) = self.slot(block)
                && self.slots[slot].is_none()
            {
                self.load(block, slot, 0.0);
            }
        }
    }

    /// After the use at place `before`, when that at `next` begins: the slot of the former goes
    /// to the block that needs it next.
    fn release(&mut self, before: usize, next: usize) {
        let Some(slot) = self.slot(self.uses[before]) else { return };
        let count = self.uses.len();
        let coming = (next..next + count).map(|place| self.uses[place % count]);
        let Some(block) = coming.into_iter().find(|&block| self.slot(block) == Some(slot)) else {
            return;
        };
        if self.slots[slot].is_none_or(|held| held.block != block) {
            self.load(block, slot, self.now_s);
        }
    }

    /// Lets the device stand still until a block is there.
    fn wait_for(&mut self, block: u32) {
        let Some(slot) = self.slot(block) else { return };
        if self.slots[slot].is_none_or(|held| held.block != block) {
            self.load(block, slot, self.now_s);
        }
        let ready = self.slots[slot].map_or(0.0, |held| held.end_s);
        if ready > self.now_s {
            self.timeline.wait_s += ready - self.now_s;
            self.now_s = ready;
        }
        let copied = self.slots[slot].replace(Occupied { block, end_s: ready, copied: true });
        let copied = copied.is_some_and(|held| held.copied);
        if let Some(rate) = self.rates.transfer_bytes_per_s.filter(|_| !copied) {
            let start_s = self.now_s;
            let seconds = self.block_bytes[block as usize] as f64 / rate;
            // In line with compute: one queue.
            self.now_s += seconds;
            self.timeline.wait_s += seconds;
            self.timeline.load_s += seconds;
            self.span(Track::Transfer, || format!("block {block}"), start_s, self.now_s);
        }
    }

    /// Reads and copies a block into a slot that is free from `free_s` on.
    fn load(&mut self, block: u32, slot: usize, free_s: f64) {
        let bytes = self.block_bytes[block as usize];
        let seconds = |rate: f64| bytes as f64 / rate;
        // Reading needs no slot: the system reads ahead what the loader will ask for.
        let told_s = if self.ahead { self.told_s } else { free_s };
        let from = told_s.max(self.free_s[0]);
        let read_s = from + seconds(self.rates.read_bytes_per_s);
        self.span(Track::Disk, || format!("block {block}"), from, read_s);
        // The copy goes along with reading: it ends no sooner than reading does.
        let start_s = free_s.max(self.free_s[1]);
        let copy = seconds(self.rates.copy_bytes_per_s) + self.rates.load_s;
        let end_s = (start_s + copy).max(read_s);
        self.span(Track::HostCopy, || format!("block {block}"), start_s, end_s);
        self.told_s = start_s;
        self.free_s[0] = read_s;
        self.free_s[1] = end_s;
        self.slots[slot] = Some(Occupied { block, end_s, copied: false });
        self.timeline.load_s += copy.max(seconds(self.rates.read_bytes_per_s));
        self.timeline.loads += 1;
        self.timeline.load_bytes += bytes;
    }

    /// What copying by the host adds to a task that runs meanwhile.
    fn interference(&self, start_s: f64, seconds: f64) -> f64 {
        let held = self.slots.iter().flatten();
        let shared = held.map(|held| (held.end_s - start_s).clamp(0.0, seconds));
        self.rates.interference * shared.fold(0.0, f64::max)
    }

    fn span(&mut self, track: Track, name: impl FnOnce() -> String, start_s: f64, end_s: f64) {
        if !self.record {
            return;
        }
        let name = name();
        self.timeline.spans.push(Span { track, name, start_s, end_s });
    }
}

#[cfg(test)]
mod tests;
