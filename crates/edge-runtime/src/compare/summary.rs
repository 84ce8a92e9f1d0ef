//! Means over seeds, and what methods are to each other.

use serde::Serialize;
use serde_json::{Map, Value};

use crate::cli::report::{ExitLoss, VoteLoss};
use crate::evaluate::Voted;
use crate::tune::run::CurvePoint;

/// What every run of a group may use.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum BudgetKind {
    /// The same number of tokens.
    Tokens,
    /// The same time.
    Seconds,
}

impl BudgetKind {
    /// The name on the command line and in reports.
    pub fn name(self) -> &'static str {
        match self {
            Self::Tokens => "tokens",
            Self::Seconds => "seconds",
        }
    }
}

/// One run. What it did not come to is 0, null or empty.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Run {
    /// The method's name in this comparison.
    pub method: String,
    /// The method of `tune` behind it.
    pub kind: String,
    /// Seed of initial values and data order.
    pub seed: u64,
    /// What ended it.
    pub budget: Option<BudgetKind>,
    /// Seconds of training; validation does not count.
    pub seconds: f64,
    /// Optimiser steps.
    pub steps: u64,
    /// Tokens that went through the model in training.
    pub tokens: u64,
    /// `tokens` over `seconds`.
    pub tokens_per_second: f64,
    /// Median time of a step, ms.
    pub step_ms_median: f64,
    /// Most device memory in use at once, bytes.
    pub peak_device_bytes: u64,
    /// The same by category.
    pub peak_device_bytes_by_category: Map<String, Value>,
    /// Most memory of the process during this run, bytes; what earlier runs left in it, such as
    /// compiled kernels, counts.
    pub peak_host_bytes: Option<u64>,
    /// Before training: least loss among the exits, nats.
    pub val_loss_before: Option<f64>,
    /// After training, last exit, nats.
    pub val_loss: Option<f64>,
    /// After training, least loss among the exits, nats.
    pub best_exit_val_loss: Option<f64>,
    /// After training, the exits' vote, nats; null where there is one exit.
    pub vote_val_loss: Option<f64>,
    /// Each exit's loss.
    pub exits: Vec<ExitLoss>,
    /// The vote and its loss.
    pub vote: Option<VoteLoss>,
    /// Each exit's loss on the half of the validation data that no vote was fitted on.
    pub held_out_exits: Vec<ExitLoss>,
    /// Every vote's loss and cost on that half.
    pub votes: Vec<Voted>,
    /// Validations before, during and after training.
    pub curve: Vec<CurvePoint>,
    /// Run directory.
    pub run_dir: String,
    /// Ctrl-C ended it.
    pub interrupted: bool,
    /// Why it failed.
    pub error: Option<String>,
}

impl Run {
    /// The loss of the model as the method would use it: the vote, or the only exit, nats.
    pub fn loss(&self) -> Option<f64> {
        self.vote_val_loss.or(self.val_loss)
    }

    /// Whether it used all of its budget.
    pub fn is_whole(&self) -> bool {
        self.error.is_none() && !self.interrupted
    }
}

/// Mean and spread of a number over seeds.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Spread {
    /// Mean.
    pub mean: f64,
    /// Sample standard deviation; null for one value.
    pub deviation: Option<f64>,
    /// How many values.
    pub count: usize,
}

impl Spread {
    /// Of some values; `None` of none.
    pub fn of(values: impl IntoIterator<Item = f64>) -> Option<Self> {
        let values: Vec<f64> = values.into_iter().collect();
        let count = values.len();
        if count == 0 {
            return None;
        }
        let mean = values.iter().sum::<f64>() / count as f64;
        let squares: f64 = values.iter().map(|value| (value - mean).powi(2)).sum();
        let deviation = (count > 1).then(|| (squares / (count - 1) as f64).sqrt());
        Some(Self { mean, deviation, count })
    }

    /// `3.21 ± 0.04`.
    pub fn show(spread: Option<Self>, digits: usize) -> String {
        match spread {
            None => "-".into(),
            Some(Self { mean, deviation: None, .. }) => format!("{mean:.digits$}"),
            Some(Self { mean, deviation: Some(deviation), .. }) => {
                format!("{mean:.digits$} ± {deviation:.digits$}")
            }
        }
    }
}

