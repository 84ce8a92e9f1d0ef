//! Ctrl-C: the first asks the run to finish its step, the second ends the process.

use std::sync::atomic::{AtomicBool, Ordering};

use anyhow::{Context, Result, bail};

/// Exit status of an interrupted run: 128 + SIGINT, what shells expect.
pub const EXIT_INTERRUPTED: i32 = 130;

static REQUESTED: AtomicBool = AtomicBool::new(false);

/// Starts to listen for Ctrl-C (and SIGTERM, which batch systems send).
///
/// # Errors
/// The handler cannot be installed, as when it was before.
pub fn install() -> Result<()> {
    ctrlc::set_handler(|| {
        if request() {
            std::process::exit(EXIT_INTERRUPTED);
        }
    })
    .context("cannot listen for Ctrl-C: start the command from another shell")
}

/// Whether the run should stop after its current step.
pub fn requested() -> bool {
    REQUESTED.load(Ordering::Relaxed)
}

/// Why work that leaves nothing half done was given up. Commands exit with [`EXIT_INTERRUPTED`].
#[derive(Debug)]
pub struct Interrupted;

impl std::fmt::Display for Interrupted {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("interrupted: nothing was written; start the command again")
    }
}

impl std::error::Error for Interrupted {}

/// Ends the work where that was requested.
///
/// # Errors
/// [`Interrupted`].
pub fn check() -> Result<()> {
    if requested() {
        bail!(Interrupted);
    }
    Ok(())
}

/// Notes a request; whether there had been one already.
fn request() -> bool {
    note(&REQUESTED)
}

fn note(flag: &AtomicBool) -> bool {
    flag.swap(true, Ordering::Relaxed)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_second_request_is_told_from_the_first() {
        // Not the process's own, which other tests look at.
        let flag = AtomicBool::new(false);
        assert!(!note(&flag));
        assert!(flag.load(Ordering::Relaxed) && note(&flag));
    }
}
