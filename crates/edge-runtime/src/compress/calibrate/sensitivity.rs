//! Sensitivity: what the model loses when one block, or one projection, is compressed.
//!
//! The paper's number is the mean squared error of a block's output with that block alone
//! compressed (Edge-LLM, DAC 2024, section on layer-wise unified compression). Blocks write into
//! one residual stream whose size grows with depth, so the error is also given relative to the
//! variance of what the block adds, and, where asked for, as the divergence of the model's final
//! distribution, which is what all of it is for.

use std::path::Path;
use std::sync::Arc;

use anyhow::{Context, Result, ensure};
use edge_kernels::Format;
use edge_kernels::pack::PackedHost;
use edge_scheduler::{LinearInput, Projection};
use serde::{Deserialize, Serialize};

use super::hash::Fnv;
use super::runner::Runner;
use super::states::States;
use super::text::CalibrationSet;
use crate::compress::solve::Hessian;
use crate::run_dir::write_atomically;
use crate::whole_file::{self, LARGE};

/// What is measured of a block that is compressed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Mode {
    /// The error of its output.
    Output,
    /// That, and the divergence of the final distribution.
    Loss,
}

/// What is compressed at a time.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Granularity {
    /// All projections of a block.
    Block,
    /// That, and each projection alone.
    Projection,
}

/// What to measure.
#[derive(Clone, Debug)]
pub struct Measure {
    /// The formats. The runner must have been opened with them.
    pub candidates: Vec<Format>,
    /// What of the model is looked at.
    pub mode: Mode,
    /// What is compressed at a time.
    pub granularity: Granularity,
    /// Whether `pack` is given second moments: they cost about as much as running the blocks.
    pub hessians: bool,
    /// What `pack` does, with its settings: measurements by another method are others.
    pub method: String,
}

impl Measure {
    /// What a measurement depends on, in words.
    pub fn key(&self, model_hash: &str, set: &CalibrationSet) -> String {
        let names: Vec<&str> = self.candidates.iter().map(|format| format.name()).collect();
        format!(
            "1: model {model_hash}, text {}, {:?} by {:?}, moments {}, {}: {}",
            set.hash(),
            self.mode,
            self.granularity,
            self.hessians,
            self.method,
            names.join(" ")
        )
    }

    /// Measurements of a model of so many blocks.
    pub fn count(&self, num_blocks: u32) -> usize {
        let each = match self.granularity {
            Granularity::Block => 1,
            Granularity::Projection => 1 + Projection::ALL.len(),
        };
        num_blocks as usize * self.candidates.len() * each
    }
}

/// One measurement.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Entry {
    /// The block that is compressed.
    pub block: u32,
    /// The projection ([`Projection::name`]) that is compressed alone; absent: all of the block.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub projection: Option<String>,
    /// Name of the format.
    pub format: String,
    /// Mean squared error of the block's output.
    pub output_mse: f64,
    /// That over the variance of what the block adds to the residual stream.
    pub relative_mse: f64,
    /// `KL(p ‖ q)` of the final distribution, nats a position ([`Mode::Loss`]).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub kl: Option<f64>,
    /// Cross-entropy of the model, nats a token ([`Mode::Loss`]).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub loss: Option<f64>,
}

/// What each block loses in each format. Numbers have nine digits, so that what is read back from
/// a file is what was written.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Sensitivity {
    /// [`Measure::key`].
    pub key: String,
    /// Blocks of the model.
    pub num_blocks: u32,
    /// Cross-entropy of the uncompressed model, nats a token ([`Mode::Loss`]).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reference_loss: Option<f64>,
    /// The measurements, by block, format and projection.
    pub entries: Vec<Entry>,
}

/// A layer that is to be packed.
pub struct Layer<'a> {
    /// Its block.
    pub block: u32,
    /// Which projection.
    pub projection: Projection,
    /// The weight, `[n, k]`.
    pub weight: &'a [f32],
    /// Rows `n` and columns `k`.
    pub shape: (u32, u32),
    /// Second moments of its input, where [`Measure::hessians`] asks for them.
    pub hessian: Option<&'a Hessian>,
}

/// Packs a layer into each of some formats.
pub type Pack<'a> = dyn FnMut(&Layer<'_>, &[Format]) -> Result<Vec<Arc<PackedHost>>> + 'a;