/// The middle one of some values, the mean of the two in the middle of an even number.
pub fn median(mut values: Vec<f64>) -> Option<f64> {
    values.sort_by(f64::total_cmp);
    let half = values.len() / 2;
    match values.len() {
        0 => None,
        len if len % 2 == 1 => Some(values[half]),
        _ => Some((values[half - 1] + values[half]) / 2.0),
    }
}

/// A method under a budget, over all seeds that came to their end.
#[derive(Clone, Debug, Serialize)]
pub struct Summary {
    /// The method's name.
    pub method: String,
    /// What ended its runs.
    pub budget: BudgetKind,
    /// Tokens a second.
    pub tokens_per_second: Option<Spread>,
    /// Median time of a step, ms.
    pub step_ms: Option<Spread>,
    /// Seconds of training.
    pub seconds: Option<Spread>,
    /// Tokens.
    pub tokens: Option<Spread>,
    /// Most device memory in use at once, bytes; the most of all seeds.
    pub peak_device_bytes: u64,
    /// The same by category.
    pub peak_device_bytes_by_category: Vec<(String, u64)>,
    /// Most memory of the process during a run, bytes; the most of all seeds.
    pub peak_host_bytes: Option<u64>,
    /// Last exit, nats.
    pub val_loss: Option<Spread>,
    /// Best exit, nats.
    pub best_exit_val_loss: Option<Spread>,
    /// Vote, nats.
    pub vote_val_loss: Option<Spread>,
    /// Vote, or the only exit, nats.
    pub loss: Option<Spread>,
    /// Every exit, nats.
    pub exits: Vec<Spread>,
    /// Every vote on the half of the validation data that none was fitted on, nats.
    pub votes: Vec<(String, Spread)>,
}

impl Summary {
    /// Of the whole runs of a method under a budget; `None` if there are none.
    pub fn of(method: &str, budget: BudgetKind, runs: &[Run]) -> Option<Self> {
        let chosen =
            |run: &&Run| run.method == method && run.budget == Some(budget) && run.is_whole();
        let runs: Vec<&Run> = runs.iter().filter(chosen).collect();
        let first = runs.first()?;
        let spread =
            |of: &dyn Fn(&Run) -> Option<f64>| Spread::of(runs.iter().filter_map(|run| of(run)));
        let exits = 0..first.exits.len();
        let exits = exits.filter_map(|i| spread(&|run| Some(run.exits.get(i)?.val_loss)));
        let votes = first.votes.iter().filter_map(|vote| {
            let rule = vote.rule;
            let loss = spread(&|run| Some(run.votes.iter().find(|v| v.rule == rule)?.val_loss));
            Some((rule.name().to_owned(), loss?))
        });
        let categories = first.peak_device_bytes_by_category.keys().map(|name| {
            let bytes = runs.iter().map(|run| &run.peak_device_bytes_by_category[name]);
            (name.clone(), bytes.filter_map(Value::as_u64).max().unwrap_or(0))
        });
        Some(Self {
            method: method.to_owned(),
            budget,
            tokens_per_second: spread(&|run| Some(run.tokens_per_second)),
            step_ms: spread(&|run| Some(run.step_ms_median)),
            seconds: spread(&|run| Some(run.seconds)),
            tokens: spread(&|run| Some(run.tokens as f64)),
            peak_device_bytes: runs.iter().map(|run| run.peak_device_bytes).max().unwrap_or(0),
            peak_device_bytes_by_category: categories.collect(),
            peak_host_bytes: runs.iter().filter_map(|run| run.peak_host_bytes).max(),
            val_loss: spread(&|run| run.val_loss),
            best_exit_val_loss: spread(&|run| run.best_exit_val_loss),
            vote_val_loss: spread(&|run| run.vote_val_loss),
            loss: spread(&Run::loss),
            exits: exits.collect(),
            votes: votes.collect(),
        })
    }
}

