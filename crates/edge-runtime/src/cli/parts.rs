//! Values of the flags that have to do with schedules.

use std::str::FromStr;

use clap::ValueEnum;
use edge_scheduler::Path;
use edge_scheduler::profiles::DeviceProfile;
use serde::{Deserialize, Serialize};

/// What a plan is to be best in.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum Goal {
    /// The shortest step within the memory budget
    #[default]
    Time,
    /// The least memory, with steps of at most --max-step-ms
    Memory,
    /// The least energy, by a stated model
    Energy,
}

/// The data sheet of this name.
pub(super) fn device_profile(name: &str) -> Result<&'static DeviceProfile, String> {
    DeviceProfile::find(name).ok_or_else(|| {
        let names: Vec<&str> = DeviceProfile::ALL.iter().map(|profile| profile.name).collect();
        format!("there is no device profile of this name: give one of {}", names.join(", "))
    })
}

/// Parts of a schedule that are not to be chosen, written `path=rows,slots=2,resident=0`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct PlanParts {
    /// The way of micro-batches through the blocks.
    pub path: Option<Path>,
    /// Transfer slots.
    pub slots: Option<u32>,
    /// Blocks that stay on the device.
    pub resident: Option<u32>,
    /// Whether activations are computed again.
    pub recompute: Option<bool>,
    /// Whether streamed blocks are loaded ahead of their turn.
    pub ahead: Option<bool>,
}

impl FromStr for PlanParts {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let mut parts = Self::default();
        for part in text.split(',').map(str::trim).filter(|part| !part.is_empty()) {
            let wrong = || {
                format!(
                    "{part:?} is no part of a plan: write path=rows|mixed|columns, slots=N, \
                     resident=N, recompute=on|off or ahead=on|off"
                )
            };
            let (key, value) = part.split_once('=').ok_or_else(wrong)?;
            let number = |least: u32| {
                value.parse().ok().filter(|number| *number >= least).ok_or_else(wrong).map(Some)
            };
            let switch = || match value {
                "on" => Ok(Some(true)),
                "off" => Ok(Some(false)),
                _ => Err(wrong()),
            };
            match key {
                "path" => {
                    let path = Path::ALL.into_iter().find(|path| path.name() == value);
                    parts.path = Some(path.ok_or_else(wrong)?);
                }
                "slots" => parts.slots = number(1)?,
                "resident" => parts.resident = number(0)?,
                "recompute" => parts.recompute = switch()?,
                "ahead" => parts.ahead = switch()?,
                _ => return Err(wrong()),
            }
        }
        if parts.path == Some(Path::Columns) && parts.recompute == Some(false) {
            return Err("path=columns computes activations again: leave recompute=off out".into());
        }
        Ok(parts)
    }
}

impl TryFrom<String> for PlanParts {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        text.parse()
    }
}

impl From<PlanParts> for String {
    fn from(parts: PlanParts) -> Self {
        let switch = |on: bool| if on { "on" } else { "off" };
        let all = [
            parts.path.map(|path| format!("path={}", path.name())),
            parts.slots.map(|slots| format!("slots={slots}")),
            parts.resident.map(|resident| format!("resident={resident}")),
            parts.recompute.map(|recompute| format!("recompute={}", switch(recompute))),
            parts.ahead.map(|ahead| format!("ahead={}", switch(ahead))),
        ];
        all.into_iter().flatten().collect::<Vec<_>>().join(",")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_are_read_as_they_are_written() {
        let text = "path=mixed,slots=2,resident=0,recompute=off,ahead=on";
        let parts: PlanParts = text.parse().expect("parts");
        assert_eq!((parts.path, parts.slots), (Some(Path::Mixed), Some(2)));
        assert_eq!((parts.resident, parts.recompute), (Some(0), Some(false)));
        assert_eq!(String::from(parts), text);
        for wrong in ["path=up", "slots=0", "slots", "resident=-1", "ahead=1", "x=1"] {
            let error = wrong.parse::<PlanParts>().expect_err(wrong);
            assert!(error.contains(wrong), "{error}");
        }
        assert!("path=columns,recompute=off".parse::<PlanParts>().is_err());
        assert_eq!("".parse(), Ok(PlanParts::default()));
    }
}
