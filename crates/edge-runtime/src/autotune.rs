//! Which kernels a device runs: a quick test that each one answers right, and a measurement of
//! which variant of a product is the fastest for which shape, kept in a file per adapter and
//! driver.
//!
//! A variant is only timed after its answer was compared with the reference, so that what a
//! driver miscompiles cannot win.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use edge_gpu::{Device, DeviceInfo, Error, Trial};
use edge_kernels::op::Case;
use edge_kernels::ops::matmul::{matmul_nn, matmul_nt, matmul_tn};
use edge_kernels::tuning::{Bucket, Tuning};
use edge_kernels::{Call, Format, OPS, Op};
use edge_scheduler::{ModelShape, Projection};
use serde::{Deserialize, Serialize};

use crate::run_dir::write_atomically;

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
    choices: std::collections::BTreeMap<String, Choice>,
}

impl File {
    fn of(info: &DeviceInfo) -> Self {
        Self {
            version: FILE_VERSION,
            name: info.name.clone(),
            backend: info.backend.clone(),
            driver: info.driver.clone(),
            driver_info: info.driver_info.clone(),
            choices: std::collections::BTreeMap::new(),
        }
    }

    /// Whether it was measured on this device with this version of its driver.
    fn belongs_to(&self, info: &DeviceInfo) -> bool {
        [&self.name, &self.backend, &self.driver, &self.driver_info]
            == [&info.name, &info.backend, &info.driver, &info.driver_info]
    }

    fn read(path: &Path) -> Result<Self> {
        let text = std::fs::read_to_string(path)
            .with_context(|| format!("{} cannot be read", path.display()))?;
        let remedy = || format!("{} is not usable: delete it and measure again", path.display());
        let file: Self = serde_json::from_str(&text).with_context(remedy)?;
        ensure!(file.version == FILE_VERSION, "{} has version {}", remedy(), file.version);
        Ok(file)
    }
}

/// Where the choices of a device are kept: in the user's cache folder, by adapter and API. `None`
/// where the system has no such folder, and for the `cpu` device, which has no variants.
pub fn path(info: &DeviceInfo) -> Option<PathBuf> {
    if info.kind == edge_gpu::DeviceKind::Host {
        return None;
    }
    let plain = |c: char| if c.is_ascii_alphanumeric() { c.to_ascii_lowercase() } else { '-' };
    let name: String = format!("{} {}", info.name, info.backend).chars().map(plain).collect();
    let words: Vec<&str> = name.split('-').filter(|word| !word.is_empty()).collect();
    let file = format!("{}.json", words.join("-"));
    Some(dirs::cache_dir()?.join("edge-llm").join("kernels").join(file))
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
    tuning
}

/// Adds choices to the file of a device, in place of older ones for the same buckets.
///
/// # Errors
/// There is no cache folder, or it cannot be written.
pub fn save(info: &DeviceInfo, choices: &[(Bucket, Choice)]) -> Result<PathBuf> {
    let path = path(info).context("this system has no cache folder for the choices")?;
    save_at(&path, info, choices)?;
    Ok(path)
}

fn save_at(path: &Path, info: &DeviceInfo, choices: &[(Bucket, Choice)]) -> Result<()> {
    let old = File::read(path).ok().filter(|file| file.belongs_to(info));
    let mut file = old.unwrap_or_else(|| File::of(info));
    file.choices
        .extend(choices.iter().map(|(bucket, choice)| (bucket.to_string(), choice.clone())));
    if let Some(folder) = path.parent() {
        std::fs::create_dir_all(folder)
            .with_context(|| format!("{} cannot be made", folder.display()))?;
    }
    let mut text = serde_json::to_string_pretty(&file)?;
    text.push('\n');
    write_atomically(path, text.as_bytes())
}

