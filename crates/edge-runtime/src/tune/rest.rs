//! Rests: a run that waits while the battery is low or the device hot, where the system says so.

use std::time::{Duration, Instant};

use anyhow::Result;
use serde_json::json;
use starship_battery::State;
use starship_battery::units::ratio::percent;
use sysinfo::Components;

use super::event::TuneEvent;
use super::session::Session;
use crate::cli::options::TuneOptions;

/// How often the sensors are read while steps are done.
const EVERY: Duration = Duration::from_secs(10);

/// How often they are read, and the listener asked, during a rest.
const RESTING: Duration = Duration::from_secs(1);

/// How far beyond a limit things must be for the run to go on, so that it does not flicker.
const BATTERY_MARGIN: f64 = 5.0;
const TEMPERATURE_MARGIN_C: f64 = 5.0;

/// When a run rests.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
struct Limits {
    /// Charge below which it rests, percent, unless the battery is being charged.
    battery: Option<f64>,
    /// Temperature above which it rests, degrees Celsius.
    temperature_c: Option<f64>,
}

/// What the sensors say; `None` where there is none.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
struct Reading {
    /// Charge in percent of the emptiest battery that is not being charged; 100 where all are.
    battery: Option<f64>,
    /// Of the hottest part, degrees Celsius.
    temperature_c: Option<f64>,
}

impl Limits {
    /// Why the run should rest; `resting`: it does already.
    fn reason(self, found: Reading, resting: bool) -> Option<String> {
        let margin = |margin: f64| if resting { margin } else { 0.0 };
        if let (Some(limit), Some(battery)) = (self.battery, found.battery)
            && battery < (limit + margin(BATTERY_MARGIN)).min(100.0)
        {
            return Some(format!("the battery has {battery:.0} % (--pause-below-battery {limit})"));
        }
        if let (Some(limit), Some(hottest)) = (self.temperature_c, found.temperature_c)
            && hottest > limit - margin(TEMPERATURE_MARGIN_C)
        {
            return Some(format!("{hottest:.0} °C (--pause-above-temperature {limit})"));
        }
        None
    }

    /// What is asked for and not there to be read.
    fn missing(self, found: Reading) -> Option<&'static str> {
        if self.battery.is_some() && found.battery.is_none() {
            return Some("this system tells no battery: --pause-below-battery has no effect");
        }
        let blind = self.temperature_c.is_some() && found.temperature_c.is_none();
        blind.then_some("this system tells no temperature: --pause-above-temperature has no effect")
    }
}

/// The charge that counts.
fn battery() -> Option<f64> {
    let manager = starship_battery::Manager::new().ok()?;
    let batteries = manager.batteries().ok()?.flatten();
    let charge = |battery: starship_battery::Battery| match battery.state() {
        State::Charging | State::Full | State::Paused => 100.0,
        State::Discharging | State::Empty | State::Unknown => {
            f64::from(battery.state_of_charge().get::<percent>())
        }
    };
    batteries.map(charge).min_by(f64::total_cmp)
}

/// Rests of a run.
#[derive(Debug, Default)]
pub(super) struct Rests {
    limits: Limits,
    components: Option<Components>,
    read: Option<Instant>,
}

impl Rests {
    pub(super) fn new(options: &TuneOptions) -> Self {
        let limits = Limits {
            battery: options.pause_below_battery,
            temperature_c: options.pause_above_temperature,
        };
        let components =
            limits.temperature_c.and_then(|_| Components::new_with_refreshed_list().ok());
        Self { limits, components, read: None }
    }

    fn reading(&mut self) -> Reading {
        let temperatures = self.components.as_mut().map(|components| {
            components.refresh(false);
            let found = components.iter().filter_map(|part| part.temperature());
            found.map(f64::from).filter(|degrees| degrees.is_finite()).max_by(f64::total_cmp)
        });
        Reading {
            battery: self.limits.battery.and_then(|_| battery()),
            temperature_c: temperatures.flatten(),
        }
    }

    /// Whether it is time to look.
    fn is_due(&mut self) -> bool {
        let due = self.limits != Limits::default()
            && self.read.is_none_or(|read| read.elapsed() >= EVERY);
        if due {
            self.read = Some(Instant::now());
        }
        due
    }
}

impl Session<'_> {
    /// Waits while the battery is low or the device hot; `keep` writes a checkpoint first.
    ///
    /// # Errors
    /// That of `keep`, or the disk is full.
    pub(super) fn rest(&mut self, keep: impl FnOnce(&mut Self) -> Result<()>) -> Result<()> {
        let first = self.rests.read.is_none();
        if !self.rests.is_due() {
            return Ok(());
        }
        let found = self.rests.reading();
        if let Some(missing) = self.rests.limits.missing(found).filter(|_| first) {
            self.events.notice(missing);
        }
        let Some(reason) = self.rests.limits.reason(found, false) else { return Ok(()) };
        keep(self)?;
        let step = self.spent.steps;
        self.run_dir.event("pause", json!({"step": step, "reason": reason}))?;
        self.events.notice(format!("the run rests behind step {step}: {reason}"));
        let started = Instant::now();
        while !self.events.stopped() {
            std::thread::sleep(RESTING);
            let found = self.rests.reading();
            let Some(reason) = self.rests.limits.reason(found, true) else { break };
            let seconds = started.elapsed().as_secs();
            self.events.send(&TuneEvent::Resting { reason, seconds });
        }
        let seconds = started.elapsed().as_secs();
        self.run_dir.event("unpause", json!({"step": step, "seconds": seconds}))?;
        self.events.notice(format!("the run goes on after {seconds} s"));
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMITS: Limits = Limits { battery: Some(20.0), temperature_c: Some(80.0) };

    fn reading(battery: f64, degrees: f64) -> Reading {
        Reading { battery: Some(battery), temperature_c: Some(degrees) }
    }

    #[test]
    fn a_run_rests_beyond_a_limit_and_goes_on_some_way_from_it() {
        let rests =
            |battery, degrees, resting| LIMITS.reason(reading(battery, degrees), resting).is_some();
        assert!(!rests(20.0, 80.0, false) && rests(19.9, 50.0, false) && rests(90.0, 80.1, false));
        assert!(rests(22.0, 50.0, true) && rests(90.0, 76.0, true) && !rests(25.0, 75.0, true));
        let text = LIMITS.reason(reading(12.0, 90.0), false).expect("a reason");
        assert_eq!(text, "the battery has 12 % (--pause-below-battery 20)");
        // A limit near the top must not keep a run from ever going on.
        let high = Limits { battery: Some(99.0), ..Limits::default() };
        assert_eq!(high.reason(reading(100.0, 0.0), true), None);
    }

    #[test]
    fn what_is_not_told_is_said_and_does_not_stop_a_run() {
        let none = Reading::default();
        assert_eq!(LIMITS.reason(none, false), None);
        assert!(LIMITS.missing(none).is_some_and(|text| text.contains("--pause-below-battery")));
        let seen = Reading { battery: Some(50.0), ..none };
        assert!(LIMITS.missing(seen).is_some_and(|text| text.contains("--pause-above")));
        assert_eq!(Limits::default().missing(none), None);
        assert!(!Rests::default().is_due());
    }
}
