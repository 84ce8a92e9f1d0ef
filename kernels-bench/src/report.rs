//! What a comparison of records says to others: people in a terminal or under a pull request, and
//! programs that draw benchmarks (github-action-benchmark, Bencher).

use std::fmt::Write as _;

use serde_json::{Map, Value, json};

use crate::history::{Entry, History};
use crate::judge::{Basis, Change, Judgement, Verdict};
use crate::measure::Better;
use crate::series::{self, Point, Series};

/// Most rows of a table under a pull request.
const SHOWN: usize = 20;

/// Four digits that matter.
fn digits(value: f64) -> String {
    match value.abs() {
        v if v >= 1000.0 || v == 0.0 => format!("{value:.0}"),
        v if v >= 1.0 => format!("{value:.3}"),
        _ => format!("{value:.5}"),
    }
}

fn words(change: &Change) -> String {
    match change.verdict() {
        Verdict::Regression(magnitude) => format!("{} regression", magnitude.words()),
        Verdict::Improvement(magnitude) => format!("{} improvement", magnitude.words()),
        Verdict::Moved(magnitude) => format!("{} change", magnitude.words()),
        Verdict::Nothing => "within its fence".into(),
    }
}

fn basis(change: &Change) -> &'static str {
    match change.basis {
        Basis::Value => "",
        Basis::Calibrated => ", calibrated",
        Basis::Clock => ", by the clock",
    }
}

/// One line of what is judged: `+12.3 %`.
fn percent(change: &Change) -> String {
    format!("{:+.1} %", 100.0 * (change.ratio - 1.0))
}

/// What there is of each verdict, in a sentence.
fn summary(judgement: &Judgement) -> String {
    let production = |changes: &[&Change]| changes.iter().filter(|one| one.production).count();
    let (worse, better) = (judgement.regressions(), judgement.improvements());
    format!(
        "{} regressions ({} in what production takes), {} improvements ({}), of {} rows; {} new, \
         {} gone",
        worse.len(),
        production(&worse),
        better.len(),
        production(&better),
        judgement.changes.len(),
        judgement.new.len(),
        judgement.gone.len()
    )
}

/// For a terminal.
pub fn text(judgement: &Judgement, [before, now]: [&Entry; 2]) -> String {
    let mut text = format!("{} -> {} on {}\n", before.name, now.name, now.device);
    for change in judgement.with(|verdict| verdict != Verdict::Nothing) {
        // Writing to a string cannot fail.
        let _ = writeln!(
            text,
            "{:>9}  {:<22} {} -> {} {}  {}{}  (fence {:.1} %)",
            percent(change),
            words(change),
            digits(change.before),
            digits(change.now),
            change.unit,
            change.key,
            basis(change),
            100.0 * change.reach
        );
    }
    text + &summary(judgement) + "\n"
}

/// A cell of a table, with nothing that Markdown or HTML would read.
fn cell(text: &str) -> String {
    let text = text.replace('&', "&amp;").replace('<', "&lt;").replace('`', "'");
    text.replace('|', "\\|").replace(['\n', '\r'], " ")
}

/// For a comment under a pull request.
pub fn markdown(judgement: &Judgement, [before, now]: [&Entry; 2]) -> String {
    let mut text = format!(
        "### Benchmarks: `{}` → `{}`\n\n{} on {}.\n",
        cell(&before.record.commit),
        cell(&now.record.commit),
        summary(judgement),
        cell(&now.device)
    );
    let (worse, better) = (judgement.regressions(), judgement.improvements());
    for (title, changes) in [("Regressions", worse), ("Improvements", better)] {
        if changes.is_empty() {
            continue;
        }
        let _ = write!(text, "\n#### {title}\n\n");
        text.push_str("| row | before | now | change | fence | |\n");
        text.push_str("| --- | ---: | ---: | ---: | ---: | --- |\n");
        for change in changes.iter().take(SHOWN) {
            let _ = writeln!(
                text,
                "| `{}`{} | {} {} | {} {} | {} | {:.1} % | {} |",
                cell(&change.key),
                if change.production { "" } else { " (not production's)" },
                digits(change.before),
                cell(&change.unit),
                digits(change.now),
                cell(&change.unit),
                percent(change),
                100.0 * change.reach,
                words(change)
            );
        }
        if changes.len() > SHOWN {
            let _ = writeln!(text, "\n… and {} more.", changes.len() - SHOWN);
        }
    }
    text.push_str(
        "\nA change counts when it leaves the fence of the row's own history. Kernels are judged \
         by their time over that of a calibration kernel timed around them; what only one record \
         has calibrated counts neither for nor against.\n",
    );
    text
}

