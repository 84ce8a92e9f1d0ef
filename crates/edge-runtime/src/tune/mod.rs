//! Tuning: jobs of the methods, the training step, the run.

pub mod best;
pub mod cache;
pub mod checkpoints;
pub mod course;
mod disk;
pub mod event;
pub mod header;
mod pass;
mod recover;
mod rest;
pub mod resume;
pub mod run;
pub mod save;
pub mod session;
pub mod trainer;
pub mod trunk_cache;
pub mod trunk_level;
pub mod validate;

use anyhow::{Result, ensure};
use edge_kernels::Format;
use edge_scheduler::plan::MAX_SHARD_BYTES;
use edge_scheduler::{BlockFormats, Job, Trained, Window};

use crate::cli::args::{Method, Semantics};
use crate::cli::options::TuneOptions;
use crate::session::Source;

/// Tokens that are validated at once, or one sequence: more would take memory that training does
/// not need.
const EVAL_TOKENS: usize = 512;

/// The job of a method.
///
/// # Errors
/// More windows are asked for than the model has blocks; the checkpoint lacks its embedding.
pub fn job(options: &TuneOptions, source: &Source, seq_len: usize) -> Result<Job> {
    let formats = source.formats(options.bits, options.group_size)?;
    let mut job = source.job(formats, options.micro_batch as u32, seq_len as u32);
    job.training = true;
    job.recompute = options.recompute;
    let compared = EVAL_TOKENS / seq_len.max(1);
    job.eval_batch = compared.clamp(1, options.micro_batch) as u32;
    job.optimizer = options.optimizer.into();
    if options.method != Method::Full {
        source.config.check_targets(options.targets.projections())?;
    }
    let lora = Trained::Lora {
        rank: options.rank as u32,
        targets: options.targets.projections().to_vec(),
    };
    match options.method {
        Method::Full => {
            ensure!(
                source.checkpoint.compressed().is_none(),
                "{} is compressed and its weights cannot be trained: give --model the original \
                 checkpoint, or use --method edge or lora",
                source.dir.display()
            );
            ensure!(
                source.config.family.norm_offset == 0.0 || options.weight_decay == 0.0,
                "--weight-decay would pull norms of {} models to 0 instead of 1: leave it out with \
                 --method full",
                source.config.family.name
            );
            job.trained = Trained::Full;
            job.blocks.fill(BlockFormats::uniform(Format::F32));
        }
        Method::Lora | Method::Qlora => job.trained = lora,
        Method::Partial => {
            job.trained = lora;
            job.windows = windows(options, source)?.split_off(options.windows - 1);
        }
        Method::Edge => {
            job.trained = lora;
            job.windows = windows(options, source)?;
            job.phases = options.semantics.has_phases();
            job.isolated = options.semantics == Semantics::Isolated && options.windows > 1;
            job.exit_norms = true;
            job.exit_rank = exit_rank(options, source)?;
            job.vote = job.windows.len() > 1;
        }
    }
    Ok(job)
}

/// The rank of the exits' low-rank terms, whose `B [vocab_size, r]` is bound as a whole.
fn exit_rank(options: &TuneOptions, source: &Source) -> Result<u32> {
    let (rank, vocab) = (options.exit_rank, source.config.vocab_size);
    let most = MAX_SHARD_BYTES as usize / 4 / vocab;
    ensure!(
        rank <= most,
        "--exit-rank {rank} makes a matrix of {vocab} rows that is too large to be bound: give at \
         most {most}"
    );
    Ok(rank as u32)
}

/// The windows that the options ask for, over all blocks.
fn windows(options: &TuneOptions, source: &Source) -> Result<Vec<Window>> {
    let blocks = source.config.num_hidden_layers;
    ensure!(
        options.windows <= blocks,
        "--windows {} is more than the model's {blocks} blocks: give at most {blocks}",
        options.windows
    );
    Ok(Window::split(blocks as u32, options.windows as u32))
}
