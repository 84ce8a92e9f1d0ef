//! Which kernels a device runs: a measurement of which variant of a product is the fastest for
//! which shape, kept in a file per adapter and driver together with the variants that answer
//! wrongly there.
//!
//! A variant is only timed after its answer was compared with the reference, so that what a
//! driver miscompiles cannot win.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail, ensure};
use edge_gpu::{Device, DeviceInfo, Error, Trial};
use edge_kernels::op::Variant;
use edge_kernels::ops::matmul::{matmul_nn, matmul_nt, matmul_tn};
use edge_kernels::tuning::{Bucket, Tuning, Wrong};
use edge_kernels::{Call, Format, Op, Packing};
use edge_scheduler::{ModelShape, Policy, Projection};
use serde::{Deserialize, Serialize};

use crate::compress::layout::shards_of;
use crate::plan::facts;
use crate::run_dir::write_atomically;
use crate::whole_file::{self, SETTINGS};

/// Version of the file.
const FILE_VERSION: u32 = 1;

/// Samples of each variant, of which the median counts.
const ROUNDS: usize = 5;

/// A variant that is slower than the best by this factor after one sample gets no further ones.
const HOPELESS: f64 = 2.0;

/// A call whose variants are measured.
pub type Measured = (&'static dyn Op, Call);

/// What measuring the variants of one call found.
#[derive(Clone, Debug, Serialize, Deserialize, PartialEq)]
pub struct Choice {
    /// The fastest variant.
    pub variant: String,
    /// Its median time, milliseconds.
    pub median_ms: f64,
    /// The variant that runs without a choice.
    pub default: String,
    /// Its median time, milliseconds; absent where its answer was wrong.
    pub default_ms: Option<f64>,
    /// Variants whose answers were wrong, with what was wrong.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub wrong: Vec<String>,
    /// Those of them that nothing is to run, as [`Wrong`] writes itself.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub distrusted: Vec<String>,
}

/// The file of a device.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    version: u32,
    name: String,
    backend: String,
    driver: String,
    driver_info: String,
    choices: BTreeMap<String, Choice>,
    /// What the self-test found, as [`Wrong`] writes itself.
    #[serde(default, skip_serializing_if = "BTreeSet::is_empty")]
    distrusted: BTreeSet<String>,
}

impl File {
    fn of(info: &DeviceInfo) -> Self {
        Self {
            version: FILE_VERSION,
            name: info.name.clone(),
            backend: info.backend.clone(),
            driver: info.driver.clone(),
            driver_info: info.driver_info.clone(),
            choices: BTreeMap::new(),
            distrusted: BTreeSet::new(),
        }
    }

    /// Whether it was measured on this device with this version of its driver.
    fn belongs_to(&self, info: &DeviceInfo) -> bool {
        [&self.name, &self.backend, &self.driver, &self.driver_info]
            == [&info.name, &info.backend, &info.driver, &info.driver_info]
    }

    fn read(path: &Path) -> Result<Self> {
        let text = whole_file::text(path, SETTINGS)
            .with_context(|| format!("{} cannot be read", path.display()))?;
        let remedy = || format!("{} is not usable: delete it and measure again", path.display());
        let file: Self = serde_json::from_str(&text).with_context(remedy)?;
        ensure!(file.version == FILE_VERSION, "{} has version {}", remedy(), file.version);
        Ok(file)
    }
}

/// The file of a device in a folder of the user's cache folder, by adapter and API.
pub(crate) fn cache_file(info: &DeviceInfo, folder: &str) -> Option<PathBuf> {
    let plain = |c: char| if c.is_ascii_alphanumeric() { c.to_ascii_lowercase() } else { '-' };
    let name: String = format!("{} {}", info.name, info.backend).chars().map(plain).collect();
    let words: Vec<&str> = name.split('-').filter(|word| !word.is_empty()).collect();
    let file = format!("{}.json", words.join("-"));
    Some(dirs::cache_dir()?.join("edge-llm").join(folder).join(file))
}

/// Where the choices of a device are kept: in the user's cache folder, by adapter and API. `None`
/// where the system has no such folder, and for the `cpu` device, which has no variants.
pub fn path(info: &DeviceInfo) -> Option<PathBuf> {
    if info.kind == edge_gpu::DeviceKind::Host {
        return None;
    }
    cache_file(info, "kernels")
}