/// A method beside another under the same budget.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Comparison {
    /// The method.
    pub method: String,
    /// The one that it is compared with.
    pub reference: String,
    /// What ended both.
    pub budget: BudgetKind,
    /// Tokens a second over the reference's: above 1 is faster.
    pub speed_ratio: Option<f64>,
    /// Device memory over the reference's: below 1 is less.
    pub memory_ratio: Option<f64>,
    /// Loss over the reference's: below 1 is better.
    pub quality_ratio: Option<f64>,
    /// Loss less the reference's, nats: below 0 is better.
    pub loss_difference: Option<f64>,
}

/// Names that others are compared with, where they take part.
pub const REFERENCES: [&str; 3] = ["lora", "qlora", "partial"];

/// Every summary beside each reference of its budget, itself excepted.
pub fn comparisons(summaries: &[Summary]) -> Vec<Comparison> {
    let mut result = Vec::new();
    for summary in summaries {
        for name in REFERENCES.into_iter().filter(|name| *name != summary.method) {
            let same = |s: &&Summary| s.budget == summary.budget && s.method == name;
            let Some(reference) = summaries.iter().find(same) else { continue };
            let mean = |spread: Option<Spread>| spread.map(|spread| spread.mean);
            let ratio = |a: Option<f64>, b: Option<f64>| Some(a? / b.filter(|b| *b > 0.0)?);
            let (speed, memory, loss) = (
                |s: &Summary| mean(s.tokens_per_second),
                |s: &Summary| Some(s.peak_device_bytes as f64),
                |s: &Summary| mean(s.loss),
            );
            let difference = loss(summary).zip(loss(reference)).map(|(a, b)| a - b);
            result.push(Comparison {
                method: summary.method.clone(),
                reference: name.to_owned(),
                budget: summary.budget,
                speed_ratio: ratio(speed(summary), speed(reference)),
                memory_ratio: ratio(memory(summary), memory(reference)),
                quality_ratio: ratio(loss(summary), loss(reference)),
                loss_difference: difference,
            });
        }
    }
    result
}

/// `compare --json`, and `compare.json`.
#[derive(Clone, Debug, Default, Serialize)]
pub struct CompareReport {
    /// Every run, in order.
    pub methods: Vec<Run>,
    /// Tokens a second of `edge` over those of `lora`, at equal tokens (or the only budget).
    pub speed_ratio: Option<f64>,
    /// Device memory likewise.
    pub memory_ratio: Option<f64>,
    /// Validation loss likewise, of the vote where there is one.
    pub quality_ratio: Option<f64>,
    /// Means over seeds.
    pub summaries: Vec<Summary>,
    /// Methods beside references.
    pub comparisons: Vec<Comparison>,
    /// Name of the device.
    pub device: String,
    /// Model folder.
    pub model: String,
    /// Data.
    pub data: String,
    /// What of the examples is cut or left out; empty where nothing is.
    pub cut: Vec<String>,
    /// The budget in tokens.
    pub max_tokens: Option<u64>,
    /// The budget in seconds.
    pub max_seconds: Option<f64>,
    /// Seeds.
    pub seeds: Vec<u64>,
    /// Runs that failed.
    pub failed: usize,
    /// Ctrl-C ended the comparison.
    pub interrupted: bool,
    /// Where everything is.
    pub out: String,
}

impl CompareReport {
    /// Fills in what follows from the runs. `names` are the methods in order.
    pub fn summarise(&mut self, names: &[String]) {
        let budgets = [BudgetKind::Tokens, BudgetKind::Seconds];
        let pairs = budgets.into_iter().flat_map(|b| names.iter().map(move |name| (name, b)));
        self.summaries = pairs.filter_map(|(n, b)| Summary::of(n, b, &self.methods)).collect();
        self.comparisons = comparisons(&self.summaries);
        self.failed = self.methods.iter().filter(|run| run.error.is_some()).count();
        let edge = self.comparisons.iter().find(|c| c.method == "edge" && c.reference == "lora");
        self.speed_ratio = edge.and_then(|c| c.speed_ratio);
        self.memory_ratio = edge.and_then(|c| c.memory_ratio);
        self.quality_ratio = edge.and_then(|c| c.quality_ratio);
    }
}

#[cfg(test)]
pub(super) mod tests {
    use serde_json::json;

    use super::*;

