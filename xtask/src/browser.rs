//! A browser for the tests of pages: found, installed on Debian where this user may, or said to be
//! missing.

use std::path::Path;
use std::process::Command;

use crate::{cmd, vulkan};

/// Names of Chromium and its kin, as `tests/it/browser.rs` looks for them.
const NAMES: [&str; 5] =
    ["chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome"];

/// Elsewhere than in `PATH`.
const MACOS: &str = "/Applications/Google Chrome.app/Contents/MacOS/Google Chrome";

fn found() -> bool {
    std::env::var_os("EDGE_BROWSER").is_some()
        || NAMES.iter().any(|name| cmd::find_program(name).is_some())
        || Path::new(MACOS).exists()
}

/// Sees to a browser; without one the tests of pages are skipped, and say so.
pub(crate) fn prepare() {
    if found() {
        return;
    }
    // Ubuntu's package of this name only fetches another kind of package.
    let release = std::fs::read_to_string("/etc/os-release").unwrap_or_default();
    let debian = release.lines().any(|line| line == "ID=debian");
    let installed = debian && vulkan::may_install().is_some_and(install);
    if !installed && !found() {
        eprintln!(
            "no Chromium: the tests of pages will be skipped (Debian: sudo apt-get install \
             chromium; or name a browser by EDGE_BROWSER)"
        );
    }
}

/// Whether it could be installed, with `sudo` or without.
fn install(sudo: bool) -> bool {
    eprintln!("no Chromium found: installing it for the tests of pages");
    let run = |command: &mut Command| cmd::run(command).is_ok();
    // Old lists of packages may still do.
    run(vulkan::apt_get(sudo).arg("update"));
    run(vulkan::apt_get(sudo).args(["install", "-y", "--no-install-recommends", "chromium"]))
}
