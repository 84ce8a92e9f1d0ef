//! Runs a subject on a device: checks the answer of each variant, then times it.
//!
//! Time is the device's own where it has timestamps, else the wall time of a batch of dispatches
//! in one submission divided by their number. Buffers are in the caches from the run before: a
//! row of a few megabytes says what the caches deliver, a larger one what memory does. Ops that
//! work in place run on their own results again; that changes values, not the work.
//!
//! `edge_gpu::Trial` does the same for one call at a time. Here all formats of a shape are on the
//! device at once, to be timed by turns; what the reference made of them is not kept.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, bail};
use cpu_time::ProcessTime;
use edge_gpu::{Buffer, Device, OpTime};
use edge_kernels::Dispatch;
use edge_kernels::check::{compare, compare_roughly, expected};
use edge_kernels::format::Category;
use edge_kernels::op::{Access, CaseBuffer, Variant};
use edge_kernels::util::seeded;

use crate::Subject;

/// Seed of the buffers' contents.
pub const SEED: u64 = 0x5eed;

/// Least time of a sample measured from outside or on the CPU, milliseconds: well above the cost
/// of submitting, and of losing the CPU for a moment.
const LONG_SAMPLE_MS: f64 = 20.0;

/// Least time of a sample measured by a GPU, milliseconds.
const DEVICE_SAMPLE_MS: f64 = 2.0;

/// Most dispatches in a sample.
const DISPATCHES_MAX: u32 = 1024;

/// The device that benches use where none is named: `EDGE_BENCH_DEVICE`, else `auto`.
pub fn default_selector() -> String {
    std::env::var("EDGE_BENCH_DEVICE").unwrap_or_else(|_| "auto".into())
}

/// The contents of a subject's buffers: the same in every run.
pub fn contents(subject: &Subject) -> Vec<CaseBuffer> {
    subject.op.buffers(&subject.call, &mut seeded(SEED))
}

/// Which variants are timed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Which {
    /// Every one that the device can run.
    All,
    /// The one that production takes.
    Production,
}

/// A way to run a subject whose answer was right.
pub struct Choice {
    /// Name of the variant; `reference` on the `cpu` device.
    pub name: String,
    /// Whether production takes this one.
    pub production: bool,
    variant: Option<Variant>,
    /// Dispatches in a sample.
    dispatches: u32,
}

/// A subject with its buffers on a device, its answers checked.
pub struct Prepared {
    /// The subject.
    pub subject: Subject,
    /// The variants whose answers were right.
    pub choices: Vec<Choice>,
    /// What was wrong with the others: no time is ever printed for a wrong answer.
    pub wrong: Vec<anyhow::Error>,
    device: Device,
    buffers: Vec<Buffer>,
}

impl Prepared {
    /// Uploads the buffers, runs every variant once and compares all it wrote with the reference.
    /// A variant that fails or is outside the op's tolerance is left to [`Prepared::wrong`].
    ///
    /// # Errors
    /// The buffers do not fit on the device, or no variant runs on it.
    pub fn new(subject: &Subject, device: &Device, which: Which) -> Result<Self> {
        let before = contents(subject);
        let mut buffers = Vec::with_capacity(before.len());
        for (contents, binding) in before.iter().zip(subject.op.bindings(&subject.call)) {
            let words = contents.words();
            let copy = |target: &mut [u32]| target[..words.len()].copy_from_slice(&words);
            let len = words.len() as u64;
            let buffer = device.buffer_init(binding.name, Category::Activations, len, copy);
            buffers.push(buffer.with_context(|| subject.name())?);
        }
        let (subject, device) = (subject.clone(), device.clone());
        let mut prepared =
            Self { subject, choices: Vec::new(), wrong: Vec::new(), device, buffers };
        let want = expected(prepared.subject.op, &prepared.subject.call, &before);
        for mut choice in choices(&prepared.subject, &prepared.device, which)? {
            match prepared.check(&choice, &before, &want).and_then(|()| prepared.length(&choice)) {
                Ok(dispatches) => {
                    choice.dispatches = dispatches;
                    prepared.choices.push(choice);
                }
                Err(error) => {
                    let name = format!("{} ({})", prepared.subject.name(), choice.name);
                    prepared.wrong.push(error.context(name));
                }
            }
        }
        Ok(prepared)
    }

    /// Runs a variant once on the contents `before` and compares what it leaves with `want`.
    fn check(&self, choice: &Choice, before: &[CaseBuffer], want: &[Vec<u32>]) -> Result<()> {
        let bindings = self.subject.op.bindings(&self.subject.call);
        let written = || (0..bindings.len()).filter(|&i| bindings[i].access == Access::ReadWrite);
        for index in written() {
            // Outputs are poisoned again: what the variant before left would pass.
            self.device.write(&self.buffers[index].whole(), &before[index].words())?;
        }
        self.submit(choice, 1)?;
        let tolerance = self.subject.op.tolerance(&self.subject.call);
        for index in written() {
            let got = self.device.read(&self.buffers[index].whole())?;
            let (want, kind) = (&want[index], &before[index]);
            let rough = choice.variant.as_ref().is_some_and(|variant| variant.approximate);
            let result = if rough && !matches!(kind, CaseBuffer::U32(_)) {
                compare_roughly(bindings[index].name, want, &got)
            } else {
                compare(bindings[index].name, kind, &tolerance, want, &got)
            };
            result.map_err(|message| anyhow!("wrong answer: {message}"))?;
        }
        Ok(())
    }

