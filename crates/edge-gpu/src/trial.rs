//! A call tried on its own: run with one of its variants, compared with the reference, timed.
//! Behind the self-test and tuning.

use std::cell::OnceCell;
use std::time::Instant;

use edge_kernels::check::{compare, compare_roughly, expected};
use edge_kernels::op::{Access, CaseBuffer, Variant};
use edge_kernels::util::seeded;
use edge_kernels::{Call, Category, Dispatch, Op};

use crate::buffer::Buffer;
use crate::device::Device;
use crate::error::Error;

/// Seed of the buffers' contents.
const SEED: u64 = 0x5eed;

/// Least time of a sample by the host clock: well above the cost of a submission.
const WALL_SAMPLE_MS: f64 = 20.0;

/// Least time of a sample by the device's own clock.
const DEVICE_SAMPLE_MS: f64 = 2.0;

/// Most dispatches in a sample.
const DISPATCHES_MAX: u32 = 256;

/// A call with buffers of its own on a device, and, once it is checked, what the reference makes of
/// them.
pub struct Trial<'a> {
    device: &'a Device,
    op: &'static dyn Op,
    call: Call,
    before: Vec<CaseBuffer>,
    want: OnceCell<Vec<Vec<u32>>>,
    buffers: Vec<Buffer>,
}

impl<'a> Trial<'a> {
    /// Uploads seeded buffers for a call.
    ///
    /// # Errors
    /// The device has no room for the buffers, or fails.
    pub fn new(device: &'a Device, op: &'static dyn Op, call: Call) -> Result<Self, Error> {
        let before = op.buffers(&call, &mut seeded(SEED));
        let mut buffers = Vec::with_capacity(before.len());
        for (contents, binding) in before.iter().zip(op.bindings(&call)) {
            let words = contents.words();
            let copy = |target: &mut [u32]| target[..words.len()].copy_from_slice(&words);
            let len = words.len() as u64;
            buffers.push(device.buffer_init(binding.name, Category::Activations, len, copy)?);
        }
        Ok(Self { device, op, call, before, want: OnceCell::new(), buffers })
    }

    /// The variants to choose from ([`Device::candidates`]), in the order of the device's
    /// preference.
    pub fn variants(&self) -> Vec<Variant> {
        self.device.candidates(self.op, &self.call)
    }

    /// The device that it runs on.
    pub fn device(&self) -> &'a Device {
        self.device
    }

    /// Runs the call once and compares all it wrote with the reference, approximate variants by
    /// the error of the whole. `None` takes the variant that production takes.
    ///
    /// # Errors
    /// [`Error::WrongAnswer`], or what the device reports.
    pub fn check(&self, variant: Option<&Variant>) -> Result<(), Error> {
        let bindings = self.op.bindings(&self.call);
        let written =
            || (0..bindings.len()).filter(|&index| bindings[index].access == Access::ReadWrite);
        for index in written() {
            self.device.write(&self.buffers[index].whole(), &self.before[index].words())?;
        }
        self.submit(variant, 1)?;
        let tolerance = self.op.tolerance(&self.call);
        let want = self.want.get_or_init(|| expected(self.op, &self.call, &self.before));
        let spoilt = self.device.inner.wrong_answer(self.op.name());
        for index in written() {
            let mut got = self.device.read(&self.buffers[index].whole())?;
            if spoilt {
                got.iter_mut().for_each(|word| *word = !*word);
            }
            let (name, kind) = (bindings[index].name, &self.before[index]);
            let rough = match variant {
                Some(variant) => variant.approximate,
                None => self.device.takes_approximate(self.op, &self.call),
            };
            let result = match kind {
                CaseBuffer::F32(_) | CaseBuffer::Output(_) if rough => {
                    compare_roughly(name, &want[index], &got)
                }
                _ => compare(name, kind, &tolerance, &want[index], &got),
            };
            result.map_err(|message| {
                let variant = variant.map_or("chosen", |variant| variant.name);
                Error::WrongAnswer { op: self.op.name(), variant, message }
            })?;
        }
        Ok(())
    }

    /// Dispatches that make a sample long enough for the device's clock.
    ///
    /// # Errors
    /// The device fails.
    pub fn dispatches(&self, variant: Option<&Variant>) -> Result<u32, Error> {
        let once_ms = self.time_ms(variant, 1)?;
        let least = if self.timed_by_device() { DEVICE_SAMPLE_MS } else { WALL_SAMPLE_MS };
        Ok(((least / once_ms.max(1e-6)).ceil() as u32).clamp(1, DISPATCHES_MAX))
    }

    /// Milliseconds of a dispatch, the mean over `count` of them in one submission: by the
    /// device's timestamps where it was opened with [`crate::Options::profile`] and has them,
    /// else by the host clock. Buffers are warm from the run before; an op that works in place
    /// runs on its own results again, which changes values, not the work.
    ///
    /// # Errors
    /// The device fails.
    pub fn time_ms(&self, variant: Option<&Variant>, count: u32) -> Result<f64, Error> {
        self.device.take_profile();
        let start = Instant::now();
        self.submit(variant, count)?;
        let wall_ms = start.elapsed().as_secs_f64() * 1e3;
        let times = self.device.take_profile();
        if !self.timed_by_device() {
            return Ok(wall_ms / f64::from(count));
        }
        let own = times.iter().filter(|time| time.op == self.op.name());
        Ok(own.map(|time| time.total_ms).sum::<f64>() / f64::from(count))
    }

    fn timed_by_device(&self) -> bool {
        self.device.inner.options.profile && self.device.info().timestamps
    }

    fn submit(&self, variant: Option<&Variant>, count: u32) -> Result<(), Error> {
        let mut recorder = self.device.recorder();
        for _ in 0..count {
            let bindings = self.buffers.iter().map(Buffer::whole).collect();
            let dispatch = Dispatch::new(self.op, self.call, bindings);
            match variant {
                Some(variant) => recorder.push_variant(dispatch, variant),
                None => recorder.push(dispatch),
            }
        }
        recorder.submit()?;
        self.device.wait()
    }
}
