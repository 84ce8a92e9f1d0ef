//! The course of a run: when it ends, which window each step trains, and at which learning rate.

use edge_kernels::util::SeededRng;
use rand::{RngExt, SeedableRng};
use serde::{Deserialize, Serialize};

use crate::cli::args::WindowOrder;
use crate::cli::options::TuneOptions;
use crate::schedule::Schedule;

/// Least part of the way through a schedule, a fifth of the warm-up, where the steps of a run are
/// not counted.
const LEAST_WITHIN: f64 = 0.01;

/// What ends a run.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Budget {
    /// Optimiser steps.
    Steps(u64),
    /// Seconds of training; validation does not count.
    Seconds(f64),
    /// Tokens that went through the model.
    Tokens(u64),
}

/// What a run has used so far.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Spent {
    /// Optimiser steps.
    pub steps: u64,
    /// Seconds of training.
    pub seconds: f64,
    /// Tokens.
    pub tokens: u64,
}

impl Budget {
    /// Share of the budget that is used: the run ends at 1.
    pub fn done(self, spent: Spent) -> f64 {
        match self {
            Self::Steps(steps) => spent.steps as f64 / steps.max(1) as f64,
            Self::Seconds(seconds) => spent.seconds / seconds,
            Self::Tokens(tokens) => spent.tokens as f64 / tokens.max(1) as f64,
        }
    }

    /// Units for a progress bar, and how many of them are used.
    pub fn progress(self, spent: Spent) -> (u64, u64) {
        match self {
            Self::Steps(steps) => (steps, spent.steps),
            Self::Seconds(seconds) => (seconds.ceil() as u64, spent.seconds as u64),
            Self::Tokens(tokens) => (tokens, spent.tokens),
        }
    }
}

impl std::fmt::Display for Budget {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Steps(steps) => write!(f, "{steps} steps"),
            Self::Seconds(seconds) => write!(f, "{seconds} s"),
            Self::Tokens(tokens) => write!(f, "{tokens} tokens"),
        }
    }
}

/// What one step does.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Turn {
    /// The window that is trained, from 0.
    pub window: usize,
    /// Which part of the run this is, from 0; more than one with `progressive` and `isolated`
    /// windows.
    pub phase: usize,
    /// Learning rate.
    pub lr: f64,
}

/// Shares of windows in phases: nine tenths for the top one, on which the last exit depends, half
/// of the rest for the next, and the others together the other half: enough for exits that help a
/// vote (`docs/windows.md`).
fn default_shares(windows: usize) -> Vec<f64> {
    let below = windows.saturating_sub(2);
    let mut shares = vec![0.05 / below.max(1) as f64; below];
    match windows {
        0 | 1 => shares.push(1.0),
        2 => shares.extend([0.1, 0.9]),
        _ => shares.extend([0.05, 0.9]),
    }
    shares
}

/// Shares of the run that windows in phases get; their sum is 1.
pub fn shares(options: &TuneOptions, windows: usize) -> Vec<f64> {
    let shares = match &options.window_shares {
        Some(shares) => shares.0.clone(),
        None => default_shares(windows),
    };
    let total: f64 = shares.iter().sum();
    shares.into_iter().map(|share| share / total).collect()
}

/// Chooses the turns of a run.
#[derive(Debug)]
pub struct Course {
    budget: Budget,
    order: WindowOrder,
    windows: usize,
    /// Shares of the budget after which each phase ends, rising to 1.
    ends: Vec<f64>,
    schedule: Schedule,
    peak: f64,
    warmup_steps: Option<u64>,
    rng: SeededRng,
}

impl Course {
    /// The course of a run over `windows` windows.
    pub fn new(options: &TuneOptions, windows: usize, budget: Budget) -> Self {
        let phases = options.semantics.has_phases() && windows > 1;
        let shares = if phases { shares(options, windows) } else { vec![1.0] };
        let mut sum = 0.0;
        let mut ends: Vec<f64> = Vec::new();
        for share in shares {
            sum += share;
            ends.push(sum);
        }
        // Rounding must not keep the last phase from ending.
        if let Some(last) = ends.last_mut() {
            *last = 1.0;
        }
        Self {
            budget,
            order: options.window_order,
            windows,
            ends,
            schedule: options.schedule,
            peak: options.lr,
            warmup_steps: options.warmup_steps,
            rng: SeededRng::seed_from_u64(options.seed),
        }
    }

    /// The same course behind so many steps.
    #[must_use]
    pub fn behind(mut self, steps: u64) -> Self {
        if self.draws() {
            for _ in 0..steps {
                self.draw();
            }
        }
        self
    }

    /// Whether chance says which window a step trains.
    fn draws(&self) -> bool {
        self.ends.len() == 1 && self.order == WindowOrder::Random
    }

    fn draw(&mut self) -> usize {
        self.rng.random_range(0..self.windows as u64) as usize
    }

    /// What ends the run.
    pub fn budget(&self) -> Budget {
        self.budget
    }

    /// Whether a turn is of the last part of the run.
    pub fn is_last(&self, turn: Turn) -> bool {
        turn.phase + 1 == self.ends.len()
    }