/// The series of a record with their points in it.
fn in_record(all: &[Series], record: usize) -> impl Iterator<Item = (&Series, &Point)> {
    all.iter().filter_map(move |series| Some((series, series.at(record)?)))
}

/// A record for github-action-benchmark: `customSmallerIsBetter`, or `customBiggerIsBetter` of
/// what ought to rise.
pub fn github(history: &History, record: usize, better: Better) -> Value {
    let all = series::all(history);
    let entries = in_record(&all, record).filter(|(series, _)| series.better == better);
    let entries = entries.map(|(series, point)| {
        let mut entry = json!({
            "name": series.key(),
            "unit": if series.unit.is_empty() { "x" } else { series.unit.as_str() },
            "value": point.value,
            "extra": series.repeat,
        });
        if point.spread > 0.0 {
            entry["range"] = format!("± {}", digits(point.spread)).into();
        }
        entry
    });
    entries.collect()
}

/// A record in Bencher Metric Format: benchmarks with measures by name.
pub fn bencher(history: &History, record: usize) -> Value {
    let all = series::all(history);
    let mut report = Map::new();
    for (series, point) in in_record(&all, record) {
        let [op, format, shape, last] = &series.names;
        let (name, mut measures) = match point.rates {
            Some(_) => {
                // Its `latency` is in nanoseconds.
                let [value, spread] = [point.value, point.spread].map(|ms| ms * 1e6);
                let (low, high) = (value - spread, value + spread);
                let time = json!({"value": value, "lower_value": low, "upper_value": high});
                (series.key(), vec![("latency".to_string(), time)])
            }
            None => {
                let value = json!({"value": point.value});
                (format!("{op}/{format}/{shape}"), vec![(last.clone(), value)])
            }
        };
        if let Some(calibrated) = point.calibrated() {
            measures.push(("calibrated".into(), json!({"value": calibrated})));
        }
        let known = report.entry(name).or_insert_with(|| json!({}));
        for (measure, value) in measures {
            known[measure] = value;
        }
    }
    Value::Object(report)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::judge::judge;
    use crate::judge::tests::entry;

    fn history() -> History {
        History { entries: vec![entry("1", 1.0, None, 3.0), entry("2", 3.0, None, 2.9)] }
    }

    #[test]
    fn people_read_what_counts_first() {
        let history = history();
        let judgement = judge(&history, 0, 1);
        let both = [&history.entries[0], &history.entries[1]];
        let text = text(&judgement, both);
        assert!(text.contains("+200.0 %  medium regression"), "{text}");
        assert!(text.contains("-3.3 %  medium improvement"), "{text}");
        assert!(text.ends_with(
            "2 regressions (2 in what production takes), 1 improvements (1), of 3 rows; 0 new, 0 \
             gone\n"
        ));
        let markdown = markdown(&judgement, both);
        let table = "| `compare/edge/demo/val_loss` | 3.000 nats | 2.900 nats | -3.3 % |";
        assert!(markdown.contains(table), "{markdown}");
        assert!(markdown.contains("#### Regressions") && markdown.contains("#### Improvements"));
    }

    #[test]
    fn names_cannot_break_the_table() {
        assert_eq!(cell("a|b`<script>\n"), "a\\|b'&lt;script> ");
    }

    #[test]
    fn programs_read_their_own_forms() {
        let history = history();
        let smaller = github(&history, 1, Better::Lower);
        let names: Vec<&str> =
            smaller.as_array().expect("a list").iter().filter_map(|e| e["name"].as_str()).collect();
        assert_eq!(names.len(), 2, "time and loss: {names:?}");
        assert!(smaller[0]["value"] == 3.0 && smaller[0]["unit"] == "ms", "{smaller}");
        let bigger = github(&history, 1, Better::Higher);
        assert_eq!(bigger[0]["name"], "compare/edge/demo/speed_ratio_to_lora");
        let bencher = bencher(&history, 1);
        assert_eq!(bencher["compare/edge/demo"]["val_loss"]["value"], 2.9);
        let kernel = history.entries[1].record.rows[0].key();
        assert_eq!(bencher[&kernel]["latency"]["value"], 3e6);
    }
}
