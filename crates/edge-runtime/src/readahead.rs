//! What the system is told of files: which parts will be read soon, and which need not be kept.
//! Where it cannot be told, nothing happens.

use std::fs::File;

/// Says that some bytes of a file will be read soon, so that the disk is read ahead.
pub(crate) fn will_need(file: &File, first: u64, bytes: u64) {
    advise(file, first, bytes, true);
}

/// Says that a file need not be kept in memory: what is read next comes from the disk. Whether the
/// system was told.
pub(crate) fn forget(file: &File, bytes: u64) -> bool {
    advise(file, 0, bytes, false)
}

#[cfg(any(target_os = "linux", target_os = "android"))]
fn advise(file: &File, first: u64, bytes: u64, needed: bool) -> bool {
    use rustix::fs::{Advice, fadvise};
    let advice = if needed { Advice::WillNeed } else { Advice::DontNeed };
    // Advice that is not taken costs time alone.
    fadvise(file, first, std::num::NonZeroU64::new(bytes), advice).is_ok()
}

#[cfg(not(any(target_os = "linux", target_os = "android")))]
fn advise(_: &File, _: u64, _: u64, _: bool) -> bool {
    false
}

/// Bytes of memory that the system could give, file cache included; `None` where it does not say.
pub(crate) fn available_bytes() -> Option<u64> {
    let text = std::fs::read_to_string("/proc/meminfo").ok()?;
    let line = text.lines().find_map(|line| line.strip_prefix("MemAvailable:"))?;
    Some(line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok()? * 1024)
}
