//! The page: one HTML file that needs no other.

use edge_kernels::Category;

use super::summary::{BudgetKind, CompareReport, Spread, Summary};
use crate::chart::{self, Bar, COLOURS, Curve, Line, Part, Stroke, Table, escape, mean_line};
use crate::session::mebibytes;

const TEMPLATE: &str = include_str!("page.html");

/// Speed, memory and losses of every method.
pub fn results(report: &CompareReport) -> Table {
    let mut table = Table::new(&[
        "method",
        "budget",
        "seeds",
        "tokens/s",
        "ms/step",
        "device peak",
        "host peak",
        "loss, last exit",
        "best exit",
        "voted",
    ]);
    for summary in &report.summaries {
        table.rows.push(vec![
            summary.method.clone(),
            summary.budget.name().into(),
            summary.loss.map_or(0, |loss| loss.count).to_string(),
            Spread::show(summary.tokens_per_second, 0),
            Spread::show(summary.step_ms, 1),
            mebibytes(summary.peak_device_bytes),
            summary.peak_host_bytes.map_or("-".into(), mebibytes),
            Spread::show(summary.val_loss, 4),
            Spread::show(summary.best_exit_val_loss, 4),
            Spread::show(summary.vote_val_loss, 4),
        ]);
    }
    table
}

/// Methods beside references.
pub fn comparisons(report: &CompareReport) -> Table {
    let mut table =
        Table::new(&["method", "beside", "budget", "speed", "device memory", "loss difference"]);
    let ratio = |ratio: Option<f64>| ratio.map_or("-".into(), |ratio| format!("{ratio:.2}x"));
    for comparison in &report.comparisons {
        let difference = comparison.loss_difference;
        table.rows.push(vec![
            comparison.method.clone(),
            comparison.reference.clone(),
            comparison.budget.name().into(),
            ratio(comparison.speed_ratio),
            ratio(comparison.memory_ratio),
            difference.map_or("-".into(), |loss| format!("{loss:+.4}")),
        ]);
    }
    table
}

/// Peak device memory of every method by category.
pub fn memory(report: &CompareReport) -> Table {
    let categories = Category::ALL.map(Category::name);
    let mut table = Table::new(&[&["method", "budget"], &categories[..]].concat());
    for summary in &report.summaries {
        let mut row = vec![summary.method.clone(), summary.budget.name().into()];
        let bytes = &summary.peak_device_bytes_by_category;
        row.extend(categories.map(|name| {
            let found = bytes.iter().find(|(category, _)| category == name);
            found.map_or("-".into(), |(_, bytes)| mebibytes(*bytes))
        }));
        table.rows.push(row);
    }
    table
}

/// Every exit and vote.
pub fn exits(report: &CompareReport) -> Table {
    let most = report.summaries.iter().map(|summary| summary.exits.len()).max().unwrap_or(0);
    let mut rules: Vec<&str> = Vec::new();
    for (rule, _) in report.summaries.iter().flat_map(|summary| &summary.votes) {
        if !rules.contains(&rule.as_str()) {
            rules.push(rule);
        }
    }
    let mut head = vec!["method".to_owned(), "budget".to_owned()];
    head.extend((1..=most).map(|exit| format!("exit {exit}")));
    head.extend(rules.iter().map(|rule| format!("vote {rule}")));
    let mut table = Table { head, rows: Vec::new() };
    for summary in &report.summaries {
        let mut row = vec![summary.method.clone(), summary.budget.name().to_owned()];
        row.extend((0..most).map(|exit| Spread::show(summary.exits.get(exit).copied(), 4)));
        row.extend(rules.iter().map(|rule| {
            let found = summary.votes.iter().find(|(name, _)| name == rule);
            Spread::show(found.map(|(_, loss)| *loss), 4)
        }));
        table.rows.push(row);
    }
    table
}

