//! What a step's products cost in each format, measured on the device that is to run them or
//! predicted by the data sheet of one that is not here.

use std::collections::BTreeMap;

use anyhow::{Context, Result};
use edge_gpu::{Device, Listed, Trial};
use edge_kernels::ops::matmul::{matmul_nn, matmul_nt};
use edge_kernels::{Call, Format, Op};
use edge_scheduler::{ModelShape, Projection};

use super::options::Elsewhere;
use crate::cli::report::Progress;
use crate::interrupt;
use crate::plan::price::{Speed, cost};

/// Samples of each product, in turns over the formats; the median counts.
const ROUNDS: usize = 5;

/// Times of a projection, forward and backward to its input.
#[derive(Clone, Debug)]
pub struct StepTimes {
    shape: ModelShape,
    /// By `(n, k)`, in the order of the formats.
    times_ms: BTreeMap<(u32, u32), Vec<f64>>,
    formats: Vec<Format>,
}

impl StepTimes {
    /// Measures the products of a training step with `tokens` tokens, each checked against its
    /// reference first.
    ///
    /// # Errors
    /// The device fails, or answers wrong; or Ctrl-C.
    pub fn measure(
        device: &Device,
        shape: &ModelShape,
        formats: &[Format],
        tokens: u32,
        quiet: bool,
    ) -> Result<Self> {
        let sizes = Projection::ALL.map(|projection| shape.projection(projection));
        let mut times_ms: BTreeMap<(u32, u32), Vec<f64>> =
            sizes.iter().map(|size| (*size, Vec::new())).collect();
        let mut progress = Progress::new("time", times_ms.len() as u64, quiet);
        for (&(n, k), times) in &mut times_ms {
            *times = product_ms(device, (n, k), formats, tokens)?;
            progress.step(|| format!("{n} x {k}"));
        }
        progress.finish();
        Ok(Self { shape: shape.clone(), times_ms, formats: formats.to_vec() })
    }

    /// Predicts the products of a training step with `tokens` tokens by a data sheet. Where blocks
    /// are streamed, a product takes no less than reading its weights from storage: transfers
    /// overlap compute, and a step's schedule loads each block twice at most, up and down.
    pub fn predict(
        elsewhere: &Elsewhere,
        shape: &ModelShape,
        formats: &[Format],
        tokens: u32,
    ) -> Self {
        let speed = Speed::Profile(elsewhere.profile);
        let storage = elsewhere.profile.storage_bytes_per_s.value;
        let seconds = |(n, k): (u32, u32), format: Format| {
            let forward = Call::with_format(&matmul_nt::Params::dense(tokens, n, k), format);
            let backward = Call::with_format(&matmul_nn::Params::dense(tokens, n, k), format);
            let both: [Listed; 2] =
                [(&matmul_nt::MatmulNt, forward), (&matmul_nn::MatmulNn, backward)];
            let load_s = match elsewhere.streamed {
                true => format.bytes(n, k) as f64 / storage,
                false => 0.0,
            };
            both.iter().map(|call| speed.seconds(&cost(call)).max(load_s)).sum::<f64>()
        };
        let sizes = Projection::ALL.map(|projection| shape.projection(projection));
        let ms = |size| formats.iter().map(|&format| 1e3 * seconds(size, format)).collect();
        let times_ms = sizes.iter().map(|&size| (size, ms(size))).collect();
        Self { shape: shape.clone(), times_ms, formats: formats.to_vec() }
    }

    /// Milliseconds of a projection in a format, one of those that were measured.
    pub fn get(&self, projection: Projection, format: Format) -> Option<f64> {
        let times = self.times_ms.get(&self.shape.projection(projection))?;
        let index = self.formats.iter().position(|other| *other == format)?;
        times.get(index).copied()
    }
}

/// Forward and backward together, for each format.
fn product_ms(
    device: &Device,
    (n, k): (u32, u32),
    formats: &[Format],
    tokens: u32,
) -> Result<Vec<f64>> {
    let mut trials = Vec::new();
    for &format in formats {
        interrupt::check()?;
        let forward = Call::with_format(&matmul_nt::Params::dense(tokens, n, k), format);
        let backward = Call::with_format(&matmul_nn::Params::dense(tokens, n, k), format);
        let both: [(&'static dyn Op, Call); 2] =
            [(&matmul_nt::MatmulNt, forward), (&matmul_nn::MatmulNn, backward)];
        let mut pair = Vec::new();
        for (op, call) in both {
            let trial = Trial::new(device, op, call)?;
            trial.check(None)?;
            let count = trial.dispatches(None)?;
            pair.push((trial, count, Vec::with_capacity(ROUNDS)));
        }
        trials.push(pair);
    }
    for _ in 0..ROUNDS {
        for (trial, count, times) in trials.iter_mut().flatten() {
            times.push(trial.time_ms(None, *count)?);
        }
    }
    let median = |times: &mut Vec<f64>| -> Result<f64> {
        times.sort_by(f64::total_cmp);
        times.get(ROUNDS / 2).copied().context("samples of each product")
    };
    let sum = |pair: &mut Vec<(Trial<'_>, u32, Vec<f64>)>| {
        pair.iter_mut().map(|(_, _, times)| median(times)).sum()
    };
    trials.iter_mut().map(sum).collect()
}

#[cfg(test)]
mod tests {
    use edge_gpu::Options;
    use edge_scheduler::Extras;
    use edge_scheduler::profiles::DeviceProfile;

    use super::*;

    #[test]
    fn every_projection_has_a_time_in_every_format() {
        let device = Device::open("cpu", &Options::default()).expect("the cpu device");
        let shape = ModelShape {
            vocab_size: 64,
            hidden_size: 32,
            intermediate_size: 96,
            num_blocks: 2,
            num_heads: 2,
            num_kv_heads: 1,
            head_dim: 16,
            tied_head: true,
            extras: Extras::NONE,
        };
        let formats = [Format::Q4, Format::row_grouped(8)];
        let times = StepTimes::measure(&device, &shape, &formats, 4, true).expect("times");
        for projection in Projection::ALL {
            for format in formats {
                assert!(times.get(projection, format).is_some_and(|ms| ms > 0.0));
            }
            assert_eq!(times.get(projection, Format::Q8), None);
        }
    }

    #[test]
    fn on_a_device_that_streams_fewer_bytes_take_less_time() {
        let profile = DeviceProfile::find("raspberry-pi-5").expect("a profile");
        let shape = ModelShape {
            vocab_size: 64,
            hidden_size: 1024,
            intermediate_size: 2816,
            num_blocks: 2,
            num_heads: 16,
            num_kv_heads: 4,
            head_dim: 64,
            tied_head: true,
            extras: Extras::NONE,
        };
        let formats = [Format::Q4, Format::Q8, Format::F16];
        let times = |streamed| {
            let elsewhere = Elsewhere { profile, streamed };
            let times = StepTimes::predict(&elsewhere, &shape, &formats, 1);
            formats.map(|format| times.get(Projection::Up, format).expect("a time"))
        };
        let (resident, streamed) = (times(false), times(true));
        assert!(streamed[0] < streamed[1] && streamed[1] < streamed[2], "{streamed:?}");
        assert!(streamed.iter().zip(resident).all(|(streamed, resident)| *streamed >= resident));
    }
}