    /// Dispatches that a sample needs to be long enough to be timed.
    fn length(&self, choice: &Choice) -> Result<u32> {
        let info = self.device.info();
        let mut once = f64::INFINITY;
        // The least of several costs: a sample would be too short by as much as this is too long.
        for _ in 0..if info.kind.is_cpu() { 3 } else { 1 } {
            once = once.min(self.time_and_cost(choice, 1)?.1);
        }
        // Where the CPU runs the shaders, other programs interrupt them.
        let short = info.timestamps && !info.kind.is_cpu();
        let least = if short { DEVICE_SAMPLE_MS } else { LONG_SAMPLE_MS };
        Ok(((least / once.max(1e-6)).ceil() as u32).clamp(1, DISPATCHES_MAX))
    }

    /// Submits `count` dispatches and waits for them.
    fn submit(&self, choice: &Choice, count: u32) -> Result<()> {
        let mut recorder = self.device.recorder();
        for _ in 0..count {
            let bindings = self.buffers.iter().map(Buffer::whole).collect();
            let dispatch = Dispatch::new(self.subject.op, self.subject.call, bindings);
            match &choice.variant {
                Some(variant) => recorder.push_variant(dispatch, variant),
                None => recorder.push(dispatch),
            }
        }
        recorder.submit()?;
        self.device.wait()?;
        Ok(())
    }

    /// Milliseconds of a dispatch, from one sample.
    ///
    /// # Errors
    /// The device fails.
    pub fn sample(&self, choice: &Choice) -> Result<f64> {
        self.time(choice, choice.dispatches)
    }

    /// [`Prepared::sample`], and what is to be compared with another sample right before or
    /// behind it: where the CPU runs the shaders, how long the threads of this process ran; else
    /// the same.
    ///
    /// # Errors
    /// The device fails.
    pub fn sample_and_cost(&self, choice: &Choice) -> Result<(f64, f64)> {
        self.time_and_cost(choice, choice.dispatches)
    }

    /// As [`Prepared::sample_and_cost`], of `count` dispatches.
    fn time_and_cost(&self, choice: &Choice, count: u32) -> Result<(f64, f64)> {
        let on_cpu = self.device.info().kind.is_cpu();
        let begin = if on_cpu { ProcessTime::try_now().ok() } else { None };
        let ms = self.time(choice, count)?;
        let ran = begin.and_then(|begin| begin.try_elapsed().ok());
        let cost_ms = |ran: Duration| ran.as_secs_f64() * 1e3 / f64::from(count);
        Ok((ms, ran.map_or(ms, cost_ms)))
    }

    /// Milliseconds of a dispatch, the mean over `count` of them in one submission.
    ///
    /// # Errors
    /// The device fails.
    pub fn time(&self, choice: &Choice, count: u32) -> Result<f64> {
        self.device.take_profile();
        let start = Instant::now();
        self.submit(choice, count)?;
        let wall_ms = start.elapsed().as_secs_f64() * 1e3;
        let times = own_times(self.device.take_profile(), &self.subject);
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

/// The variants that the device can run, production's first.
fn choices(subject: &Subject, device: &Device, which: Which) -> Result<Vec<Choice>> {
    if device.info().backend == "host" {
        let name = "reference".to_string();
        return Ok(vec![Choice { name, production: true, variant: None, dispatches: 1 }]);
    }
    // In the order of the device's preference: without measurements it takes the first.
    let mut variants = device.variants(subject.op, &subject.call);
    if variants.is_empty() {
        bail!("{}: the device can run none of its variants", subject.name());
    }
    let all = subject.op.variants(&subject.call).into_iter();
    variants.extend(all.filter(|one| one.approximate && device.supports(&one.needs)));
    let mut found: Vec<Choice> = Vec::new();
    for variant in variants {
        let production = found.is_empty();
        let twins = found.iter().filter(|choice| {
            choice.variant.as_ref().is_some_and(|earlier| earlier.name == variant.name)
        });
        let name = match twins.count() {
            0 => variant.name.to_string(),
            twins => format!("{}.{}", variant.name, twins + 1),
        };
        if production || which == Which::All {
            found.push(Choice { name, production, variant: Some(variant), dispatches: 1 });
        }
    }
    Ok(found)
}

fn own_times(profile: Vec<OpTime>, subject: &Subject) -> Vec<OpTime> {
    profile.into_iter().filter(|time| time.op == subject.op.name()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use edge_gpu::Options;

    fn smallest() -> Subject {
        let mut subject = Subject::own().into_iter().find(|s| s.op.name() == "matmul_nt");
        let subject = subject.as_mut().expect("it is registered");
        let case = subject.op.cases().swap_remove(0);
        Subject { call: case.call, shape: case.name, ..subject.clone() }
    }

    #[test]
    fn the_cpu_device_has_one_choice_and_its_time_is_positive() {
        let options = Options { profile: true, ..Options::default() };
        let device = Device::open("cpu", &options).expect("always there");
        let prepared = Prepared::new(&smallest(), &device, Which::All).expect("runs");
        assert!(prepared.wrong.is_empty());
        let names: Vec<&str> = prepared.choices.iter().map(|one| one.name.as_str()).collect();
        assert_eq!(names, ["reference"]);
        assert!(prepared.sample(&prepared.choices[0]).expect("runs") > 0.0);
    }

    #[test]
    fn a_wrong_answer_is_not_timed() {
        let options = Options { profile: true, ..Options::default() };
        let device = Device::open("cpu", &options).expect("always there");
        let subject = smallest();
        let prepared = Prepared::new(&subject, &device, Which::All).expect("runs");
        let before = contents(&subject);
        let mut want = expected(subject.op, &subject.call, &before);
        want[1][0] = f32::to_bits(1e9);
        let error = prepared.check(&prepared.choices[0], &before, &want).expect_err("differs");
        assert!(format!("{error:#}").starts_with("wrong answer: y[0] is "), "{error:#}");
    }
}