/// Lets a device run what was chosen for it, if anything was. What is returned says why a file is
/// not used: it is damaged, or an earlier version of the driver left it behind.
pub fn apply(device: &Device) -> Option<String> {
    let path = path(device.info()).filter(|path| path.exists())?;
    match File::read(&path) {
        Ok(file) if file.belongs_to(device.info()) => {
            device.set_tuning(tuning(&file));
            None
        }
        Ok(file) => Some(format!(
            "{} was measured with driver {}, this is {}: run `edge-runtime devices --autotune`",
            path.display(),
            file.driver_info,
            device.info().driver_info
        )),
        Err(error) => Some(format!("{error:#}")),
    }
}

/// The choices of a file; buckets of ops or formats that no longer exist are left out.
fn tuning(file: &File) -> Tuning {
    let mut tuning = Tuning::default();
    for (bucket, choice) in &file.choices {
        if let Ok(bucket) = bucket.parse() {
            tuning.set(bucket, choice.variant.clone());
        }
    }
    let measured = file.choices.values().flat_map(|choice| &choice.distrusted);
    for wrong in measured.chain(&file.distrusted) {
        if let Ok(wrong) = wrong.parse() {
            tuning.distrust(wrong);
        }
    }
    tuning
}

/// Adds choices to the file of a device, in place of older ones for the same buckets.
///
/// # Errors
/// There is no cache folder, or it cannot be written.
pub fn save(info: &DeviceInfo, choices: &[(Bucket, Choice)]) -> Result<PathBuf> {
    let path = path(info).context("this system has no cache folder for the choices")?;
    save_at(&path, info, choices)?;
    // What dispatches take was measured with other variants.
    facts::forget(info);
    Ok(path)
}

fn save_at(path: &Path, info: &DeviceInfo, choices: &[(Bucket, Choice)]) -> Result<()> {
    let mut file = old(path, info).unwrap_or_else(|| File::of(info));
    file.choices
        .extend(choices.iter().map(|(bucket, choice)| (bucket.to_string(), choice.clone())));
    write(path, &file)
}

/// Remembers which variants a self-test found wrong, in place of what an earlier one said of the
/// kernels that it `tested`. Returns where, if there is anything to remember.
///
/// # Errors
/// There is no cache folder, or it cannot be written.
pub fn remember(info: &DeviceInfo, tested: &[Wrong], wrong: &[Wrong]) -> Result<Option<PathBuf>> {
    match path(info) {
        Some(path) => {
            let (any, changed) = remember_at(&path, info, tested, wrong)?;
            if changed {
                facts::forget(info);
            }
            Ok(any.then_some(path))
        }
        None if wrong.is_empty() => Ok(None),
        None => bail!("this system has no cache folder to remember wrong kernels in"),
    }
}

/// Whether there is anything to remember, and whether that is new.
fn remember_at(
    path: &Path,
    info: &DeviceInfo,
    tested: &[Wrong],
    wrong: &[Wrong],
) -> Result<(bool, bool)> {
    let mut file = old(path, info).unwrap_or_else(|| File::of(info));
    let known = file.distrusted.clone();
    file.distrusted.retain(|text| {
        let same = |other: &Wrong| text.parse().is_ok_and(|text: Wrong| text.same_kernel(other));
        !tested.iter().any(same)
    });
    file.distrusted.extend(wrong.iter().map(Wrong::to_string));
    let changed = file.distrusted != known;
    if changed {
        write(path, &file)?;
    }
    Ok((!file.distrusted.is_empty(), changed))
}

/// What is known of a device and this version of its driver.
fn old(path: &Path, info: &DeviceInfo) -> Option<File> {
    File::read(path).ok().filter(|file| file.belongs_to(info))
}

fn write(path: &Path, file: &File) -> Result<()> {
    if let Some(folder) = path.parent() {
        std::fs::create_dir_all(folder)
            .with_context(|| format!("{} cannot be made", folder.display()))?;
    }
    let mut text = serde_json::to_string_pretty(file)?;
    text.push('\n');
    write_atomically(path, text.as_bytes())
}

/// Formats that are measured where no compressed model says which it has: each number of bits,
/// each sparsity, zero points and wider groups, what is common first, because time is limited.
pub const FORMATS: [Format; 18] = [
    Format::Q4,
    Format::row_grouped(4),
    Format::Q8,
    Format::Bf16,
    Format::two_four(4),
    Format::Q2,
    Format::Q3,
    Format::row_grouped(2),
    Format::F16,
    Format::row_grouped(16),
    Packing::new(4).zero_point().format(),
    Packing::new(4).group_size(64).format(),
    Format::row_grouped(8),
    Format::row_grouped(3),
    Format::two_four(16),
    Format::two_four(8),
    Format::two_four(2),
    Format::two_four(3),
];

