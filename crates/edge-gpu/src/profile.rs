//! Time by op: from timestamps where the device has them, else from the host clock.

use std::collections::BTreeMap;
use std::time::Duration;

use edge_kernels::Format;

use crate::sync::Lock;

/// Time that an op took, summed over its calls.
#[derive(Clone, Debug, PartialEq)]
pub struct OpTime {
    /// Name of the op.
    pub op: &'static str,
    /// Name of the variant; `reference` on the `cpu` device.
    pub variant: &'static str,
    /// Weight format of the calls.
    pub format: Format,
    /// Number of calls.
    pub calls: u64,
    /// Sum of their times.
    pub total_ms: f64,
}

/// What is timed together.
#[derive(Clone, Copy, Debug)]
pub(crate) struct TimedOp {
    pub(crate) op: &'static str,
    pub(crate) variant: &'static str,
    pub(crate) format: Format,
}

/// The times of a device.
#[derive(Debug, Default)]
pub(crate) struct Profile(Lock<BTreeMap<(&'static str, &'static str, &'static str), OpTime>>);

impl Profile {
    pub(crate) fn add(&self, timed: TimedOp, time: Duration) {
        let TimedOp { op, variant, format } = timed;
        let mut times = self.0.lock();
        let entry = times.entry((op, variant, format.name())).or_insert(OpTime {
            op,
            variant,
            format,
            calls: 0,
            total_ms: 0.0,
        });
        entry.calls += 1;
        entry.total_ms += 1e3 * time.as_secs_f64();
    }

    /// The times so far, the longest first; starts again.
    pub(crate) fn take(&self) -> Vec<OpTime> {
        let times = std::mem::take(&mut *self.0.lock());
        let mut times: Vec<OpTime> = times.into_values().collect();
        times.sort_by(|a, b| b.total_ms.total_cmp(&a.total_ms));
        times
    }
}