/// The whole page.
pub fn render(report: &CompareReport, names: &[String]) -> String {
    let title = format!("{} compared", names.join(", "));
    let budgets = [
        report.max_tokens.map(|tokens| format!("{tokens} tokens")),
        report.max_seconds.map(|seconds| format!("{seconds:.1} s")),
    ];
    let budgets: Vec<String> = budgets.into_iter().flatten().collect();
    let seeds: Vec<String> = report.seeds.iter().map(u64::to_string).collect();
    let about = format!(
        "Model {}, data {}, on {}. Budgets: {}. Seeds: {}.",
        report.model,
        report.data,
        report.device,
        budgets.join("; "),
        seeds.join(", ")
    );
    chart::fill(TEMPLATE, |name| match name {
        "title" => escape(&title),
        "about" => escape(&about),
        "notes" => notes(report),
        "results" => results(report).html(),
        "comparisons" => comparisons(report).html(),
        "curves" => curves(report, names),
        "bars" => bars(report, names),
        "exits" => exits(report).html(),
        _ => unreachable!("the template has the unknown place {name}"),
    })
}

/// What a reader must know first: examples that are cut, runs that failed or are missing.
fn notes(report: &CompareReport) -> String {
    let mut html = String::new();
    if report.interrupted {
        html.push_str("<p class=\"failed\">Interrupted: runs are missing.</p>");
    }
    for note in &report.cut {
        html.push_str(&format!("<p>{}.</p>", escape(note)));
    }
    for run in &report.methods {
        let Some(error) = &run.error else { continue };
        let budget = run.budget.map_or("", BudgetKind::name);
        html.push_str(&format!(
            "<p class=\"failed\">{}, seed {}, equal {budget}: {}</p>",
            escape(&run.method),
            run.seed,
            escape(error)
        ));
    }
    html
}

fn figure(drawing: Option<String>, title: &str, caption: &str) -> String {
    chart::figure(drawing, title, caption, "No run came to its end.")
}

fn colour(names: &[String], name: &str) -> usize {
    names.iter().position(|other| other == name).unwrap_or(0) % COLOURS
}

/// The budget to draw: this one, or the only one.
fn drawn(report: &CompareReport, wanted: BudgetKind) -> BudgetKind {
    let has = |budget| report.methods.iter().any(|run| run.budget == Some(budget));
    match wanted {
        BudgetKind::Tokens if !has(BudgetKind::Tokens) => BudgetKind::Seconds,
        BudgetKind::Seconds if !has(BudgetKind::Seconds) => BudgetKind::Tokens,
        wanted => wanted,
    }
}

/// The curve of each seed that came to its end.
fn lines_of(
    report: &CompareReport,
    name: &str,
    budget: BudgetKind,
    axis: BudgetKind,
) -> Vec<(u64, Line)> {
    let runs = report.methods.iter();
    let same =
        runs.filter(|run| run.method == name && run.budget == Some(budget) && run.is_whole());
    let lines = same.map(|run| {
        let points = run.curve.iter().map(|point| match axis {
            BudgetKind::Tokens => (point.tokens as f64, point.val_loss),
            BudgetKind::Seconds => (point.seconds, point.val_loss),
        });
        (run.seed, points.collect())
    });
    lines.collect()
}

fn curves(report: &CompareReport, names: &[String]) -> String {
    let charts = [BudgetKind::Tokens, BudgetKind::Seconds].map(|axis| {
        let budget = drawn(report, axis);
        let mut thin: Vec<Curve> = Vec::new();
        let mut means: Vec<Curve> = Vec::new();
        for name in names {
            let colour = colour(names, name);
            let lines = lines_of(report, name, budget, axis);
            if lines.is_empty() {
                continue;
            }
            let points = mean_line(&lines.iter().map(|(_, line)| line).collect::<Vec<_>>());
            means.push(Curve { name: name.clone(), colour, stroke: Stroke::Dots, points });
            let several = lines.len() > 1;
            thin.extend(lines.into_iter().filter(|_| several).map(|(seed, points)| {
                let name = format!("{name}, seed {seed}");
                Curve { name, colour, stroke: Stroke::Thin, points }
            }));
        }
        thin.append(&mut means);
        let (title, label) = match axis {
            BudgetKind::Tokens => ("Against tokens", "training tokens"),
            BudgetKind::Seconds => ("Against time", "time of training, s"),
        };
        let caption = format!(
            "Best exit, without vote. Runs of equal {}; thin lines are seeds, thick ones their \
             means.",
            budget.name()
        );
        figure(chart::lines(&thin, &[], label, "validation loss, nats"), title, &caption)
    });
    charts.concat()
}

