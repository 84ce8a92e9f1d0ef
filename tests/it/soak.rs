//! Memory over many steps: nothing grows.
//!
//! `EDGE_SOAK_STEPS` (80) is how many; `EDGE_SOAK_DEVICE` (cpu) where.

use edge_runtime::{Control, Method, TuneEvent, Tuner};
use tempfile::TempDir;

use crate::commands::demo;

/// Growth in bytes a step by least squares.
fn slope(points: &[(f64, f64)]) -> f64 {
    let count = points.len() as f64;
    let mean = |of: fn(&(f64, f64)) -> f64| points.iter().map(of).sum::<f64>() / count;
    let (x, y) = (mean(|point| point.0), mean(|point| point.1));
    let up: f64 = points.iter().map(|point| (point.0 - x) * (point.1 - y)).sum();
    up / points.iter().map(|point| (point.0 - x).powi(2)).sum::<f64>()
}

/// Runs many steps and returns memory of host and device behind each, from the tenth step on.
#[cfg(target_os = "linux")]
fn soak(streamed: bool) -> (Vec<(f64, f64)>, Vec<u64>) {
    let number = |name: &str| std::env::var(name).ok().and_then(|value| value.parse().ok());
    let steps = number("EDGE_SOAK_STEPS").unwrap_or(80);
    let device = std::env::var("EDGE_SOAK_DEVICE").unwrap_or_else(|_| "cpu".to_owned());
    let dir = TempDir::new().expect("a folder");
    let (mut host, mut used) = (Vec::new(), Vec::new());
    let note = |event: &TuneEvent| {
        if let TuneEvent::Step(row) = event
            && row.step >= 10
        {
            host.push((row.step as f64, edge_tests::anonymous_bytes() as f64));
            used.push(row.device_bytes);
        }
        Control::Continue
    };
    let tuner = Tuner::builder()
        .model(demo("model"))
        .data(demo("valid.txt"))
        .val_fraction(0.02)
        .device(device)
        .method(Method::Lora)
        .out(dir.path().join("run"))
        .steps(steps)
        .batch_size(2)
        .seq_len(16)
        .eval_every(25)
        .checkpoint_every(20)
        .options(move |options| {
            if streamed {
                options.plan = "resident=2,slots=1".parse().ok();
            }
        })
        .on_event(note);
    tuner.build().expect("a tuner").run().expect("a run");
    (host, used)
}

#[cfg(target_os = "linux")]
#[test]
fn memory_is_flat_over_many_steps() {
    if edge_tests::alone("soak::memory_is_flat_over_many_steps").is_some() {
        return;
    }
    for streamed in [false, true] {
        let (host, used) = soak(streamed);
        let (first, last) = (used[0], used[used.len() - 1]);
        assert_eq!(first, last, "device memory grew, streamed: {streamed}");
        // A step's loss, time and row are kept for the report: some tens of bytes.
        let growth = slope(&host);
        let noise = 2.0 * (4 << 20) as f64 / host.len() as f64;
        eprintln!(
            "streamed {streamed}: {} steps, host {:.2} MiB, {growth:.0} bytes a step",
            host.len() + 9,
            host[host.len() - 1].1 / f64::from(1 << 20)
        );
        assert!(growth < noise.max(256.0), "host memory grows by {growth} bytes a step");
    }
}
