//! Whether a run keeps hidden states, where, and what they depend on.

use anyhow::{Context, Result};

use super::trunk_cache::{Groups, TrunkCache};
use super::trunk_level::Sizes;
use crate::cli::args::{Method, TrunkCache as Place};
use crate::cli::options::TuneOptions;
use crate::compress::calibrate::hash::{Fnv, model_hash};
use crate::data::Dataset;
use crate::model::Model;
use crate::run_dir::RunDir;
use crate::session::Source;

/// Its folder in a run directory.
pub const DIR: &str = "trunk";

/// Whether what lies below the window that is trained is fixed, for the whole run or for a phase.
fn trunk_is_fixed(options: &TuneOptions) -> bool {
    match options.method {
        Method::Partial => true,
        Method::Edge => options.semantics.has_phases(),
        Method::Full | Method::Lora | Method::Qlora => false,
    }
}

/// Makes the folder that a cache is to be kept in, before a run leaves anything behind.
///
/// # Errors
/// It cannot be made.
pub fn prepare(options: &TuneOptions) -> Result<()> {
    let Place::Folder(dir) = &options.trunk_cache else { return Ok(()) };
    std::fs::create_dir_all(dir).with_context(|| {
        format!("cannot make {}: give --trunk-cache another folder", dir.display())
    })
}

/// The cache of a run over `sequences` training sequences; `None` where nothing is fixed, or none
/// is wanted.
///
/// # Errors
/// The folder cannot be made or has no room.
pub fn open(
    options: &TuneOptions,
    source: &Source,
    model: &Model,
    data: &Dataset,
    sequences: u64,
    run_dir: &RunDir,
) -> Result<Option<TrunkCache>> {
    let trunk = model.job.windows.iter().any(|window| window.first > 0);
    let (dir, keep) = match &options.trunk_cache {
        Place::Off => return Ok(None),
        _ if !trunk || !trunk_is_fixed(options) => return Ok(None),
        Place::Auto => (run_dir.path().join(DIR), false),
        Place::Folder(dir) => (dir.clone(), true),
    };
    let job = &model.job;
    let mut key = Fnv::default();
    key.text(&model_hash(&source.dir, &source.checkpoint)?);
    key.text(&format!("{:?} {:?}", job.blocks, job.embedding)).text(&model.device.info().name);
    // What adapters are multiplied by.
    key.number((options.alpha / options.rank as f64).to_bits());
    key.bytes(bytemuck::cast_slice(&data.train.ids[..]));
    for example in data.train.examples.iter() {
        key.number(example.start as u64);
    }
    if data.train.packing {
        key.text("packed");
    }
    // Which sequences are computed together.
    key.number(options.seed).number(job.batch.into());
    let sizes = Sizes {
        sequences,
        seq_len: job.seq_len.into(),
        hidden_size: model.shape.hidden_size.into(),
    };
    let (seq_len, size) = (job.seq_len as usize, job.batch as usize);
    let groups = Groups::new(&data.train, seq_len, options.seed, size)?;
    Ok(Some(TrunkCache::new(&dir, keep, key.hex(), sizes, groups)?))
}