/// A weight matrix `[n, k]`, or a shard of one, whose products are measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Matrix {
    /// Output channels.
    pub n: u32,
    /// Input channels.
    pub k: u32,
    /// How its weights are stored.
    pub format: Format,
}

/// The projections of these shapes in each of these formats, all shapes of the first format first.
pub fn matrices(shapes: &[ModelShape], formats: &[Format]) -> Vec<Matrix> {
    let of = |shape: &ModelShape, format| {
        Projection::ALL.map(|projection| {
            let (n, k) = shape.projection(projection);
            Matrix { n, k, format }
        })
    };
    let all = formats.iter().flat_map(|&format| shapes.iter().flat_map(move |s| of(s, format)));
    all.collect()
}

/// The projections of a compressed model in the formats and shards that it is loaded in, the
/// ones that most blocks have first.
pub fn matrices_of(shape: &ModelShape, policy: &Policy) -> Vec<Matrix> {
    let mut found: Vec<(Matrix, usize)> = Vec::new();
    for block in &policy.blocks {
        for projection in Projection::ALL {
            let (n, k) = shape.projection(projection);
            let format = block.get(projection);
            for shard in shards_of(n, k, format) {
                let matrix = Matrix { n: shard.rows, k, format };
                match found.iter_mut().find(|(known, _)| *known == matrix) {
                    Some((_, count)) => *count += 1,
                    None => found.push((matrix, 1)),
                }
            }
        }
    }
    found.sort_by_key(|(_, count)| std::cmp::Reverse(*count));
    found.into_iter().map(|(matrix, _)| matrix).collect()
}

/// The products of a training step and of decoding: every matrix forward and backward for
/// `tokens` tokens, and forward for one, in the order of the matrices; behind those of the first
/// format LoRA's products of rank `rank`. Calls of the same bucket occur once.
pub fn calls(matrices: &[Matrix], tokens: u32, rank: u32) -> Vec<Measured> {
    let mut calls: Vec<Measured> = Vec::new();
    let first = matrices.first().map(|matrix| matrix.format);
    let (first, others): (Vec<Matrix>, Vec<Matrix>) =
        matrices.iter().partition(|matrix| Some(matrix.format) == first);
    first.iter().for_each(|matrix| calls.extend(products(*matrix, tokens)));
    matrices.iter().for_each(|matrix| calls.extend(lora_products(*matrix, tokens, rank)));
    others.iter().for_each(|matrix| calls.extend(products(*matrix, tokens)));
    let mut seen = std::collections::HashSet::new();
    calls.retain(|(op, call)| Bucket::of(*op, call).is_some_and(|bucket| seen.insert(bucket)));
    calls
}

fn products(Matrix { n, k, format }: Matrix, tokens: u32) -> [Measured; 3] {
    let forward = |m| Call::with_format(&matmul_nt::Params::dense(m, n, k), format);
    let backward = Call::with_format(&matmul_nn::Params::dense(tokens, n, k), format);
    [
        (&matmul_nt::MatmulNt, forward(1)),
        (&matmul_nt::MatmulNt, forward(tokens)),
        (&matmul_nn::MatmulNn, backward),
    ]
}

fn lora_products(Matrix { n, k, .. }: Matrix, tokens: u32, rank: u32) -> Vec<Measured> {
    let mut calls: Vec<Measured> = Vec::new();
    for (n, k) in [(rank, k), (n, rank)] {
        let params = matmul_nt::Params::dense(tokens, n, k);
        calls.push((&matmul_nt::MatmulNt, Call::new(&params)));
        let params = matmul_nn::Params::dense(tokens, n, k);
        calls.push((&matmul_nn::MatmulNn, Call::new(&params)));
        let mut params = matmul_tn::Params::dense(tokens, n, k);
        params.splits = matmul_tn::splits(tokens, n, k);
        calls.push((&matmul_tn::MatmulTn, Call::new(&params)));
    }
    calls
}

