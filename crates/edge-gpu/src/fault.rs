//! Faults on purpose: how a run stands a device that fails is tried on devices that do not.
//!
//! `EDGE_FAULT=KIND@PLACE:N` in the environment, several behind commas, lets a device fail the N-th
//! time that it comes to a place: an op's name where it is recorded, `buffer`, `read`, `write`,
//! `wait`, `upload` (a block into a transfer slot), or `any` of them. The kinds:
//!
//! * `lost` — the device is gone, with all that is on it, as behind a driver's reset;
//! * `hang` — what was submitted does not end, and the device is given up;
//! * `memory` — the driver has no memory left;
//! * `driver` — any other error of the driver, once;
//! * `shader` — the driver refuses to compile the op's shader;
//! * `wrong` — the op's answer is wrong the N-th time that it is compared with its definition.

use std::collections::HashSet;
use std::str::FromStr;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, OnceLock};

use crate::error::Error;
use crate::sync::Lock;

/// What fails.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    Lost,
    Hang,
    Memory,
    Driver,
    Shader,
    Wrong,
}

/// What a device is doing at a place: kinds of faults belong to one of these.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Doing {
    Running,
    Compiling,
    Comparing,
}

impl Kind {
    fn doing(self) -> Doing {
        match self {
            Self::Lost | Self::Hang | Self::Memory | Self::Driver => Doing::Running,
            Self::Shader => Doing::Compiling,
            Self::Wrong => Doing::Comparing,
        }
    }
}

#[derive(Debug)]
struct Planned {
    kind: Kind,
    place: String,
    /// Times until it fails; 0: it did.
    left: AtomicU32,
}

/// Where a device is to fail, and which devices did for good. Clones of the options that have it
/// count together: what has happened does not happen again on a device that is opened instead.
#[derive(Debug)]
pub struct FaultPlan {
    text: String,
    planned: Vec<Planned>,
    gone: Lock<HashSet<u64>>,
}

impl PartialEq for FaultPlan {
    fn eq(&self, other: &Self) -> bool {
        self.text == other.text
    }
}

impl Eq for FaultPlan {}

impl FromStr for FaultPlan {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let planned = text.split(',').map(one).collect::<Option<Vec<_>>>();
        let planned = planned.ok_or_else(|| {
            format!(
                "EDGE_FAULT is '{text}': give KIND@PLACE:N, with lost, hang, memory, driver, \
                 shader or wrong as KIND and an op, buffer, read, write, wait, upload or any as \
                 PLACE"
            )
        })?;
        Ok(Self { text: text.to_owned(), planned, gone: Lock::default() })
    }
}

fn one(text: &str) -> Option<Planned> {
    let (kind, rest) = text.trim().split_once('@')?;
    let (place, count) = rest.split_once(':')?;
    let kind = match kind {
        "lost" => Kind::Lost,
        "hang" => Kind::Hang,
        "memory" => Kind::Memory,
        "driver" => Kind::Driver,
        "shader" => Kind::Shader,
        "wrong" => Kind::Wrong,
        _ => return None,
    };
    let left = count.parse().ok().filter(|left| *left > 0)?;
    Some(Planned { kind, place: place.to_owned(), left: AtomicU32::new(left) })
}

impl FaultPlan {
    /// Those of the environment, the same for all devices of the process.
    ///
    /// # Errors
    /// They are not written as they should.
    pub(crate) fn from_env() -> Result<Option<Arc<Self>>, Error> {
        static FAULTS: OnceLock<Option<Result<Arc<FaultPlan>, String>>> = OnceLock::new();
        let read = || {
            let text = std::env::var("EDGE_FAULT").ok().filter(|text| !text.is_empty())?;
            Some(text.parse().map(Arc::new))
        };
        match FAULTS.get_or_init(read) {
            None => Ok(None),
            Some(Ok(faults)) => Ok(Some(Arc::clone(faults))),
            Some(Err(message)) => Err(Error::Driver { message: message.clone() }),
        }
    }

    /// What is to happen to a device at a place, now that it is there.
    pub(crate) fn at(&self, device: u64, place: &str, doing: Doing) -> Option<Kind> {
        if self.gone.lock().contains(&device) {
            return Some(Kind::Lost);
        }
        let here = |planned: &&Planned| {
            planned.kind.doing() == doing && (planned.place == place || planned.place == "any")
        };
        let mut found = None;
        for planned in self.planned.iter().filter(here) {
            let less = |left: u32| left.checked_sub(1);
            if planned.left.fetch_update(Ordering::Relaxed, Ordering::Relaxed, less) == Ok(1) {
                found = Some(planned.kind);
            }
        }
        if matches!(found, Some(Kind::Lost | Kind::Hang)) {
            self.gone.lock().insert(device);
        }
        found
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_happens_once_at_its_time_and_what_is_gone_stays_gone() {
        let faults: FaultPlan =
            "driver@read:2, lost@adamw:1,shader@adamw:1".parse().expect("faults");
        assert_eq!(faults.at(1, "read", Doing::Running), None);
        assert_eq!(faults.at(1, "read", Doing::Running), Some(Kind::Driver));
        assert_eq!(faults.at(1, "read", Doing::Running), None);
        assert_eq!(faults.at(1, "adamw", Doing::Compiling), Some(Kind::Shader));
        assert_eq!(faults.at(1, "adamw", Doing::Running), Some(Kind::Lost));
        assert_eq!(faults.at(1, "read", Doing::Running), Some(Kind::Lost));
        assert_eq!(faults.at(2, "adamw", Doing::Running), None, "another device");
    }

    #[test]
    fn others_are_refused() {
        for text in ["", "lost", "lost@x", "lost@x:0", "lost@x:-1", "broken@x:1", "lost@x:1,"] {
            assert!(text.parse::<FaultPlan>().is_err(), "{text}");
        }
    }
}
