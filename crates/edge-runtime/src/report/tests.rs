//! Pages of runs of every kind: none, one step, many, with losses that are no numbers.

use super::*;
use crate::cli::args::TuneFlags;
use crate::metrics::{StepRow, ValidationRow};
use crate::tune::header::Stored;

/// A run of 3 windows over `blocks` blocks that has done `steps` steps, by what its losses are.
fn run(blocks: usize, steps: u64, loss: impl Fn(u64) -> f64) -> Report {
    let step = |step: u64| StepRow {
        step,
        phase: 1,
        window: step % 3 + 1,
        loss: loss(step),
        lr: 1e-4,
        grad_norm: loss(step) / 3.0,
        tokens: 1024 * step,
        tokens_per_s: 1e4 + (step % 7) as f64 * 1e3,
        step_ms: 100.0,
        seconds: step as f64 / 10.0,
        device_bytes: 300 << 20,
        budget_bytes: Some(400 << 20),
        done: step as f64 / steps.max(1) as f64,
    };
    let validation = |step: u64| ValidationRow {
        step,
        tokens: 1024 * step,
        seconds: step as f64 / 10.0,
        done: step as f64 / steps.max(1) as f64,
        val_loss: loss(step),
        val_vote: loss(step),
        val_exits: vec![loss(step) + 0.2, loss(step) + 0.1, loss(step)],
    };
    let widths = [2, 3, 4, 8, 16];
    let layer = |block: usize| {
        let stored = |index: usize| Stored {
            bits: widths[(block + index) % 5],
            sparsity: if index == 2 { 0.5 } else { 0.0 },
        };
        (0..7).map(stored).collect()
    };
    Report {
        dir: "runs/a<b".into(),
        state: RunState::Running,
        header: Header {
            method: "edge".into(),
            model: "models/a&b".into(),
            device: "some <GPU>".into(),
            budget: format!("{steps} steps"),
            batch_size: 8,
            micro_batch: 8,
            seq_len: 128,
            windows: vec![[1, 2], [3, 4], [5, blocks as u32]],
            layers: (0..blocks).map(layer).collect(),
            planned_bytes: 300 << 20,
            planned_bytes_by_category: vec![("weights".into(), 200 << 20)],
            budget_bytes: Some(400 << 20),
            predicted_step_ms: Some(90.0),
            ..Header::default()
        },
        options: TuneFlags::default().resolve().expect("options"),
        metrics: Metrics {
            steps: (1..=steps).map(step).collect(),
            validations: (0..=steps).step_by(100).map(validation).collect(),
        },
        best: None,
        stopped: None,
        result: Value::Null,
    }
}

/// The page is whole, and no number in it is none.
fn check(page: &str) {
    assert!(!page.contains("{{") && page.ends_with("</html>\n"));
    assert!(!page.contains("http:") && !page.contains("https:") && !page.contains("src="));
    for wrong in ["NaN", "inf\"", "inf ", "a<b", "a&b", "<GPU>"] {
        assert!(!page.contains(wrong), "{wrong} in {page}");
    }
    for tag in ["table", "tr", "td", "th", "figure", "svg", "title", "text", "p", "ul", "li", "pre"]
    {
        let opened = [">", " "].map(|end| page.matches(&format!("<{tag}{end}")).count());
        assert_eq!(opened[0] + opened[1], page.matches(&format!("</{tag}>")).count(), "{tag}");
    }
}

#[test]
fn a_long_run_has_a_small_page() {
    let falling = |step: u64| 2.0 + 3.0 / (1.0 + step as f64 / 500.0);
    let mut report = run(80, 100_000, falling);
    report.best = Some((50_000, 2.1));
    report.stopped = Some("stopped early at step 100000: for <that>".into());
    let page = page::render(&report);
    check(&page);
    assert!(page.len() < 1 << 20, "{} bytes", page.len());
    assert_eq!(page.matches("<svg").count(), 8);
    assert!(page.contains("http-equiv=\"refresh\""), "a run that goes on is looked at again");
    assert!(page.contains("for &lt;that&gt;") && page.contains("generate --run runs/a&lt;b/best"));
    assert!(page.contains("400.0 MiB") && page.contains("class=\"limit\""));
    assert!(page.contains("block 80, down_proj") && page.contains(">predicted<"));
    report.state = RunState::Finished;
    let page = page::render(&report);
    assert!(!page.contains("http-equiv") && page.contains("Finished: 100000 steps"));
}

#[test]
fn short_runs_and_those_that_went_wrong_have_pages_too() {
    for (steps, svgs) in [(0, 2), (1, 7)] {
        let page = page::render(&run(6, steps, |_| 3.0));
        check(&page);
        // Without a step: memory as planned, and layers. Behind one: all but the validation after.
        assert!(page.matches("<svg").count() >= svgs, "{steps}: {}", page.matches("<svg").count());
    }
    let page = page::render(&run(6, 0, |_| 3.0));
    assert!(page.contains("No step is done yet") && page.contains("Nothing was measured yet"));
    let diverging = |step: u64| if step > 150 { f64::NAN } else { 1.05f64.powi(step as i32) };
    let page = page::render(&run(6, 300, diverging));
    check(&page);
    assert!(page.contains("150 of 300 losses are no numbers, the first at step 151."));
    let page = page::render(&run(6, 300, |_| f64::NAN));
    check(&page);
    assert!(page.contains("No loss is a number."));
    let mut report = run(6, 30, |_| 1.0);
    report.state = RunState::Failed("disk <full>".into());
    let page = page::render(&report);
    assert!(page.contains("The run failed: disk &lt;full&gt;") && !page.contains("refresh"));
    report.state = RunState::Died;
    assert!(page::render(&report).contains("ended without a word"));
    report.state = RunState::Interrupted;
    assert!(page::render(&report).contains("Interrupted: 30 steps"));
    // One window, no validation data.
    report.header.windows = vec![[1, 6]];
    report.metrics.validations.clear();
    for row in &mut report.metrics.steps {
        row.window = 1;
    }
    let page = page::render(&report);
    check(&page);
    assert!(page.contains("no validation yet") && page.matches("<svg").count() == 7);
}