/// Measures the variants of a call; `None` where there is nothing to choose from. The device
/// should have been opened with `profile`, for its own clock, and without choices.
///
/// # Errors
/// The device fails, or no variant answers right.
pub fn measure(device: &Device, (op, call): Measured) -> Result<Option<(Bucket, Choice)>> {
    let Some(bucket) = Bucket::of(op, &call) else { return Ok(None) };
    let trial = Trial::new(device, op, call)?;
    let variants = trial.variants();
    let Some(default) = variants.first().map(|variant| variant.name) else { return Ok(None) };
    if variants.len() < 2 {
        return Ok(None);
    }
    let (mut wrong, mut distrusted) = (Vec::new(), Vec::new());
    let mut right = Vec::new();
    for variant in &variants {
        match check(&trial, variant, (op, call)) {
            Ok(()) => right.push((variant, trial.dispatches(Some(variant))?, Vec::new())),
            Err(error @ (Error::WrongAnswer { .. } | Error::Shader { .. })) => {
                wrong.push(error.to_string());
                // One that is approximate may be right alone and wrong with its gradient; it only
                // runs where it was chosen.
                if !variant.approximate {
                    distrusted.push(Wrong::new(op, &call, variant.name).to_string());
                }
            }
            Err(error) => return Err(error.into()),
        }
    }
    ensure!(!right.is_empty(), "{bucket}: no variant is right: {}", wrong.join("; "));
    for round in 0..ROUNDS {
        // In turns, so that a machine that slows down slows all of them.
        let first = |times: &[f64]| times.first().copied().unwrap_or(f64::INFINITY);
        let best = right.iter().map(|(_, _, times)| first(times)).fold(f64::INFINITY, f64::min);
        for (variant, dispatches, times) in &mut right {
            if round == 0 || times[0] <= HOPELESS * best {
                times.push(trial.time_ms(Some(variant), *dispatches)?);
            }
        }
    }
    let medians: Vec<(&str, f64)> =
        right.iter().map(|(variant, _, times)| (variant.name, median(times))).collect();
    let best = medians.iter().min_by(|a, b| a.1.total_cmp(&b.1)).context("a variant")?;
    let default_ms = medians.iter().find(|(name, _)| *name == default).map(|(_, ms)| *ms);
    let choice = Choice {
        variant: best.0.into(),
        median_ms: best.1,
        default: default.into(),
        default_ms,
        wrong,
        distrusted,
    };
    Ok(Some((bucket, choice)))
}

/// Checks a variant's answer; one with cooperative matrices wins a forward product only together
/// with a gradient of its input that is right on this device as well.
fn check(trial: &Trial<'_>, variant: &Variant, (op, call): Measured) -> Result<(), Error> {
    trial.check(Some(variant))?;
    if variant.needs.cooperative.is_none() || op.name() != matmul_nt::MatmulNt.name() {
        return Ok(());
    }
    let forward: matmul_nt::Params = call.params();
    let params = matmul_nn::Params::dense(forward.m, forward.n, forward.k);
    let backward = Call::with_format(&params, call.format);
    Trial::new(trial.device(), &matmul_nn::MatmulNn, backward)?.check(None)
}

fn median(times: &[f64]) -> f64 {
    let mut times = times.to_vec();
    times.sort_by(f64::total_cmp);
    times[times.len() / 2]
}

#[cfg(test)]
mod tests {
    use super::*;
    use edge_gpu::Options;
    use edge_kernels::Sparsity;
    use edge_scheduler::BlockPolicy;

    fn cpu() -> Device {
        Device::open("cpu", &Options::default()).unwrap()
    }

    fn choice(variant: &str) -> Choice {
        Choice {
            variant: variant.into(),
            median_ms: 1.0,
            default: "tile".into(),
            default_ms: Some(2.0),
            wrong: Vec::new(),
            distrusted: Vec::new(),
        }
    }

