//! The page around the charts: how the run stands, what it came to, what it is.

use serde_json::Value;

use super::{Report, charts, next_command};
use crate::chart::{self, Table, escape};
use crate::run_dir::RunState;
use crate::session::{duration, mebibytes};

const TEMPLATE: &str = include_str!("page.html");

/// Seconds between reloads of the page of a run that goes on.
const RELOAD_S: u32 = 30;

/// The whole page.
pub(super) fn render(report: &Report) -> String {
    let header = &report.header;
    let title = format!("{} of {}", header.method, header.model);
    chart::fill(TEMPLATE, |place| match place {
        "refresh" => match report.state {
            RunState::Running => {
                format!("<meta http-equiv=\"refresh\" content=\"{RELOAD_S}\">\n")
            }
            _ => String::new(),
        },
        "title" => escape(&title),
        "about" => escape(&about(report)),
        "notes" => notes(report),
        "losses" => losses(report).html(),
        "predictions" => predictions(report).html(),
        "next" => next(report),
        "loss" => charts::loss(report),
        "speed" => charts::speed(report),
        "memory" => charts::memory(report),
        "layers" => charts::layers(report),
        "timeline" => charts::timeline(report),
        "facts" => facts(report),
        _ => unreachable!("the template has the unknown place {place}"),
    })
}

/// How far the run is.
fn about(report: &Report) -> String {
    let header = &report.header;
    let Some(last) = report.metrics.steps.last() else {
        return format!("{} on {}. No step is done yet.", header.budget, header.device);
    };
    let done = format!(
        "{} steps, {} tokens, {} of training on {}",
        last.step,
        last.tokens,
        duration(last.seconds),
        header.device
    );
    match report.state {
        RunState::Running => format!(
            "Running: {:.0} % of {} done ({done}); about {} left.",
            100.0 * last.done.min(1.0),
            header.budget,
            duration(last.seconds / last.done.max(1e-9) * (1.0 - last.done.min(1.0)))
        ),
        RunState::Finished => format!("Finished: {done}."),
        RunState::Interrupted => format!("Interrupted: {done}, of {}.", header.budget),
        RunState::Failed(_) | RunState::Died => format!("Ended before its end: {done}."),
    }
}

/// What a reader must know first.
fn notes(report: &Report) -> String {
    let mut notes: Vec<String> = Vec::new();
    match &report.state {
        RunState::Failed(error) => notes.push(format!("The run failed: {error}")),
        RunState::Died => notes.push(
            "The process of the run ended without a word: it was killed, or the machine went down."
                .into(),
        ),
        _ => {}
    }
    notes.extend(report.stopped.iter().map(|reason| format!("The run {reason}.")));
    let notes = notes.iter().map(|note| format!("<p class=\"failed\">{}</p>", escape(note)));
    notes.collect()
}

fn loss(value: Option<f64>) -> String {
    value.filter(|loss| loss.is_finite()).map_or("-".into(), |loss| format!("{loss:.4}"))
}

/// Validation losses: first, best, last.
fn losses(report: &Report) -> Table {
    let mut table = Table::new(&["validation loss, nats", "before", "best", "last"]);
    let rows = &report.metrics.validations;
    let (first, last) = (rows.first(), rows.last());
    let least = |value: &dyn Fn(usize) -> Option<f64>| {
        let values = (0..rows.len()).filter_map(value).filter(|loss| loss.is_finite());
        values.min_by(f64::total_cmp)
    };
    let exits = rows.iter().map(|row| row.val_exits.len()).max().unwrap_or(0);
    for exit in 0..exits {
        let name = if exits == 1 { "model".to_owned() } else { format!("exit {}", exit + 1) };
        let of = |index: usize| rows[index].val_exits.get(exit).copied();
        let (first, last) = (
            first.and_then(|row| row.val_exits.get(exit).copied()),
            last.and_then(|row| row.val_exits.get(exit).copied()),
        );
        table.rows.push(vec![name, loss(first), loss(least(&of)), loss(last)]);
    }
    if exits > 1 {
        let of = |index: usize| Some(rows[index].val_vote);
        table.rows.push(vec![
            format!("vote {}", report.options.vote.name()),
            loss(first.map(|row| row.val_vote)),
            loss(least(&of)),
            loss(last.map(|row| row.val_vote)),
        ]);
    }
    if table.rows.is_empty() {
        table.rows.push(vec!["no validation yet".into(), "-".into(), "-".into(), "-".into()]);
    }
    table
}

/// What was predicted beside what was measured.
fn predictions(report: &Report) -> Table {
    let header = &report.header;
    let steps = &report.metrics.steps;
    let mut table = Table::new(&["", "predicted", "measured"]);
    let shown = |value: Option<f64>, digits: usize| {
        let value = value.filter(|value| value.is_finite());
        value.map_or("-".into(), |value| format!("{value:.digits$}"))
    };
    table.rows.push(vec![
        "peak device memory".into(),
        mebibytes(header.planned_bytes),
        steps.last().map_or("-".into(), |row| mebibytes(row.device_bytes)),
    ]);
    let mut times: Vec<f64> = steps.iter().map(|row| row.step_ms).collect();
    times.sort_by(f64::total_cmp);
    let median = times.get(times.len() / 2).copied();
    table.rows.push(vec![
        "median step, ms".into(),
        shown(header.predicted_step_ms, 1),
        shown(median, 1),
    ]);
    let tokens = |ms: f64| header.tokens_per_step() as f64 / ms * 1e3;
    let measured = steps.last().map(|row| row.tokens as f64 / row.seconds);
    table.rows.push(vec![
        "tokens/s".into(),
        shown(header.predicted_step_ms.map(tokens), 0),
        shown(measured, 0),
    ]);
    if let Some(bytes) = report.result["peak_host_bytes"].as_u64() {
        table.rows.push(vec!["peak host memory".into(), "-".into(), mebibytes(bytes)]);
    }
    table
}

/// What to do with the run, once there is something.
fn next(report: &Report) -> String {
    if report.result == Value::Null && report.best.is_none() {
        return String::new();
    }
    let command = next_command(&report.best_dir(), &report.options.device);
    let best = match report.best {
        Some((step, best)) => format!(
            "<p class=\"soft\">The best checkpoint, of step {step} with loss {best:.4}, is in \
             <code>{}</code>.</p>",
            escape(&report.dir.join(crate::tune::validate::BEST).display().to_string())
        ),
        None => String::new(),
    };
    format!("{best}<p class=\"soft\">Next:</p><pre>{}</pre>", escape(&command))
}

fn facts(report: &Report) -> String {
    let rows = report.header.facts().into_iter().map(|(name, text)| {
        format!("<tr><td>{}</td><td>{}</td></tr>", escape(name), escape(&text))
    });
    format!("<table class=\"facts\"><tbody>{}</tbody></table>", rows.collect::<String>())
}
