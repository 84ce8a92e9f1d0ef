//! A tuned compressed model as a compressed model again: `W + (alpha / r) · B·A` (LoRA, Hu et al.
//! 2021, section 4.1) in the formats that the base has, the last exit's norm in place of the final
//! one, and its low-rank term in the head. Each weight is rounded for itself, with searched scales.

use std::borrow::Cow;
use std::path::Path;

use anyhow::{Context, Result};
use edge_kernels::Format;
use edge_kernels::pack::PackedHost;
use edge_scheduler::{Projection, Shard};

use super::header::About;
use super::solve::{Weight, nearest};
use super::write::{Changes, Writer};
use crate::exits::Exits;
use crate::family::names::weight_name;
use crate::merge::{Rounding, add_product};
use crate::session::{Source, Tuned};

/// Writes the model at its last exit into the folder `out`, shard by shard. How many weights
/// rounding moved. Of a run with isolated windows it takes the top window's adapters, which the
/// last exit alone has.
///
/// # Errors
/// The base is not compressed or damaged, or a file cannot be written.
pub fn merge(source: &Source, tuned: &Tuned, out: &Path, progress: &dyn Fn()) -> Result<Rounding> {
    let own = source.checkpoint.compressed().with_context(|| {
        format!(
            "{} is not compressed: give --format safetensors, and compress what it writes",
            source.dir.display()
        )
    })?;
    let about =
        About { program_version: env!("CARGO_PKG_VERSION").to_owned(), ..own.about.clone() };
    let exits = tuned.exits.as_ref();
    let norm = exits.and_then(|exits| exits.gammas.last());
    let norm = norm.map(|norm| source.config.stored_norm(norm));
    source.checkpoint.verify(0)?;
    let changes = Changes { norm, head: exits.and_then(Exits::head_term) };
    let mut writer = Writer::create_again(out, source, about, changes)?;
    let mut merging = Merging {
        source,
        tuned,
        first: exits.map_or(0, Exits::first_adapted),
        rounding: Rounding::default(),
    };
    for (block, rule) in own.about.policy.blocks.iter().enumerate() {
        source.checkpoint.verify(block + 1)?;
        writer.block_in_parts(|projection, part| {
            if part.0 == 0 {
                progress();
            }
            merging.part((block, projection), part, rule.get(projection)).map(Cow::Owned)
        })?;
    }
    writer.finish()?;
    Ok(merging.rounding)
}

struct Merging<'a> {
    source: &'a Source,
    tuned: &'a Tuned,
    /// The first block whose adapters count.
    first: usize,
    rounding: Rounding,
}

impl Merging<'_> {
    /// A part of a projection, as it is to be stored.
    fn part(
        &mut self,
        (block, projection): (usize, Projection),
        (index, shard): (usize, Shard),
        format: Format,
    ) -> Result<PackedHost> {
        let (checkpoint, name) = (&self.source.checkpoint, weight_name(block, projection));
        let (_, k) = self.source.config.shape().projection(projection);
        let stored = checkpoint.stored_part(&name, index, shard, k, format)?;
        self.rounding.weights += u64::from(shard.rows) * u64::from(k);
        let adapter = self.tuned.adapter.as_ref().filter(|_| block >= self.first);
        let found =
            adapter.and_then(|(config, all)| Some((config, all.get(&(block, projection))?)));
        let Some((config, (a, b))) = found else { return Ok(stored) };
        let mut data = stored.unpack();
        let rows = shard.row0 as usize..(shard.row0 + shard.rows) as usize;
        let b = &b[rows.start * config.r..rows.end * config.r];
        add_product(&mut data, (a, b), config.r, config.scale());
        let weight = Weight { rows: rows.len(), cols: k as usize, data: &data };
        let packed = nearest(weight, format, None).with_context(|| name.clone())?.packed;
        let moved = data.iter().zip(packed.unpack()).filter(|(want, got)| **want != *got);
        self.rounding.moved += moved.count() as u64;
        Ok(packed)
    }
}