fn bars(report: &CompareReport, names: &[String]) -> String {
    let budget = drawn(report, BudgetKind::Tokens);
    let shown = || report.summaries.iter().filter(move |summary| summary.budget == budget);
    let mib = |bytes: u64| bytes as f64 / f64::from(1 << 20);
    let memory: Vec<Bar> = shown()
        .map(|summary: &Summary| {
            let parts = Category::ALL.iter().enumerate().filter_map(|(colour, category)| {
                let name = category.name();
                let mut bytes = summary.peak_device_bytes_by_category.iter();
                let (_, bytes) = bytes.find(|(category, _)| category == name)?;
                Some(Part { name: name.into(), value: mib(*bytes), colour })
            });
            let label = mebibytes(summary.peak_device_bytes);
            Bar { name: summary.method.clone(), parts: parts.collect(), spread: None, label }
        })
        .collect();
    let speed: Vec<Bar> = shown()
        .filter_map(|summary| {
            let spread = summary.tokens_per_second?;
            let colour = colour(names, &summary.method);
            let name = "tokens/s".into();
            Some(Bar {
                name: summary.method.clone(),
                parts: vec![Part { name, value: spread.mean, colour }],
                spread: spread.deviation,
                label: Spread::show(Some(spread), 0),
            })
        })
        .collect();
    let categories = Category::ALL.iter().enumerate();
    let legend = chart::legend(categories.map(|(colour, category)| (category.name(), colour)));
    let stacked = chart::bars(&memory, None, "MiB").map(|svg| legend + &svg);
    let caption = "Each category's own peak; the number is the most in use at once.";
    let runs = format!("Runs of equal {}; validation does not count.", budget.name());
    [
        figure(stacked, "Peak device memory", caption),
        figure(chart::bars(&speed, None, "tokens/s"), "Training speed", &runs),
    ]
    .concat()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::compare::summary::tests::report;

    #[test]
    fn the_page_is_whole_and_needs_no_other_file() {
        let names = ["lora".to_owned(), "edge".to_owned(), "full".to_owned()];
        let page = render(&report(), &names);
        assert!(!page.contains("{{") && !page.contains("http") && !page.contains("src="));
        assert!(page.contains("no &lt;memory&gt;") && page.ends_with("</html>\n"));
        assert_eq!(page.matches("<svg").count(), 4);
        for tag in ["table", "tr", "td", "figure", "svg", "div", "p", "ul", "li"] {
            let opened = page.matches(&format!("<{tag}>")).count()
                + page.matches(&format!("<{tag} ")).count();
            assert_eq!(opened, page.matches(&format!("</{tag}>")).count(), "{tag}");
        }
        // Two methods came to their end, with two seeds each, in two charts.
        assert_eq!(page.matches("class=\"thick ").count(), 4);
        assert_eq!(page.matches("class=\"thin ").count(), 8);
        let empty = render(&CompareReport::default(), &names);
        assert_eq!(empty.matches("No run came to its end").count(), 4);
    }

    #[test]
    fn tables_say_what_was_measured() {
        let text = results(&report()).text();
        let lines: Vec<&str> = text.lines().collect();
        assert_eq!(lines.len(), 3, "{text}");
        assert!(lines[2].contains("200 ± 14") && lines[2].contains("3.1000 ± 0.1414"), "{text}");
        let text = comparisons(&report()).text();
        assert!(text.contains("2.00x") && text.contains("0.50x") && text.contains("+0.1000"));
        assert!(memory(&report()).text().contains("2.0 MiB"));
        assert!(exits(&report()).text().contains("exit 2"));
    }
}
