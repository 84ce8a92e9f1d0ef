//! A run whose device fails: it is opened again, and the run goes on from its newest checkpoint.

use std::path::Path;
use std::time::Duration;

use anyhow::{Error, Result};
use edge_gpu::Device;

use super::event::Events;
use super::resume::Resume;

/// How often a run is taken up again in one process: a device that fails each time is broken.
const MOST: u32 = 3;

/// How often and how far apart a device is asked for that was just reset.
const TRIES: u32 = 5;
const BETWEEN: Duration = Duration::from_secs(1);

/// What is left of the attempts of a run.
#[derive(Debug, Default)]
pub(super) struct Recovery {
    used: u32,
}

impl Recovery {
    /// The device opened again, and where the run in `run`, if it has a directory yet, goes on.
    ///
    /// # Errors
    /// `error` itself: it is not the device's, the device cannot be opened, or it failed too often.
    pub(super) fn after(
        &mut self,
        error: Error,
        device: &Device,
        run: Option<&Path>,
        events: &mut Events<'_>,
    ) -> Result<(Device, Option<Resume>)> {
        let of_device = |cause: &(dyn std::error::Error + 'static)| {
            cause.downcast_ref().is_some_and(edge_gpu::Error::is_of_device)
        };
        if !error.chain().any(of_device) {
            return Err(error);
        }
        if self.used == MOST || events.stopped() {
            return Err(self.with_remedy(error, run));
        }
        let Some(device) = reopen(device) else { return Err(self.with_remedy(error, run)) };
        self.used += 1;
        let resume = match run {
            Some(run) => Resume::find(run)?,
            None => None,
        };
        let step = resume.as_ref().map_or(0, Resume::step);
        events.notice(format!(
            "{error:#}; the device is opened again, attempt {} of {MOST}, and the run goes on \
             behind step {step} with shorter submissions",
            self.used
        ));
        Ok((device, resume))
    }

    /// Says what can be done once the program does no more.
    fn with_remedy(&self, error: Error, run: Option<&Path>) -> Error {
        match (self.used, run) {
            (0, _) | (_, None) => error,
            (used, Some(run)) => error.context(format!(
                "the device failed {} times, and the run ends: go on later with --resume {}",
                used + 1,
                run.display()
            )),
        }
    }
}

fn reopen(device: &Device) -> Option<Device> {
    for attempt in 0..TRIES {
        if attempt > 0 {
            std::thread::sleep(BETWEEN);
        }
        match device.reopen() {
            Ok(device) => return Some(device),
            Err(error) => tracing::warn!("{error}"),
        }
    }
    None
}