    /// A run of `speed` tokens a second that ends at `loss`.
    pub(crate) fn run(method: &str, seed: u64, speed: f64, loss: f64, bytes: u64) -> Run {
        let exit = |exit, val_loss| ExitLoss { exit, val_loss };
        let many = method != "lora";
        let point = |share: f64| CurvePoint {
            seconds: 1e3 / speed * share,
            tokens: (1e3 * share) as u64,
            val_loss: loss + 1.0 - share,
            val_exits: vec![loss + 1.0 - share],
            val_vote: loss,
        };
        let by_category = json!({"weights": bytes / 2, "activations": bytes / 2});
        Run {
            method: method.into(),
            kind: method.into(),
            seed,
            budget: Some(BudgetKind::Tokens),
            seconds: 1e3 / speed,
            steps: 10,
            tokens: 1000,
            tokens_per_second: speed,
            step_ms_median: 1e5 / speed,
            peak_device_bytes: bytes,
            peak_device_bytes_by_category: by_category.as_object().unwrap().clone(),
            peak_host_bytes: Some(bytes * 2),
            val_loss_before: Some(loss + 1.0),
            val_loss: Some(loss + 0.1),
            best_exit_val_loss: Some(loss + 0.05),
            vote_val_loss: many.then_some(loss),
            exits: if many { vec![exit(1, loss + 0.05), exit(2, loss + 0.1)] } else { vec![] },
            curve: vec![point(0.0), point(0.5), point(1.0)],
            ..Run::default()
        }
    }

    /// Two seeds of two methods, one of which failed for a third method.
    pub(crate) fn report() -> CompareReport {
        let failed = Run { error: Some("no <memory>".into()), ..run("full", 0, 1.0, 1.0, 1) };
        let mut report = CompareReport {
            methods: vec![
                run("lora", 0, 100.0, 2.9, 4 << 20),
                run("edge", 0, 190.0, 3.0, 1 << 20),
                failed,
                run("lora", 1, 100.0, 2.9, 4 << 20),
                run("edge", 1, 210.0, 3.2, 2 << 20),
            ],
            seeds: vec![0, 1],
            max_tokens: Some(1000),
            ..CompareReport::default()
        };
        report.summarise(&["lora".into(), "edge".into(), "full".into()]);
        report
    }

    #[test]
    fn spreads_and_medians_are_those_of_the_definition() {
        let spread = Spread::of([2.0, 4.0, 9.0]).unwrap();
        assert_eq!((spread.mean, spread.count), (5.0, 3));
        assert!((spread.deviation.unwrap() - 13f64.sqrt()).abs() < 1e-12);
        assert_eq!(Spread::show(Some(spread), 1), "5.0 ± 3.6");
        assert_eq!(Spread::show(Spread::of([2.0]), 2), "2.00");
        assert_eq!((Spread::of([]), Spread::show(None, 1)), (None, "-".to_owned()));
        assert_eq!(median(vec![3.0, 1.0, 2.0]), Some(2.0));
        assert_eq!((median(vec![4.0, 1.0]), median(Vec::new())), (Some(2.5), None));
    }

    #[test]
    fn methods_are_compared_with_the_references_that_take_part() {
        let report = report();
        assert_eq!(report.failed, 1);
        let names: Vec<&str> = report.summaries.iter().map(|s| s.method.as_str()).collect();
        assert_eq!(names, ["lora", "edge"]);
        let [only] = &report.comparisons[..] else { panic!("{:?}", report.comparisons) };
        assert_eq!((only.method.as_str(), only.reference.as_str()), ("edge", "lora"));
        // 200 over 100 tokens a second; the most memory of all seeds; the vote over lora's exit.
        assert_eq!((report.speed_ratio, report.memory_ratio), (Some(2.0), Some(0.5)));
        assert!((report.quality_ratio.unwrap() - 3.1 / 3.0).abs() < 1e-12);
        assert!((only.loss_difference.unwrap() - 0.1).abs() < 1e-12);
        let edge = &report.summaries[1];
        assert_eq!(edge.exits.len(), 2);
        assert_eq!(edge.peak_device_bytes_by_category[0], ("weights".to_owned(), 1 << 20));
    }
}
