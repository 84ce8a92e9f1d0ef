//! What times are divided by to be compared between runs: a kernel that no change to the others
//! touches, timed right before and right after each of their samples in the same process. What
//! slows the machine down slows both, so that the quotient survives a busy machine; a slower clock
//! or fewer cores cancel too.

use anyhow::{Result, ensure};
use edge_gpu::Device;
use edge_kernels::Call;
use edge_kernels::ops::probe::fma_rate;

use crate::Subject;
use crate::runner::{Choice, Prepared, Which};

/// Elements of the probe.
const COUNT: u32 = 1 << 16;

/// Steps of each of its chains.
const STEPS: u32 = 16 * fma_rate::UNROLLED;

/// The calibration kernel, ready to be timed: chains of multiply-adds in registers, which has one
/// body whatever the device, and whose time depends on neither caches nor formats.
pub struct Calibration {
    prepared: Prepared,
    last_ms: f64,
}

impl Calibration {
    /// On a device. `None` on the `cpu` device, whose probe is a formula.
    ///
    /// # Errors
    /// The device fails or computes the probe wrong.
    pub fn new(device: &Device) -> Result<Option<Self>> {
        if device.info().backend == "host" {
            return Ok(None);
        }
        let call = Call::new(&fma_rate::Params::new(COUNT, STEPS));
        let shape = "calibration".into();
        let subject = Subject { op: &fma_rate::FmaRate, call, shape, further: false };
        let mut prepared = Prepared::new(&subject, device, Which::Production)?;
        if let Some(error) = prepared.wrong.pop() {
            return Err(error.context("the calibration kernel cannot be timed"));
        }
        Ok(Some(Self { prepared, last_ms: 0.0 }))
    }

    /// Before a series of samples.
    ///
    /// # Errors
    /// The device fails.
    pub fn begin(&mut self) -> Result<()> {
        self.last_ms = self.sample()?;
        Ok(())
    }

    /// A sample of `choice` in milliseconds, and over the mean of the calibration kernel's before
    /// and behind it.
    ///
    /// # Errors
    /// The device fails.
    pub fn around(&mut self, one: &Prepared, choice: &Choice) -> Result<(f64, f64)> {
        let before_ms = self.last_ms;
        let ms = one.sample(choice)?;
        self.last_ms = self.sample()?;
        Ok((ms, 2.0 * ms / (before_ms + self.last_ms)))
    }

    fn sample(&self) -> Result<f64> {
        let ms = self.prepared.sample(&self.prepared.choices[0])?;
        ensure!(ms > 0.0, "the device reports that the calibration kernel takes no time");
        Ok(ms)
    }
}
