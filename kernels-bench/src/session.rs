//! Times groups of subjects on one device: everything in a group by turns, so that a machine that
//! slows down slows all of it down, and ratios are taken round by round.

use std::io::{IsTerminal as _, Write as _};
use std::time::{Duration, Instant};

use anyhow::Result;
use edge_gpu::Device;

use crate::calibration::Calibration;
use crate::roof::Roof;
use crate::row::{Row, median_and_spread, paired_ratio};
use crate::runner::{Prepared, Which};
use crate::select::Selected;

/// Least samples of a row, whatever they cost.
pub const SAMPLES_MIN: usize = 3;

/// When a row has been sampled enough.
#[derive(Clone, Copy, Debug)]
pub struct Bounds {
    /// Most samples of a row.
    pub samples: usize,
    /// Milliseconds after which a row that has [`SAMPLES_MIN`] gets no more.
    pub row_ms: f64,
}

impl Bounds {
    /// Whether a row that has spent this much on this many samples gets another.
    fn wants_more(&self, samples: usize, spent_ms: f64) -> bool {
        let least = SAMPLES_MIN.min(self.samples);
        samples < least || samples < self.samples && spent_ms < self.row_ms
    }
}

/// The samples of a row, milliseconds of a dispatch each, one a round from the first on.
#[derive(Clone, Debug)]
pub struct Timed {
    /// The row, its ratios included.
    pub row: Row,
    /// Its samples.
    pub samples_ms: Vec<f64>,
}

/// What a group gave.
#[derive(Default)]
pub struct Outcome {
    /// A row for each variant whose answer was right.
    pub timed: Vec<Timed>,
    /// Subjects and variants that failed or were wrong.
    pub errors: Vec<anyhow::Error>,
}

/// Called once a round, between our samples: others that are timed by turns with them.
pub type EachRound<'a> = &'a mut dyn FnMut() -> Result<()>;

/// What the groups of a run share.
pub struct Setup<'a> {
    /// The device.
    pub device: &'a Device,
    /// What it does at most, where that is known.
    pub roof: Option<Roof>,
    /// When a row has been sampled enough.
    pub bounds: Bounds,
    /// Which variants of what a word asked for are timed.
    pub which: Which,
    /// Timed around each sample, where rows are to be calibrated.
    pub calibration: Option<Calibration>,
}

/// Checks and times a group.
///
/// # Errors
/// The device fails while it is timed, or `each_round` does. What is wrong with one subject is in
/// the outcome instead: the other rows are worth having all the same.
pub fn time_group(
    group: &[Selected],
    setup: &mut Setup<'_>,
    each_round: Option<EachRound<'_>>,
) -> Result<Outcome> {
    let device = setup.device;
    let mut outcome = Outcome::default();
    let mut prepared = Vec::new();
    for selected in group {
        let which = if selected.baseline { Which::Production } else { setup.which };
        match Prepared::new(&selected.subject, device, which) {
            Ok(mut one) => {
                outcome.errors.append(&mut one.wrong);
                prepared.push(one);
            }
            Err(error) => outcome.errors.push(error),
        }
    }
    let turns: Vec<(usize, usize)> = prepared
        .iter()
        .enumerate()
        .flat_map(|(index, one)| (0..one.choices.len()).map(move |choice| (index, choice)))
        .collect();
    if !device.info().kind.is_cpu() {
        wake(&prepared)?;
    }
    let samples = by_turns(&prepared, &turns, setup, each_round)?;
    for (&(index, choice), Samples { ms, calibrated }) in turns.iter().zip(samples) {
        let Prepared { subject, choices, .. } = &prepared[index];
        let variant = (choices[choice].name.as_str(), choices[choice].production);
        let mut row = Row::new(subject, variant, &device.info().name, setup.roof.as_ref(), &ms);
        if !calibrated.is_empty() {
            let (middle, spread) = median_and_spread(&calibrated);
            (row.calibrated, row.calibrated_spread) = (Some(middle), Some(spread));
        }
        outcome.timed.push(Timed { row, samples_ms: ms });
    }
    add_ratios(&mut outcome.timed);
    Ok(outcome)
}