/// Makes the folder that a file is to be written in.
///
/// # Errors
/// It cannot be made.
pub fn make_folder(path: &Path) -> Result<()> {
    let Some(dir) = path.parent() else { return Ok(()) };
    std::fs::create_dir_all(dir).with_context(|| {
        format!("cannot create {}: give --sensitivity another path", dir.display())
    })
}

/// Called with the measurements done and all of them; an error ends the work.
pub type Progress<'a> = dyn FnMut(usize, usize) -> Result<()> + 'a;

impl Sensitivity {
    /// The measurement of a block (`projection` `None`) or projection in a format.
    pub fn get(
        &self,
        block: u32,
        projection: Option<Projection>,
        format: Format,
    ) -> Option<&Entry> {
        let name = projection.map(Projection::name);
        self.entries.iter().find(|entry| {
            let place = (entry.block, entry.projection.as_deref());
            place == (block, name) && entry.format == format.name()
        })
    }

    /// Reads a file that [`Sensitivity::save`] wrote. `None`, and a line in the log that says
    /// why, where there is none, where it is damaged, and where it belongs to another measurement.
    pub fn load(path: &Path, measure: &Measure, key: &str, num_blocks: u32) -> Option<Self> {
        let text = whole_file::text(path, LARGE).ok()?;
        let damaged = || tracing::warn!("{} is damaged: measured again", path.display());
        let Some(found) = parse(&text) else {
            damaged();
            return None;
        };
        if found.key != key || found.num_blocks != num_blocks {
            tracing::info!("{} belongs to other settings: measured again", path.display());
            return None;
        }
        let finite = |entry: &Entry| entry.output_mse.is_finite() && entry.output_mse >= 0.0;
        let whole = found.entries.len() == measure.count(num_blocks);
        if !whole || !found.entries.iter().all(finite) {
            damaged();
            return None;
        }
        Some(found)
    }

    /// Writes it with a checksum, atomically.
    ///
    /// # Errors
    /// The file cannot be written.
    pub fn save(&self, path: &Path) -> Result<()> {
        let body = serde_json::to_string(self)?;
        let check = Fnv::default().bytes(body.as_bytes()).hex();
        write_atomically(path, format!("{HEAD}{check}{MIDDLE}{body}{END}").as_bytes())
    }