    #[test]
    fn choices_are_kept_by_device_and_driver() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("deep").join("device.json");
        let mut info = cpu().info().clone();
        let bucket: Bucket = "matmul_nt q4 1x2048x2048".parse().unwrap();
        save_at(&path, &info, &[(bucket, choice("wide"))]).unwrap();
        let other: Bucket = "matmul_nn q4 1x2048x2048".parse().unwrap();
        save_at(&path, &info, &[(other, choice("tile"))]).unwrap();
        let file = File::read(&path).unwrap();
        assert!(file.belongs_to(&info));
        let found: Vec<(Bucket, String)> =
            tuning(&file).iter().map(|(bucket, name)| (bucket, name.into())).collect();
        assert_eq!(found, [(other, "tile".into()), (bucket, "wide".into())]);
        info.driver_info = "another version".into();
        assert!(!file.belongs_to(&info));
        save_at(&path, &info, &[(other, choice("tile"))]).unwrap();
        assert_eq!(File::read(&path).unwrap().choices.len(), 1, "old choices are gone");
    }

    #[test]
    fn a_self_test_replaces_what_is_known_of_the_kernels_that_it_tested() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("device.json");
        let info = cpu().info().clone();
        let kernel = |text: &str| text.parse::<Wrong>().unwrap();
        let [nt, nn] = ["matmul_nt q4 wide", "matmul_nn q4 tile"].map(kernel);
        let copy = [kernel("copy f32 vec4")];
        assert_eq!(remember_at(&path, &info, &copy, &[]).unwrap(), (false, false));
        assert!(!path.exists(), "nothing to remember");
        let all = [nt.clone(), nn.clone()];
        assert_eq!(remember_at(&path, &info, &all, &all).unwrap(), (true, true));
        assert_eq!(remember_at(&path, &info, &all, &all).unwrap(), (true, false));
        // The other one was left out this time.
        let tile = [kernel("matmul_nt q4 tile")];
        assert_eq!(remember_at(&path, &info, &tile, &[]).unwrap(), (true, true));
        let file = File::read(&path).unwrap();
        assert_eq!(file.distrusted.iter().collect::<Vec<_>>(), ["matmul_nn q4 tile"]);
        assert_ne!(tuning(&file), Tuning::default());
        assert_eq!(remember_at(&path, &info, &[nn], &[]).unwrap(), (false, true));
        assert!(File::read(&path).unwrap().distrusted.is_empty());
    }

    #[test]
    fn damaged_files_are_named() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("device.json");
        for text in ["", "{", "[]", r#"{"version": 1}"#, r#"{"version": 1, "name": 3}"#] {
            std::fs::write(&path, text).unwrap();
            let error = format!("{:#}", File::read(&path).unwrap_err());
            assert!(error.contains("device.json") && error.contains("delete it"), "{error}");
        }
    }

    #[test]
    fn calls_of_one_bucket_occur_once() {
        let shape = crate::testing::tiny_config().shape();
        let calls = calls(&matrices(&[shape.clone(), shape], &[Format::Q4, Format::Q2]), 64, 8);
        let buckets: std::collections::HashSet<Bucket> =
            calls.iter().filter_map(|(op, call)| Bucket::of(*op, call)).collect();
        assert_eq!(buckets.len(), calls.len());
        let place = |wanted: &dyn Fn(&Measured) -> bool| calls.iter().position(wanted).unwrap();
        let lora = place(&|(op, _)| op.name() == "matmul_tn");
        let first = place(&|(_, call)| call.format == Format::Q4);
        let later = place(&|(_, call)| call.format == Format::Q2);
        assert!(first < lora && lora < later, "{first} {lora} {later}");
    }

    #[test]
    fn the_formats_are_of_every_kind() {
        let packed: Vec<Packing> = FORMATS.iter().filter_map(|format| format.packing()).collect();
        for kept in [Sparsity::Dense, Sparsity::TwoFour, Sparsity::RowGrouped] {
            for bits in [2, 3, 4, 8, 16] {
                let found = packed.iter().any(|p| p.kept() == kept && p.bits() == bits);
                assert_eq!(found, bits != 16 || kept != Sparsity::Dense, "{bits} bits, {kept:?}");
            }
        }
        assert!(packed.iter().any(|packing| packing.has_zero_point()));
        assert!(packed.iter().any(|packing| packing.group() == Some(64)));
        let distinct: std::collections::HashSet<Format> = FORMATS.into_iter().collect();
        assert_eq!(distinct.len(), FORMATS.len());
    }

    #[test]
    fn a_compressed_model_is_measured_in_its_formats_alone() {
        let shape = crate::testing::tiny_config().shape();
        let mut down = BlockPolicy::uniform(Format::row_grouped(4));
        down.overrides[Projection::Down.index()] = Some(Format::Q3);
        let mut blocks = vec![BlockPolicy::uniform(Format::Q8)];
        blocks.resize(4, down);
        let policy = Policy { name: "test".into(), blocks };
        let found = matrices_of(&shape, &policy);
        assert_eq!(found[0].format, Format::row_grouped(4), "what most blocks have");
        let (n, k) = shape.projection(Projection::Down);
        let has = |n, k, format| found.contains(&Matrix { n, k, format });
        assert!(has(n, k, Format::Q3) && has(n, k, Format::Q8));
        assert!(!has(n, k, Format::row_grouped(4)));
        let formats: std::collections::HashSet<&str> =
            calls(&found, 64, 8).iter().map(|(_, call)| call.format.name()).collect();
        assert_eq!(formats, ["q8", "q4r", "q3", "f32"].into_iter().collect(), "f32 is LoRA's");
    }
}
