//! Tuning: jobs of the methods, the training step, the run.

pub mod run;
pub mod save;
pub mod trainer;

use anyhow::{Result, ensure};
use edge_kernels::Format;
use edge_kernels::util::SeededRng;
use edge_scheduler::{BlockFormats, Job, Trained, Window};
use rand::{RngExt, SeedableRng};

use crate::cli::args::{Method, WindowOrder};
use crate::cli::options::TuneOptions;
use crate::session::Source;

/// The job of a method.
///
/// # Errors
/// More windows are asked for than the model has blocks; the checkpoint lacks its embedding.
pub fn job(options: &TuneOptions, source: &Source, seq_len: usize) -> Result<Job> {
    let group = options.group_size as u32;
    let formats = source.formats(options.bits, group)?;
    let mut job = source.job(formats, options.micro_batch as u32, seq_len as u32);
    job.training = true;
    job.optimizer = options.optimizer.into();
    let lora = Trained::Lora {
        rank: options.rank as u32,
        targets: options.targets.projections().to_vec(),
    };
    match options.method {
        Method::Full => {
            job.trained = Trained::Full;
            job.blocks.fill(BlockFormats::uniform(Format::F32));
        }
        Method::Lora => job.trained = lora,
        Method::Edge => {
            let blocks = source.config.num_hidden_layers;
            ensure!(
                options.windows <= blocks,
                "--windows {} is more than the model's {blocks} blocks: give at most {blocks}",
                options.windows
            );
            job.trained = lora;
            job.windows = Window::split(blocks as u32, options.windows as u32);
            job.exit_norms = true;
            job.vote = job.windows.len() > 1;
        }
    }
    Ok(job)
}

/// Which window each step trains.
pub struct Order {
    order: WindowOrder,
    windows: usize,
    steps: u64,
    rng: SeededRng,
}

impl Order {
    /// An order over a run of `steps` steps.
    pub fn new(order: WindowOrder, windows: usize, steps: u64, seed: u64) -> Self {
        Self { order, windows, steps, rng: SeededRng::seed_from_u64(seed) }
    }

    /// The window of step `step`; steps must be asked for in order.
    pub fn window(&mut self, step: u64) -> usize {
        let windows = self.windows as u64;
        let index = match self.order {
            WindowOrder::RoundRobin => step % windows,
            WindowOrder::Random => self.rng.random_range(0..windows),
            WindowOrder::Sequential => (step * windows / self.steps.max(1)).min(windows - 1),
        };
        index as usize
    }
}