    /// Reads a measurement from a file where it is there, else measures and writes the file, with
    /// the folder that it is in; and why it could not be written, where it could not.
    ///
    /// # Errors
    /// As [`Sensitivity::measure`].
    pub fn cached(
        path: &Path,
        (runner, set): (&mut Runner<'_>, &CalibrationSet),
        measure: &Measure,
        model_hash: &str,
        pack: &mut Pack<'_>,
        progress: &mut Progress<'_>,
    ) -> Result<(Self, Option<anyhow::Error>)> {
        let key = measure.key(model_hash, set);
        if let Some(found) = Self::load(path, measure, &key, runner.num_blocks()) {
            return Ok((found, None));
        }
        let measured = Self::measure((runner, set), measure, model_hash, pack, progress)?;
        let saved = make_folder(path).and_then(|()| measured.save(path));
        Ok((measured, saved.err()))
    }

    /// Measures a model on calibration text. The runner's weights are its own afterwards.
    ///
    /// # Errors
    /// Packing fails, an output is not finite, the device fails, or a temporary file.
    pub fn measure(
        (runner, set): (&mut Runner<'_>, &CalibrationSet),
        measure: &Measure,
        model_hash: &str,
        pack: &mut Pack<'_>,
        progress: &mut Progress<'_>,
    ) -> Result<Self> {
        runner.restore_all();
        let mut work = Work { set, measure, pack, progress, reference: None, entries: Vec::new() };
        let measured = work.run(runner);
        runner.restore_all();
        let reference_loss = measured?;
        let key = measure.key(model_hash, set);
        let (entries, num_blocks) = (work.entries, runner.num_blocks());
        Ok(Self { key, num_blocks, reference_loss, entries })
    }
}

/// The file is `{"check":"…","sensitivity":…}`, the checksum being that of the text of the value.
const HEAD: &str = "{\"check\":\"";
const MIDDLE: &str = "\",\"sensitivity\":";
const END: &str = "}\n";

fn parse(text: &str) -> Option<Sensitivity> {
    let (check, body) = text.strip_prefix(HEAD)?.strip_suffix(END)?.split_once(MIDDLE)?;
    let right = Fnv::default().bytes(body.as_bytes()).hex() == check;
    serde_json::from_str(body).ok().filter(|_| right)
}

/// Nine digits: few enough that JSON readers restore them exactly.
fn rounded(value: f64) -> f64 {
    format!("{value:.8e}").parse().unwrap_or(value)
}

struct Work<'a, 'p> {
    set: &'a CalibrationSet,
    measure: &'a Measure,
    pack: &'a mut Pack<'p>,
    progress: &'a mut Progress<'p>,
    /// Hidden states behind the last block.
    reference: Option<States>,
    entries: Vec<Entry>,
}

/// A block's projections in a format, by [`Projection::index`].
pub type Packed = Vec<Arc<PackedHost>>;

/// A block in every candidate of a measurement, from its input: for each candidate its
/// projections, by [`Projection::index`].
///
/// # Errors
/// Packing fails, the device fails, or a temporary file.
pub fn pack_block(
    runner: &mut Runner<'_>,
    (block, input): (u32, &States),
    measure: &Measure,
    pack: &mut Pack<'_>,
) -> Result<Vec<Packed>> {
    let mut packed: Vec<Packed> = vec![Packed::new(); measure.candidates.len()];
    // One at a time where device memory is short: host memory will be, too.
    let groups: Vec<Vec<LinearInput>> = match runner.sums_moments_together() {
        true => vec![LinearInput::ALL.to_vec()],
        false => LinearInput::ALL.iter().map(|input| vec![*input]).collect(),
    };
    for group in groups {
        let hessians = match measure.hessians {
            true => runner.hessians(block, input, &group)?,
            false => Vec::new(),
        };
        let words: usize = hessians.iter().map(|hessian| hessian.sum.len()).sum();
        let _charge = runner.host().charge(4 * words as u64);
        for (index, input) in group.into_iter().enumerate() {
            for projection in input.projections() {
                let weight = runner.own_weight(block, projection)?;
                let shape = runner.shape().projection(projection);
                let hessian = hessians.get(index);
                let layer = Layer { block, projection, weight: &weight, shape, hessian };
                let all = pack(&layer, &measure.candidates)?;
                assert_eq!(all.len(), packed.len(), "a matrix for each candidate");
                packed.iter_mut().zip(all).for_each(|(packed, matrix)| packed.push(matrix));
            }
        }
    }
    Ok(packed)
}

/// A block between its input and its own output.
struct Place<'s> {
    block: u32,
    input: &'s States,
    output: &'s States,
    /// [`Runner::contribution_variance`].
    variance: f64,
}

impl Work<'_, '_> {
    /// Returns the cross-entropy of the uncompressed model where that is measured.
    fn run(&mut self, runner: &mut Runner<'_>) -> Result<Option<f64>> {
        let blocks = runner.num_blocks();
        let mut input = runner.embed(self.set)?;
        let mut loss = None;
        if self.measure.mode == Mode::Loss {
            let mut last = runner.copy(&input)?;
            runner.advance(0..blocks, &mut last)?;
            let own = runner.divergence(blocks, &last, &last, self.set)?;
            loss = Some(rounded(own.loss));
            self.reference = Some(last);
        }
        for block in 0..blocks {
            let output = runner.forward(block, &input)?;
            let variance = runner.contribution_variance(&input, &output)?;
            let packed = pack_block(runner, (block, &input), self.measure, self.pack)?;
            let place = Place { block, input: &input, output: &output, variance };
            for (format, weights) in self.measure.candidates.iter().zip(&packed) {
                self.measure_block(runner, &place, *format, weights)?;
            }
            input = output;
        }
        Ok(loss)
    }

    fn measure_block(
        &mut self,
        runner: &mut Runner<'_>,
        place: &Place<'_>,
        format: Format,
        weights: &Packed,
    ) -> Result<()> {
        for (projection, weight) in Projection::ALL.into_iter().zip(weights) {
            runner.set_weight(place.block, projection, Arc::clone(weight))?;
        }
        self.measure_one(runner, place, format, None)?;
        if self.measure.granularity == Granularity::Projection {
            for (projection, weight) in Projection::ALL.into_iter().zip(weights) {
                runner.restore_all();
                runner.set_weight(place.block, projection, Arc::clone(weight))?;
                self.measure_one(runner, place, format, Some(projection))?;
            }
        }
        runner.restore_all();
        Ok(())
    }

