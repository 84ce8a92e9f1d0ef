//! The harness: devices for tests, comparison of results, the shared reference data.
//!
//! * [`gpu`], [`gpu_with`] — the adapter that tests run on.
//! * [`folders`] — small folders of every kind of file, valid.
//! * [`compare`] — got against wanted, with the first few differences.
//! * [`parity`] — an op's shaders against its reference, between guard zones.
//! * `anonymous_bytes` — memory of the process without its cached files, on Linux.
//! * [`shared`] — reference data beside the repository.

pub mod folders;
pub mod parity;
pub mod tiny;

use std::path::PathBuf;
use std::sync::OnceLock;

use edge_gpu::{AdapterSummary, Device, DeviceKind, Options};
use edge_kernels::op::Tolerance;

/// Most differences that a message shows.
const SHOWN: usize = 5;

/// The adapter that tests run on: the one that `EDGE_TEST_DEVICE` selects, else the first real
/// GPU, else the first software driver. `None` only where there is none and
/// `EDGE_ALLOW_NO_GPU=1` allows that, which is printed.
///
/// # Panics
/// When there is no adapter, or it does not open.
pub fn gpu() -> Option<Device> {
    gpu_with(&Options::default())
}

/// As [`gpu`], with options.
///
/// # Panics
/// As [`gpu`].
pub fn gpu_with(options: &Options) -> Option<Device> {
    static SELECTOR: OnceLock<Option<String>> = OnceLock::new();
    let selector = SELECTOR.get_or_init(|| {
        std::env::var("EDGE_TEST_DEVICE").ok().or_else(|| first_adapter(&Device::list()))
    });
    match selector {
        Some(selector) => {
            let device = Device::open(selector, options);
            Some(device.unwrap_or_else(|error| panic!("opening the test device: {error}")))
        }
        None => {
            let allowed = std::env::var_os("EDGE_ALLOW_NO_GPU").is_some_and(|value| value == "1");
            assert!(
                allowed,
                "no Vulkan, Metal or DX12 adapter: install a GPU driver or a software one (Debian \
                 and Ubuntu: mesa-vulkan-drivers), or set EDGE_ALLOW_NO_GPU=1 to leave out the \
                 tests that need one"
            );
            skipped("no Vulkan adapter");
            None
        }
    }
}

/// Says what is left out: what `eprintln!` says in a test that passes is seen by nobody.
pub fn skipped(why: &str) {
    use std::io::Write as _;
    let thread = std::thread::current();
    let name = thread.name().unwrap_or("a test");
    // Without a stderr there is nobody to say it to.
    let _ = writeln!(std::io::stderr(), "skipped: {name}: {why}");
}

/// The largest difference of two lists; infinite where one of them is no number.
///
/// # Panics
/// They differ in length.
pub fn largest_difference(got: &[f32], want: &[f32]) -> f32 {
    assert_eq!(got.len(), want.len(), "numbers to compare");
    let off = got.iter().zip(want).map(|(a, b)| (a - b).abs());
    off.fold(0.0, |most, off| if off.is_nan() { f32::INFINITY } else { most.max(off) })
}

fn first_adapter(list: &[AdapterSummary]) -> Option<String> {
    let real = list.iter().find(|device| !device.kind.is_cpu());
    let software = || list.iter().find(|device| device.kind == DeviceKind::Software);
    real.or_else(software).map(|device| device.index.to_string())
}

/// The `cpu` device.
pub fn cpu() -> Device {
    Device::open("cpu", &Options::default()).expect("the cpu device always opens")
}

/// The folder of reference data beside the repository; `None`, which is printed, where there is
/// none.
pub fn shared() -> Option<PathBuf> {
    let path = PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/../../shared"));
    if path.is_dir() {
        return Some(path);
    }
    skipped("no ../shared");
    None
}

/// For a test that measures its process, in which others run too: what it prints when it runs by
/// this name alone in a process of its own; `None` in that process, where it goes on to measure.
///
/// # Panics
/// When the test fails there, or there is none of this name.
pub fn alone(name: &str) -> Option<String> {
    const ALONE: &str = "EDGE_TEST_ALONE";
    if std::env::var_os(ALONE).is_some() {
        return None;
    }
    let program = std::env::current_exe().expect("the test's program");
    let mut command = std::process::Command::new(program);
    let output = command.args(["--exact", name, "--nocapture"]).env(ALONE, "1").output();
    let output = output.expect("it starts");
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    eprint!("{}", String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success() && text.contains("1 passed"), "{text}");
    Some(text)
}

/// Memory of this process that no file stands behind, in bytes: `RssAnon` of
/// `/proc/self/status`. What the system caches of mapped checkpoints is not in it.
///
/// # Panics
/// When the file has no such line.
#[cfg(target_os = "linux")]
pub fn anonymous_bytes() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").expect("/proc/self/status");
    let line = status.lines().find_map(|line| line.strip_prefix("RssAnon:"));
    let words = line.and_then(|line| line.split_whitespace().next());
    let kib = words.and_then(|word| word.parse::<u64>().ok());
    1024 * kib.expect("RssAnon in KiB")
}

/// Compares floats: `|got - want| <= abs + rel * |want|`, and never NaN.
///
/// # Errors
/// A text with the number of differences and the first few: index, got, want, limit.
pub fn compare(got: &[f32], want: &[f32], tolerance: Tolerance) -> Result<(), String> {
    if got.len() != want.len() {
        return Err(format!("{} values, not {}", got.len(), want.len()));
    }
    let limit = |want: f32| tolerance.abs + tolerance.rel * want.abs();
    // An infinity is met only by itself, and NaN by nothing.
    let right =
        |got: f32, want: f32| got == want || want.is_finite() && (got - want).abs() <= limit(want);
    let differences: Vec<usize> = (0..got.len()).filter(|&i| !right(got[i], want[i])).collect();
    if differences.is_empty() {
        return Ok(());
    }
    let shown: Vec<String> = differences
        .iter()
        .take(SHOWN)
        .map(|&i| format!("[{i}] got {} want {} ± {:.1e}", got[i], want[i], limit(want[i])))
        .collect();
    Err(format!("{} of {} differ: {}", differences.len(), got.len(), shown.join("; ")))
}

#[cfg(test)]
mod tests {
    use super::*;

    const EXACT: Tolerance = Tolerance { abs: 0.0, rel: 0.0, why: "" };
    const LOOSE: Tolerance = Tolerance { abs: 0.1, rel: 0.01, why: "" };

    #[test]
    fn differences_are_found() {
        let inf = f32::INFINITY;
        assert_eq!(compare(&[1.0, inf], &[1.0, inf], EXACT), Ok(()));
        assert_eq!(compare(&[10.19], &[10.0], LOOSE), Ok(()));
        assert!(compare(&[10.21], &[10.0], LOOSE).is_err());
        assert!(compare(&[f32::NAN], &[1.0], LOOSE).is_err());
        assert!(compare(&[1.0], &[f32::NAN], LOOSE).is_err());
        assert!(compare(&[f32::NAN], &[f32::NAN], LOOSE).is_err());
        assert!(compare(&[-inf], &[inf], LOOSE).is_err());
        assert!(compare(&[1.0], &[inf], LOOSE).is_err());
        assert!(compare(&[1.0], &[], EXACT).is_err());
        let message = compare(&[1.0, 2.0, 3.0], &[1.0, 2.5, 3.0], EXACT).expect_err("one");
        assert_eq!(message, "1 of 3 differ: [1] got 2 want 2.5 ± 0.0e0");
    }
}
