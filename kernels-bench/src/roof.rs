//! What the device could do at most, measured on it in the same run: bytes a second of `copy`
//! between buffers that no cache holds, and operations a second of `fma_rate`.

use anyhow::{Context, Result, anyhow};
use edge_gpu::Device;
use edge_kernels::Call;
use edge_kernels::op::Work;
use edge_kernels::ops::memory::copy;
use edge_kernels::ops::probe::fma_rate;

use crate::Subject;
use crate::measure::{Better, Measure};
use crate::runner::{Prepared, Which};

/// Words of each of the two buffers that `copy` runs on: 128 MiB, the largest binding of core
/// WebGPU, and several times the last cache of all but the largest servers.
const COPY_WORDS: u32 = 32 << 20;

/// Elements of the probe: as many invocations as fill any device several times over.
const FMA_COUNT: u32 = 1 << 18;

/// Samples of each; the fastest counts, since a roof is what is possible.
const SAMPLES: usize = 7;

/// Least time of a dispatch of the probe, milliseconds: launching it must not matter.
const FMA_MS: f64 = 5.0;

/// What a device does at most. There is none of the `cpu` device, whose probe is a formula.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Roof {
    /// Bytes read and written, 10⁹ a second.
    pub copy_gb_s: f64,
    /// Operations of multiply-adds in f32, each counting two, 10⁹ a second.
    pub fma_gflop_s: f64,
}

impl Roof {
    /// Measures both.
    ///
    /// # Errors
    /// The device fails or computes the probe wrong.
    pub fn measure(device: &Device) -> Result<Self> {
        let words = COPY_WORDS.min((device.info().max_binding_bytes / 8) as u32);
        let call = Call::new(&copy::Params { count: words, src_offset: 0, dst_offset: 0 });
        let subject = Subject { op: &copy::Copy, call, shape: "roof".into(), further: false };
        let copy_gb_s = best(&subject, device)?;
        let mut steps = fma_rate::UNROLLED;
        let fma_gflop_s = loop {
            let call = Call::new(&fma_rate::Params::new(FMA_COUNT, steps));
            let subject =
                Subject { op: &fma_rate::FmaRate, call, shape: "roof".into(), further: false };
            let rate = best(&subject, device)?;
            let ms = subject.op.work(&call).flops as f64 / (rate * 1e6);
            if ms >= FMA_MS || steps >= 1 << 16 {
                break rate;
            }
            steps *= 8;
        };
        Ok(Self { copy_gb_s, fma_gflop_s })
    }

    /// For a record, with the device's selector.
    pub fn measures(&self, selector: &str) -> [Measure; 2] {
        let rates =
            [("copy_gb_s", self.copy_gb_s, "GB/s"), ("fma_gflop_s", self.fma_gflop_s, "GFLOP/s")];
        rates.map(|(metric, value, unit)| Measure {
            kind: "roof".into(),
            op: "roof".into(),
            format: String::new(),
            shape: "device".into(),
            metric: metric.into(),
            value,
            unit: unit.into(),
            better: Better::Neither,
            repeat: format!("cargo xtask bench --device '{selector}' op=copy"),
            seed: None,
        })
    }

    /// Least time of this work, milliseconds: the longer of moving its bytes and doing its sums.
    pub fn least_ms(&self, work: Work) -> f64 {
        let moving = work.bytes as f64 / (self.copy_gb_s * 1e6);
        moving.max(work.flops as f64 / (self.fma_gflop_s * 1e6))
    }

    /// [`Roof::least_ms`] over the time that was measured. Above 1 where the caches, which are
    /// warm, deliver more than memory does.
    pub fn share(&self, work: Work, measured_ms: f64) -> f64 {
        self.least_ms(work) / measured_ms
    }
}

/// The best rate of any variant: 10⁹ operations a second, or bytes where it has none.
fn best(subject: &Subject, device: &Device) -> Result<f64> {
    let mut prepared = Prepared::new(subject, device, Which::All)?;
    if let Some(error) = prepared.wrong.pop() {
        return Err(error.context("the roof cannot be measured"));
    }
    let mut least_ms = f64::INFINITY;
    for choice in &prepared.choices {
        for _ in 0..SAMPLES {
            least_ms = least_ms.min(prepared.sample(choice).context("measuring the roof")?);
        }
    }
    let work = subject.op.work(&subject.call);
    let count = if work.flops > 0 { work.flops } else { work.bytes };
    let rate = count as f64 / (least_ms * 1e6);
    if rate.is_finite() && rate > 0.0 {
        return Ok(rate);
    }
    Err(anyhow!("{}: the device reports a time of {least_ms} ms", subject.name()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_longer_of_the_two_bounds() {
        let roof = Roof { copy_gb_s: 10.0, fma_gflop_s: 100.0 };
        let moving = Work { bytes: 20_000_000, flops: 1 };
        let summing = Work { bytes: 4, flops: 400_000_000 };
        assert_eq!(roof.least_ms(moving), 2.0);
        assert_eq!(roof.least_ms(summing), 4.0);
        assert_eq!(roof.share(moving, 4.0), 0.5);
        assert_eq!(roof.share(summing, 4.0), 1.0);
    }
}