/// Work for a GPU that has idled while references were computed: its clock falls to a fraction
/// then, and comes back only after some time of load.
const WAKE: Duration = Duration::from_millis(300);

/// Runs everything that will be timed, untimed, for [`WAKE`].
fn wake(prepared: &[Prepared]) -> Result<()> {
    let start = Instant::now();
    while start.elapsed() < WAKE && prepared.iter().any(|one| !one.choices.is_empty()) {
        for one in prepared {
            for choice in &one.choices {
                one.sample(choice)?;
            }
        }
    }
    Ok(())
}

/// What the rounds gave of one row.
#[derive(Clone, Default)]
struct Samples {
    /// Milliseconds of a dispatch.
    ms: Vec<f64>,
    /// The same over the calibration kernel's, where there is one.
    calibrated: Vec<f64>,
}

/// One sample of each that wants more, and again, until none does.
fn by_turns(
    prepared: &[Prepared],
    turns: &[(usize, usize)],
    setup: &mut Setup<'_>,
    mut each_round: Option<EachRound<'_>>,
) -> Result<Vec<Samples>> {
    let mut samples = vec![Samples::default(); turns.len()];
    let mut spent_ms = vec![0.0; turns.len()];
    if let Some(calibration) = &mut setup.calibration {
        calibration.begin()?;
    }
    loop {
        let mut sampled = false;
        for (turn, &(index, choice)) in turns.iter().enumerate() {
            let found = &mut samples[turn];
            if !setup.bounds.wants_more(found.ms.len(), spent_ms[turn]) {
                continue;
            }
            sampled = true;
            let start = Instant::now();
            let one = &prepared[index];
            match &mut setup.calibration {
                Some(calibration) => {
                    let (ms, calibrated) = calibration.around(one, &one.choices[choice])?;
                    found.ms.push(ms);
                    found.calibrated.push(calibrated);
                }
                None => found.ms.push(one.sample(&one.choices[choice])?),
            }
            spent_ms[turn] += start.elapsed().as_secs_f64() * 1e3;
        }
        if !sampled {
            return Ok(samples);
        }
        if let Some(others) = &mut each_round {
            others()?;
            if let Some(calibration) = &mut setup.calibration {
                calibration.begin()?;
            }
        }
    }
}

/// Production's samples of an op, format and shape.
pub fn production<'a>(
    timed: &'a [Timed],
    op: &str,
    format: &str,
    shape: &str,
) -> Option<&'a Timed> {
    timed.iter().find(|one| {
        let row = &one.row;
        row.production && row.op == op && row.format == format && row.shape == shape
    })
}

/// Fills in the ratios to the dense formats of the same op and shape.
fn add_ratios(timed: &mut [Timed]) {
    for index in 0..timed.len() {
        let Timed { row, samples_ms } = &timed[index];
        let to = |format| {
            let baseline = production(timed, &row.op, format, &row.shape)?;
            paired_ratio(&baseline.samples_ms, samples_ms)
        };
        let (to_f32, to_f16) = (to("f32"), to("f16"));
        let row = &mut timed[index].row;
        (row.ratio_to_dense_f32, row.ratio_to_dense_f16) = (to_f32, to_f16);
    }
}

/// Says on stderr how far a run is, and how long the rest will take at the pace so far.
pub struct Progress {
    start: Instant,
    said: Option<Instant>,
    done: f64,
    total: f64,
}

/// Between two lines of progress where stderr is not a terminal.
const QUIET: Duration = Duration::from_secs(15);

impl Progress {
    /// Of a run over these groups.
    pub fn new(groups: &[Vec<Selected>], bounds: Bounds) -> Self {
        let total = groups.iter().map(|group| Self::weight(group, bounds)).sum();
        Self { start: Instant::now(), said: None, done: 0.0, total }
    }

    /// About how long a group takes, in seconds of a device of ten billion operations a second:
    /// only the ratio of two groups matters.
    fn weight(group: &[Selected], bounds: Bounds) -> f64 {
        let one = |selected: &Selected| {
            let work = selected.subject.op.work(&selected.subject.call);
            let seconds = (work.flops as f64 / 1e10).max(work.bytes as f64 / 1e10);
            let least = SAMPLES_MIN as f64 * seconds;
            let timing = (bounds.samples as f64 * seconds).min(bounds.row_ms / 1e3).max(least);
            0.05 + 2.0 * seconds + timing
        };
        group.iter().map(one).sum()
    }

