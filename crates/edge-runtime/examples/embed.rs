//! Tunes the bundled demo model from inside a program, with a progress callback, and lets the tuned
//! model write: `cargo run --release -p edge-runtime --example embed`.
#![allow(clippy::print_stdout, reason = "an example shows its results on stdout")]

use std::path::Path;

use anyhow::Result;
use edge_runtime::{Control, Inference, TuneEvent, Tuner, session};

/// Training steps; the callback ends the run earlier where the loss is low enough.
const STEPS: u64 = 40;

/// Loss, nats, that is low enough.
const ENOUGH: f64 = 1.0;

fn main() -> Result<()> {
    let demo = session::demo_dir()?;
    let report = Tuner::builder()
        .model(demo.join("model"))
        .data(demo.join("train.txt"))
        .val_fraction(0.05)
        .device("cpu")
        .steps(STEPS)
        .seq_len(64)
        .windows(2)
        .lr(1e-2)
        .on_event(show)
        .build()?
        .run()?;
    let (before, after) = (report.val_loss_before, report.val_loss);
    println!("loss {:.3} -> {:.3}", before.unwrap_or(f64::NAN), after.unwrap_or(f64::NAN));

    let mut tuned = Inference::of_run(Path::new(&report.run_dir), "cpu")?;
    println!("The {}", tuned.generate("The ", 40)?);
    println!("written to {}", report.run_dir);
    Ok(())
}

/// Shows every tenth step, and decides whether the run goes on.
fn show(event: &TuneEvent) -> Control {
    match event {
        TuneEvent::Planned(header) => println!("{} on {}", header.trained, header.device),
        TuneEvent::Step(row) => {
            if row.step.is_multiple_of(10) {
                println!("{:3.0} %: step {}, loss {:.3}", 100.0 * row.done, row.step, row.loss);
            }
            if row.loss < ENOUGH {
                return Control::Stop;
            }
        }
        _ => {}
    }
    Control::Continue
}