    /// The next step's turn; `None` at the end. Must be asked for once a step.
    pub fn next(&mut self, spent: Spent) -> Option<Turn> {
        let done = self.budget.done(spent);
        if done >= 1.0 {
            return None;
        }
        // A step of rounding away from a boundary belongs to the phase behind it.
        let phase = self.ends.iter().position(|end| done + 1e-9 < *end).unwrap_or(0);
        let start = if phase == 0 { 0.0 } else { self.ends[phase - 1] };
        let share = self.ends[phase] - start;
        let within = ((done - start) / share).clamp(0.0, 1.0);
        // How many steps there will be is not known: the first one may be the only one, and is not
        // to be for nothing.
        let within = match self.budget {
            Budget::Steps(_) => within,
            Budget::Seconds(_) | Budget::Tokens(_) => within.max(LEAST_WITHIN),
        };
        let lr = self.schedule.learning_rate(self.peak, within, self.warmup(share));
        let windows = self.windows as u64;
        let window = match (self.ends.len() > 1, self.order) {
            (true, _) => phase,
            (_, WindowOrder::RoundRobin) => (spent.steps % windows) as usize,
            (_, WindowOrder::Random) => self.draw(),
            (_, WindowOrder::Sequential) => {
                ((done + 1e-9) * windows as f64).min(windows as f64 - 1.0) as usize
            }
        };
        Some(Turn { window, phase, lr })
    }

    /// The part of a phase, which is this share of the run, in which the learning rate rises: 5 %,
    /// in whole steps where the run is counted in them.
    fn warmup(&self, share: f64) -> f64 {
        let Budget::Steps(steps) = self.budget else { return 0.05 };
        let steps = (steps as f64 * share).round().max(1.0) as u64;
        let warmup = self.warmup_steps.unwrap_or(steps.div_ceil(20).min(steps / 2));
        warmup as f64 / steps as f64
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::args::{Semantics, Shares, TuneFlags};

    fn options(flags: TuneFlags) -> TuneOptions {
        flags.resolve().expect("options")
    }

    fn turns(options: &TuneOptions, windows: usize, steps: u64) -> Vec<Turn> {
        let mut course = Course::new(options, windows, Budget::Steps(steps));
        let spent = |steps| Spent { steps, ..Spent::default() };
        let turns: Vec<Turn> = (0..steps).map(|s| course.next(spent(s)).expect("a turn")).collect();
        assert_eq!(course.next(spent(steps)), None);
        turns
    }

    fn windows(turns: &[Turn]) -> Vec<usize> {
        turns.iter().map(|turn| turn.window).collect()
    }

    #[test]
    fn orders_visit_windows_as_they_say() {
        let order = |window_order| {
            options(TuneFlags { window_order: Some(window_order), ..TuneFlags::default() })
        };
        let of = |window_order, steps| windows(&turns(&order(window_order), 3, steps));
        assert_eq!(of(WindowOrder::RoundRobin, 7), [0, 1, 2, 0, 1, 2, 0]);
        assert_eq!(of(WindowOrder::Sequential, 7), [0, 0, 0, 1, 1, 2, 2]);
        assert_eq!(of(WindowOrder::Sequential, 6), [0, 0, 1, 1, 2, 2]);
        let random = of(WindowOrder::Random, 60);
        assert!((0..3).all(|w| random.iter().filter(|&&x| x == w).count() > 5), "{random:?}");
        assert_eq!(random, of(WindowOrder::Random, 60));
        for step in [0, 1, 37] {
            let course = Course::new(&order(WindowOrder::Random), 3, Budget::Steps(60));
            let turn = course.behind(step).next(Spent { steps: step, ..Spent::default() });
            assert_eq!(turn.expect("a turn").window, random[step as usize]);
        }
    }

    #[test]
    fn each_phase_has_its_share_and_its_own_schedule() {
        let flags = TuneFlags {
            semantics: Some(Semantics::Progressive),
            windows: Some(2),
            lr: Some(1.0),
            ..TuneFlags::default()
        };
        let shares = Some(Shares(vec![1.0, 1.0]));
        let equal = TuneFlags { window_shares: shares, ..flags.clone() };
        let equal = turns(&options(equal), 2, 8);
        assert_eq!(windows(&equal), [0, 0, 0, 0, 1, 1, 1, 1]);
        let rates: Vec<f64> = equal.iter().map(|turn| turn.lr).collect();
        assert_eq!(rates[..4], rates[4..]);
        assert_eq!((rates[0], rates[1]), (0.0, 1.0));
        let shares = Some(Shares(vec![1.0, 3.0]));
        let uneven = turns(&options(TuneFlags { window_shares: shares, ..flags }), 2, 8);
        assert_eq!(windows(&uneven), [0, 0, 1, 1, 1, 1, 1, 1]);
        for windows in 1..9 {
            let shares = default_shares(windows);
            assert_eq!(shares.len(), windows);
            assert!((shares.iter().sum::<f64>() - 1.0).abs() < 1e-12, "{shares:?}");
        }
    }

    #[test]
    fn budgets_end_runs() {
        let spent = Spent { steps: 5, seconds: 2.0, tokens: 100 };
        assert_eq!(Budget::Steps(10).done(spent), 0.5);
        assert_eq!(Budget::Seconds(8.0).done(spent), 0.25);
        assert_eq!(Budget::Tokens(100).done(spent), 1.0);
        let mut course = Course::new(&options(TuneFlags::default()), 1, Budget::Tokens(100));
        assert_eq!(course.next(spent), None);
        let turn = course.next(Spent { tokens: 2, ..spent }).expect("a turn");
        assert!((turn.lr - 2e-4 * 0.4).abs() < 1e-12, "{turn:?}");
    }
}