    /// Before a group.
    pub fn begin(&mut self, group: &[Selected]) {
        let terminal = std::io::stderr().is_terminal();
        if !terminal && self.said.is_some_and(|said| said.elapsed() < QUIET) {
            return;
        }
        self.said = Some(Instant::now());
        let name = group.first().map(|one| one.subject.group()).unwrap_or_default();
        let text = format!("{}: {name}", self.status(self.start.elapsed().as_secs_f64()));
        // Progress that cannot be written is no reason to stop measuring.
        let _ = if terminal {
            write!(std::io::stderr(), "\r\x1b[2K{text}")
        } else {
            writeln!(std::io::stderr(), "{text}")
        };
    }

    /// Share done and time left, after so many seconds.
    fn status(&self, elapsed: f64) -> String {
        let share = self.done / self.total.max(1e-9);
        if share < 0.005 {
            return format!("{:3.0} %", 100.0 * share);
        }
        let left = elapsed / share - elapsed;
        let left =
            if left < 90.0 { format!("{left:.0} s") } else { format!("{:.0} min", left / 60.0) };
        format!("{:3.0} %, {left} left", 100.0 * share)
    }

    /// After a group; its rows may be printed now.
    pub fn end(&mut self, group: &[Selected], bounds: Bounds) {
        self.done += Self::weight(group, bounds);
        if std::io::stderr().is_terminal() {
            let _ = write!(std::io::stderr(), "\r\x1b[2K");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Subject;
    use edge_gpu::Options;

    #[test]
    fn rows_are_bounded_by_count_and_time() {
        let bounds = Bounds { samples: 11, row_ms: 100.0 };
        assert!(bounds.wants_more(0, 0.0));
        assert!(bounds.wants_more(2, 1e6), "three samples, whatever they cost");
        assert!(!bounds.wants_more(3, 100.0));
        assert!(bounds.wants_more(10, 99.0));
        assert!(!bounds.wants_more(11, 0.0));
        assert!(!Bounds { samples: 1, row_ms: 100.0 }.wants_more(1, 0.0));
    }

    #[test]
    fn time_left_follows_the_pace() {
        let mut progress = Progress { start: Instant::now(), said: None, done: 0.0, total: 10.0 };
        assert_eq!(progress.status(5.0), "  0 %");
        progress.done = 2.5;
        assert_eq!(progress.status(10.0), " 25 %, 30 s left");
        assert_eq!(progress.status(600.0), " 25 %, 30 min left");
    }

    #[test]
    fn a_group_gets_rows_ratios_and_rounds() {
        let options = Options { profile: true, ..Options::default() };
        let device = Device::open("cpu", &options).expect("always there");
        let formats =
            ["f32", "q4"].map(|name| edge_kernels::Format::from_name(name).expect("known"));
        let group = formats.map(|format| Selected {
            subject: Subject::forward("test", [3, 16, 64], format),
            baseline: false,
        });
        let mut rounds = 0;
        let mut count = || {
            rounds += 1;
            Ok(())
        };
        let bounds = Bounds { samples: 4, row_ms: 1e6 };
        let which = Which::All;
        let device = &device;
        let mut setup = Setup { device, roof: None, bounds, which, calibration: None };
        let outcome = time_group(&group, &mut setup, Some(&mut count)).expect("runs");
        assert!(outcome.errors.is_empty());
        assert_eq!(rounds, 4);
        assert_eq!(outcome.timed.len(), 2);
        assert!(outcome.timed.iter().all(|one| one.row.samples == 4));
        assert_eq!(outcome.timed[0].row.ratio_to_dense_f32, Some(1.0));
        assert!(outcome.timed[1].row.ratio_to_dense_f32.is_some_and(|ratio| ratio > 0.0));
        assert_eq!(outcome.timed[1].row.ratio_to_dense_f16, None, "there was no f16 to compare");
    }
}