    fn measure_one(
        &mut self,
        runner: &mut Runner<'_>,
        place: &Place<'_>,
        format: Format,
        projection: Option<Projection>,
    ) -> Result<()> {
        let mse = runner.output_mse(place.block, place.input, place.output)?;
        let relative = if mse == 0.0 { 0.0 } else { mse / place.variance.max(f64::MIN_POSITIVE) };
        let divergence = match &self.reference {
            Some(last) => Some(runner.divergence(place.block, place.input, last, self.set)?),
            None => None,
        };
        let kl = divergence.map(|divergence| divergence.kl);
        ensure!(
            relative.is_finite() && kl.is_none_or(f64::is_finite),
            "block {} gives outputs that are not finite with {} in {}: the checkpoint is damaged, \
             or its weights are too large for the format",
            place.block,
            projection.map_or("all projections", Projection::name),
            format.name()
        );
        self.entries.push(Entry {
            block: place.block,
            projection: projection.map(|projection| projection.name().to_owned()),
            format: format.name().to_owned(),
            output_mse: rounded(mse),
            relative_mse: rounded(relative),
            kl: kl.map(rounded),
            loss: divergence.map(|divergence| rounded(divergence.loss)),
        });
        (self.progress)(self.entries.len(), self.measure.count(runner.num_blocks()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn measure() -> Measure {
        Measure {
            candidates: vec![Format::Q4, Format::Q2],
            mode: Mode::Loss,
            granularity: Granularity::Block,
            hessians: false,
            method: "nearest".to_owned(),
        }
    }

    fn sensitivity(key: &str) -> Sensitivity {
        let entry = |block: u32, format: Format| Entry {
            block,
            projection: None,
            format: format.name().to_owned(),
            output_mse: rounded(0.1 / 3.0 / f64::from(block + 1)),
            relative_mse: rounded(1e-7 / 3.0),
            kl: Some(rounded(2.0 / 3.0)),
            loss: Some(rounded(std::f64::consts::PI)),
        };
        let formats = [Format::Q4, Format::Q2];
        let entries = (0..3).flat_map(|block| formats.map(|format| entry(block, format)));
        let (key, entries) = (key.to_owned(), entries.collect());
        Sensitivity { key, num_blocks: 3, reference_loss: Some(1.5), entries }
    }

    #[test]
    fn a_file_comes_back_as_it_was_or_not_at_all() {
        let dir = tempfile::tempdir().expect("a folder");
        let path = dir.path().join("sensitivity.json");
        let load = |key: &str, blocks| Sensitivity::load(&path, &measure(), key, blocks);
        assert_eq!(load("k", 3), None);
        let written = sensitivity("k");
        written.save(&path).expect("written");
        assert_eq!(load("k", 3).as_ref(), Some(&written));
        assert!(load("other", 3).is_none() && load("k", 4).is_none());
        let more = Measure { granularity: Granularity::Projection, ..measure() };
        assert_eq!(Sensitivity::load(&path, &more, "k", 3), None);
        let text = std::fs::read_to_string(&path).expect("read");
        serde_json::from_str::<serde_json::Value>(&text).expect("ordinary JSON");
        for damaged in [&text[..text.len() - 9], "", &text.replacen("0.0333", "0.0334", 1)] {
            assert_ne!(damaged, text);
            std::fs::write(&path, damaged).expect("written");
            assert_eq!(load("k", 3), None);
        }
        let found = written.get(2, None, Format::Q2).expect("an entry");
        assert_eq!((found.block, found.format.as_str()), (2, "q2"));
        assert_eq!(written.get(2, Some(Projection::Q), Format::Q2), None);
    }

    #[test]
    fn the_key_says_all_that_a_measurement_depends_on() {
        let stream = |first: u32| {
            crate::data::Stream::text((first..first + 20).collect(), "a.txt".to_owned())
        };
        let set = |first| CalibrationSet::of_stream(&stream(first), 4, 3, None).expect("a set");
        let mut keys = vec![measure().key("m", &set(0))];
        keys.push(measure().key("n", &set(0)));
        keys.push(measure().key("m", &set(1)));
        let others = [
            Measure { candidates: vec![Format::Q4], ..measure() },
            Measure { mode: Mode::Output, ..measure() },
            Measure { granularity: Granularity::Projection, ..measure() },
            Measure { hessians: true, ..measure() },
            Measure { method: "other".to_owned(), ..measure() },
        ];
        keys.extend(others.iter().map(|measure| measure.key("m", &set(0))));
        let count = keys.len();
        keys.sort();
        keys.dedup();
        assert_eq!(keys.len(), count);
        assert_eq!(measure().count(5), 10);
    }
}
