//! `watch`: follows a run from another terminal. `report`: writes its page again.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Result, bail, ensure};
use clap::Args;

use super::report::Progress;
use crate::metrics::{Row, StepRow, Tail, ValidationRow};
use crate::report::{self, Report, next_command};
use crate::run_dir::RunState;
use crate::session::{duration, mebibytes};
use crate::tune::header::Header;

/// Options of `watch`.
#[derive(Clone, Debug, Args)]
pub struct WatchArgs {
    /// Run directory of tune
    #[arg(value_name = "RUN")]
    pub run: PathBuf,
    /// Seconds between looks at it
    #[arg(long, value_name = "S", default_value_t = 1.0)]
    pub interval: f64,
}

/// Options of `report`.
#[derive(Clone, Debug, Args)]
pub struct ReportArgs {
    /// Run directory of tune
    #[arg(value_name = "RUN")]
    pub run: PathBuf,
}

/// Characters of a sparkline.
const SPARKS: [char; 8] = ['▁', '▂', '▃', '▄', '▅', '▆', '▇', '█'];

/// Its width.
const SPARK_WIDTH: usize = 20;

/// The course of values in a few characters; those that are no numbers leave a gap.
fn sparkline(values: &[f64], width: usize) -> String {
    let parts = width.min(values.len());
    let mean = |part: usize| {
        let part = &values[part * values.len() / parts..(part + 1) * values.len() / parts];
        let finite: Vec<f64> = part.iter().copied().filter(|value| value.is_finite()).collect();
        finite.iter().sum::<f64>() / finite.len() as f64
    };
    let means: Vec<f64> = (0..parts).map(mean).collect();
    let least = means.iter().copied().fold(f64::INFINITY, f64::min);
    let most = means.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    let spark = |value: &f64| match value.is_finite() {
        true => {
            let height = (value - least) / (most - least).max(1e-12) * SPARKS.len() as f64;
            SPARKS[(height as usize).min(SPARKS.len() - 1)]
        }
        false => ' ',
    };
    means.iter().map(spark).collect()
}

/// What was seen of a run.
#[derive(Default)]
struct Seen {
    losses: Vec<f64>,
    step: Option<StepRow>,
    validation: Option<ValidationRow>,
}

impl Seen {
    fn message(&self) -> String {
        let Some(row) = &self.step else { return "no step is done yet".to_owned() };
        let validation = self.validation.as_ref();
        let validation = validation.map_or(String::new(), |v| format!(", val {:.4}", v.val_loss));
        let left = row.seconds / row.done.max(1e-9) * (1.0 - row.done).max(0.0);
        format!(
            "step {}, loss {:.4} {}{validation}, {:.0} tokens/s, {}, {} left",
            row.step,
            row.loss,
            sparkline(&self.losses, SPARK_WIDTH),
            row.tokens as f64 / row.seconds,
            mebibytes(row.device_bytes),
            duration(left)
        )
    }

    fn steps(&self) -> u64 {
        self.step.as_ref().map_or(0, |row| row.step)
    }
}

pub(super) fn run(args: &WatchArgs) -> Result<()> {
    ensure!(
        args.interval > 0.0 && args.interval < 1e6,
        "--interval is {}: give a number of seconds above 0",
        args.interval
    );
    let interval = Duration::from_secs_f64(args.interval);
    let dir = &args.run;
    eprintln!("{}", begun(dir, interval)?.text());
    let mut tail = Tail::open(dir)?;
    let mut seen = Seen::default();
    let mut progress = Progress::following();
    let state = loop {
        // Asked for before the rows are read, so that the last ones are not missed.
        let state = RunState::of(dir)?;
        for row in tail.rows()? {
            match row {
                Row::Step(row) => {
                    seen.losses.push(row.loss);
                    seen.step = Some(row);
                }
                Row::Validation(row) => {
                    progress.say(&validated(&row));
                    seen.validation = Some(row);
                }
            }
        }
        let done = seen.step.as_ref().map_or(0.0, |row| row.done.min(1.0));
        progress.share(done, state.is_over(), || seen.message());
        if state.is_over() {
            break state;
        }
        std::thread::sleep(interval);
    };
    progress.finish();
    ended(dir, &state, seen.steps())
}

/// The header, once the run has written it.
fn begun(dir: &Path, interval: Duration) -> Result<Header> {
    const PATIENCE: Duration = Duration::from_secs(10);
    let started = Instant::now();
    loop {
        match Header::read(dir) {
            Ok(header) => return Ok(header),
            // A directory that was just made.
            Err(error) => {
                let waits = matches!(RunState::of(dir), Ok(RunState::Running));
                if !waits || started.elapsed() > PATIENCE {
                    return Err(error);
                }
            }
        }
        std::thread::sleep(interval);
    }
}

fn validated(row: &ValidationRow) -> String {
    let exits: Vec<String> = row.val_exits.iter().map(|loss| format!("{loss:.4}")).collect();
    let vote = match exits.len() {
        1 => String::new(),
        _ => format!(", vote {:.4}", row.val_vote),
    };
    format!("step {}: validation loss {} at the exits{vote}", row.step, exits.join(" / "))
}

/// Says how the run ended.
fn ended(dir: &Path, state: &RunState, steps: u64) -> Result<()> {
    let shown = dir.display();
    let report = Report::read(dir)?;
    let kept = match report.best {
        Some((step, loss)) => {
            let best = dir.join(crate::tune::validate::BEST);
            format!(
                "; the best checkpoint, of step {step} with loss {loss:.4}, is in {}",
                best.display()
            )
        }
        None => String::new(),
    };
    match state {
        RunState::Failed(error) => bail!("the run failed after {steps} steps: {error}{kept}"),
        RunState::Died => bail!(
            "the run died after {steps} steps: its process is gone, and left no result in \
             {shown}{kept}"
        ),
        RunState::Interrupted => eprintln!("the run was interrupted after {steps} steps{kept}"),
        _ => eprintln!("the run has ended after {steps} steps{kept}"),
    }
    if let Some(reason) = &report.stopped {
        eprintln!("it {reason}");
    }
    eprintln!("open {}", dir.join(report::FILE).display());
    eprintln!("next: {}", next_command(&report.best_dir(), &report.options.device));
    Ok(())
}

/// Writes the page of a run again.
pub(super) fn rebuild(args: &ReportArgs) -> Result<()> {
    report::write(&args.run)?;
    eprintln!("written to {}", args.run.join(report::FILE).display());
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::metrics::tests::step;

    #[test]
    fn a_sparkline_shows_the_course() {
        let falling: Vec<f64> = (0..80).map(|i| 8.0 - f64::from(i) / 10.0).collect();
        assert_eq!(sparkline(&falling, 8), "█▇▆▅▄▃▂▁");
        assert_eq!(sparkline(&[1.0, f64::NAN, 2.0], 8), "▁ █");
        assert_eq!(sparkline(&[3.0], 8), "▁");
        assert_eq!(sparkline(&[], 8), "");
    }

    #[test]
    fn what_was_seen_is_said() {
        let mut seen = Seen::default();
        assert_eq!((seen.message().as_str(), seen.steps()), ("no step is done yet", 0));
        let Row::Step(row) = step(50) else { panic!() };
        (seen.step, seen.losses) = (Some(row), vec![5.0, 4.5]);
        let want = "step 50, loss 4.5000 █▁, 1000 tokens/s, 1.0 MiB, 3 s left";
        assert_eq!(seen.message(), want);
    }
}