/// The products of a training step and of decoding: every projection of these shapes forward and
/// backward for `tokens` tokens, and forward for one; LoRA's products of rank `rank`. Calls of
/// the same bucket occur once.
pub fn calls(shapes: &[ModelShape], formats: &[Format], tokens: u32, rank: u32) -> Vec<Measured> {
    let mut calls: Vec<Measured> = Vec::new();
    for shape in shapes {
        for projection in Projection::ALL {
            let (n, k) = shape.projection(projection);
            for &format in formats {
                for m in [1, tokens] {
                    let params = matmul_nt::Params::dense(m, n, k);
                    calls.push((&matmul_nt::MatmulNt, Call::with_format(&params, format)));
                }
                let params = matmul_nn::Params::dense(tokens, n, k);
                calls.push((&matmul_nn::MatmulNn, Call::with_format(&params, format)));
            }
            for (n, k) in [(rank, k), (n, rank)] {
                let params = matmul_nt::Params::dense(tokens, n, k);
                calls.push((&matmul_nt::MatmulNt, Call::new(&params)));
                let params = matmul_nn::Params::dense(tokens, n, k);
                calls.push((&matmul_nn::MatmulNn, Call::new(&params)));
                let mut params = matmul_tn::Params::dense(tokens, n, k);
                params.splits = matmul_tn::splits(tokens, n, k);
                calls.push((&matmul_tn::MatmulTn, Call::new(&params)));
            }
        }
    }
    let mut seen = std::collections::HashSet::new();
    calls.retain(|(op, call)| Bucket::of(*op, call).is_some_and(|bucket| seen.insert(bucket)));
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
    let mut wrong = Vec::new();
    let mut right = Vec::new();
    for variant in &variants {
        match trial.check(Some(variant)) {
            Ok(()) => right.push((variant, trial.dispatches(Some(variant))?, Vec::new())),
            Err(error @ (Error::WrongAnswer { .. } | Error::Shader { .. })) => {
                wrong.push(error.to_string());
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
    };
    Ok(Some((bucket, choice)))
}

fn median(times: &[f64]) -> f64 {
    let mut times = times.to_vec();
    times.sort_by(f64::total_cmp);
    times[times.len() / 2]
}

/// What a self-test found.
#[derive(Clone, Debug, Default, Serialize)]
pub struct SelfTest {
    /// Kernels that answered right.
    pub right: usize,
    /// Kernels that were left out because time was up.
    pub left_out: usize,
    /// What was wrong, a sentence a kernel.
    pub wrong: Vec<String>,
    /// How long it took, milliseconds.
    pub elapsed_ms: f64,
}

/// Runs the kernels that production would run against their references: the smallest case of
/// every op, and then, until `most` is over, one of every other weight format.
///
/// # Errors
/// The device fails.
pub fn self_test(device: &Device, most: Duration) -> Result<SelfTest> {
    let start = Instant::now();
    let mut found = SelfTest::default();
    let (first, more) = self_test_cases();
    let always = first.len();
    for (index, (op, case)) in first.into_iter().chain(more).enumerate() {
        if index >= always && start.elapsed() > most {
            found.left_out += 1;
            continue;
        }
        let result = Trial::new(device, op, case.call).and_then(|trial| trial.check(None));
        match result {
            Ok(()) => found.right += 1,
            Err(error @ (Error::WrongAnswer { .. } | Error::Shader { .. })) => {
                found.wrong.push(format!("case {}: {error}", case.name));
            }
            Err(error) => return Err(error.into()),
        }
    }
    found.elapsed_ms = start.elapsed().as_secs_f64() * 1e3;
    Ok(found)
}

type Cases = Vec<(&'static dyn Op, Case)>;

/// The smallest case of each op, and the smallest of each of its other formats.
fn self_test_cases() -> (Cases, Cases) {
    let (mut first, mut more): (Cases, Cases) = Default::default();
    for op in OPS {
        let mut cases = op.cases();
        cases.retain(|case| !case.bench);
        cases.sort_by_key(|case| op.work(&case.call).bytes);
        let mut formats: Vec<&str> = Vec::new();
        for case in cases {
            let format = case.call.format.name();
            if formats.contains(&format) {
                continue;
            }
            let list = if formats.is_empty() { &mut first } else { &mut more };
            formats.push(format);
            list.push((*op, case));
        }
    }
    (first, more)
}

#[cfg(test)]
mod tests {
    use super::*;
    use edge_gpu::Options;

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
        let calls = calls(&[shape.clone(), shape], &[Format::Q4], 64, 8);
        let buckets: std::collections::HashSet<Bucket> =
            calls.iter().filter_map(|(op, call)| Bucket::of(*op, call)).collect();
        assert_eq!(buckets.len(), calls.len());
        assert!(calls.iter().any(|(op, _)| op.name() == "matmul_tn"));
    }

    #[test]
    fn the_self_test_passes_on_the_host_and_covers_every_op() {
        let (first, _) = self_test_cases();
        assert_eq!(first.len(), OPS.len());
        let found = self_test(&cpu(), Duration::ZERO).unwrap();
        assert_eq!(found.wrong, [""; 0]);
        assert_eq!(found.right, OPS.len());
        assert!(found.left_out > 0);
    }
}
