//! Runs a subject on a device: checks its answer, then times it.
//!
//! Time is the device's own where it has timestamps, else the wall time of a batch of dispatches
//! in one submission divided by their number. Buffers are in the caches from the run before: a
//! row of a few megabytes says what the caches deliver, a larger one what memory does. Ops that
//! work in place run on their own results again; that changes values, not the work.

use std::time::Instant;

use anyhow::{Context, Result, bail};
use edge_gpu::{Buffer, Device, OpTime, Options};
use edge_kernels::Dispatch;
use edge_kernels::format::Category;
use edge_kernels::op::{Access, CaseBuffer};
use edge_kernels::util::SeededRng;
use rand::SeedableRng;

use crate::{Subject, check};

/// Seed of the buffers' contents.
const SEED: u64 = 0x5eed;

/// Least time of a sample measured from outside, milliseconds: well above the cost of submitting.
const WALL_SAMPLE_MS: f64 = 20.0;

/// Least time of a sample measured by the device, milliseconds.
const DEVICE_SAMPLE_MS: f64 = 2.0;

/// Most dispatches in a sample.
const DISPATCHES_MAX: u32 = 256;

/// The device that benches use where none is named: `EDGE_BENCH_DEVICE`, else `auto`.
pub fn default_selector() -> String {
    std::env::var("EDGE_BENCH_DEVICE").unwrap_or_else(|_| "auto".into())
}

/// Opens the device once per set of optional features, so that each variant gets its turn: the
/// first has all of them.
///
/// # Errors
/// No such device.
pub fn open_each(selector: &str) -> Result<Vec<Device>> {
    let without = [(false, false), (true, false), (false, true), (true, true)];
    let open = |(disable_f16, disable_subgroups)| {
        let options =
            Options { profile: true, disable_f16, disable_subgroups, ..Options::default() };
        Device::open(selector, &options).with_context(|| format!("device `{selector}`"))
    };
    without.into_iter().map(open).collect()
}

/// A subject with its buffers on a device, its answer checked.
pub struct Prepared<'a> {
    subject: &'a Subject,
    device: &'a Device,
    buffers: Vec<Buffer>,
    /// The shader variant that the device chose.
    pub variant: String,
    /// Dispatches in a sample.
    dispatches: u32,
}

impl<'a> Prepared<'a> {
    /// Uploads the buffers, runs the subject once and compares all it wrote with the reference.
    ///
    /// # Errors
    /// The device fails, or its answer is outside the op's tolerance: no time is ever printed
    /// for a wrong answer.
    pub fn new(subject: &'a Subject, device: &'a Device) -> Result<Self> {
        let before = subject.op.buffers(subject.call(), &mut SeededRng::seed_from_u64(SEED));
        let mut buffers = Vec::with_capacity(before.len());
        for (contents, binding) in before.iter().zip(subject.op.bindings(subject.call())) {
            let words = contents.words();
            let copy = |target: &mut [u32]| target[..words.len()].copy_from_slice(&words);
            let len = words.len() as u64;
            buffers.push(device.buffer_init(binding.name, Category::Activations, len, copy)?);
        }
        let mut prepared = Self { subject, device, buffers, variant: String::new(), dispatches: 1 };
        device.take_profile();
        prepared.submit(1)?;
        prepared.variant = match own_times(device.take_profile(), subject).first() {
            Some(time) => time.variant.to_string(),
            None => bail!("{}: the device reports no variant for it", subject.name()),
        };
        prepared.check(&before).with_context(|| {
            format!("{} with variant {}: wrong answer", subject.name(), prepared.variant)
        })?;
        let once = prepared.sample()?;
        let least = if device.info().timestamps { DEVICE_SAMPLE_MS } else { WALL_SAMPLE_MS };
        prepared.dispatches = ((least / once.max(1e-6)).ceil() as u32).clamp(1, DISPATCHES_MAX);
        Ok(prepared)
    }

    fn check(&self, before: &[CaseBuffer]) -> Result<()> {
        let want = check::expected(self.subject, before);
        let tolerance = self.subject.op.tolerance(self.subject.call());
        let bindings = self.subject.op.bindings(self.subject.call());
        for (index, binding) in bindings.iter().enumerate() {
            if binding.access == Access::ReadWrite {
                let got = self.device.read(&self.buffers[index].whole())?;
                let len = want[index].len();
                let kind = &before[index];
                check::compare(binding.name, kind, &tolerance, &want[index], &got[..len])?;
            }
        }
        Ok(())
    }

    /// Submits `count` dispatches and waits for them.
    fn submit(&self, count: u32) -> Result<()> {
        let mut recorder = self.device.recorder();
        for _ in 0..count {
            let bindings = self.buffers.iter().map(Buffer::whole).collect();
            recorder.push(Dispatch::new(self.subject.op, *self.subject.call(), bindings));
        }
        recorder.submit()?;
        self.device.wait()?;
        Ok(())
    }

    /// Milliseconds of a dispatch, from one sample.
    ///
    /// # Errors
    /// The device fails.
    pub fn sample(&self) -> Result<f64> {
        self.time(self.dispatches)
    }

    /// Milliseconds of a dispatch, the mean over `count` of them in one submission.
    ///
    /// # Errors
    /// The device fails.
    pub fn time(&self, count: u32) -> Result<f64> {
        self.device.take_profile();
        let start = Instant::now();
        self.submit(count)?;
        let wall_ms = start.elapsed().as_secs_f64() * 1e3;
        let times = own_times(self.device.take_profile(), self.subject);
        if !self.device.info().timestamps {
            return Ok(wall_ms / f64::from(count));
        }
        if times.is_empty() {
            bail!("{}: the device has timestamps, but reports no time", self.subject.name());
        }
        let total_ms: f64 = times.iter().map(|time| time.total_ms).sum();
        Ok(total_ms / f64::from(count))
    }
}

fn own_times(profile: Vec<OpTime>, subject: &Subject) -> Vec<OpTime> {
    profile.into_iter().filter(|time| time.op == subject.op.name()).collect()
}
