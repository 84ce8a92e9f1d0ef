//! What times are divided by to be compared between runs: a kernel that no change to the others
//! touches, timed right before and right after each of their samples in the same process. What
//! slows the machine down slows both, and a slower clock cancels.
//!
//! Where the CPU runs the shaders, other programs are let in during one sample and not during the
//! next, and the quotient of times by the wall varies by half; there it is of the time that our
//! threads ran.

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
    /// What the last sample of the calibration kernel cost, milliseconds.
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

    /// A sample of `choice` in milliseconds, and what it cost over the mean of the calibration
    /// kernel's cost before and behind it.
    ///
    /// # Errors
    /// The device fails.
    pub fn around(&mut self, one: &Prepared, choice: &Choice) -> Result<(f64, f64)> {
        let before_ms = self.last_ms;
        let (ms, cost_ms) = one.sample_and_cost(choice)?;
        self.last_ms = self.sample()?;
        Ok((ms, 2.0 * cost_ms / (before_ms + self.last_ms)))
    }

    fn sample(&self) -> Result<f64> {
        let (_, cost_ms) = self.prepared.sample_and_cost(&self.prepared.choices[0])?;
        ensure!(cost_ms > 0.0, "the device reports that the calibration kernel takes no time");
        Ok(cost_ms)
    }
}
