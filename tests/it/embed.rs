//! The library inside another program: events of a run, a callback that stops it, tuners in
//! threads, and the tuned model in use.

use std::path::Path;

use edge_runtime::interrupt::Interrupted;
use edge_runtime::run_dir::RunState;
use edge_runtime::tune::event::Ended;
use edge_runtime::{Control, Inference, Method, TuneEvent, TuneReport, Tuner, TunerBuilder};
use tempfile::TempDir;

use crate::commands::demo;

/// A run of some steps of two short sequences of the demo's validation text.
fn short<'a>(out: &Path, steps: u64) -> TunerBuilder<'a> {
    let builder = Tuner::builder().model(demo("model")).data(demo("valid.txt")).device("cpu");
    builder.out(out).steps(steps).batch_size(2).seq_len(32).windows(2).lr(1e-2)
}

fn run(builder: TunerBuilder<'_>) -> TuneReport {
    builder.build().expect("a tuner").run().expect("a run")
}

/// An event in a word; notices and work, which come in between, have none.
fn word(event: &TuneEvent) -> Option<String> {
    Some(match event {
        TuneEvent::Planned(header) => format!("planned {}", header.method),
        TuneEvent::Loaded => "loaded".to_owned(),
        TuneEvent::Started(budget) => format!("started {budget}"),
        TuneEvent::Phase { phase, window } => format!("phase {phase} window {window}"),
        TuneEvent::Step(row) => format!("step {}", row.step),
        TuneEvent::Validated { label, row, .. } => format!("{label} {}", row.step),
        TuneEvent::Best { step, .. } => format!("best {step}"),
        TuneEvent::Trained(ended) => format!("trained {ended:?}"),
        TuneEvent::Saved(_) => "saved".to_owned(),
        _ => return None,
    })
}

#[test]
fn events_come_in_order() {
    let dir = TempDir::new().expect("a folder");
    let (mut words, mut work, mut saved) = (Vec::new(), Vec::new(), None);
    let out = dir.path().join("run");
    let report = run(short(&out, 4).eval_every(2).on_event(|event| {
        words.extend(word(event));
        match event {
            TuneEvent::Work { label, done, len } => work.push((*label, *done, *len)),
            TuneEvent::Saved(path) => {
                saved = Some((path.clone(), path.join("result.json").exists()))
            }
            _ => {}
        }
        Control::Continue
    }));
    // Whether a validation is the best depends on the losses.
    let fixed: Vec<&str> =
        words.iter().map(String::as_str).filter(|word| !word.starts_with("best")).collect();
    let order = [
        "planned edge",
        "loaded",
        "validate before 0",
        "started 4 steps",
        "phase 1 window 1",
        "step 1",
        "phase 2 window 2",
        "step 2",
        "validate 2",
        "step 3",
        "step 4",
        "trained Whole",
        "validate after 4",
        "saved",
    ];
    assert_eq!(fixed, order);
    let best = report.best.expect("a best validation").step;
    assert!(words.contains(&format!("best {best}")), "{words:?}");
    assert_eq!(saved, Some((out, true)));
    let mut labels: Vec<&str> = work.iter().map(|(label, ..)| *label).collect();
    labels.dedup();
    // What fitting the vote says is the validation behind the steps.
    let all = ["load", "validate before", "validate", "fit the vote"];
    assert_eq!(labels, all);
    for (label, done, len) in work {
        assert!(done >= 1 && done <= len, "{label}: {done} of {len}");
    }
    assert!(!report.interrupted && report.steps == 4);
}

#[test]
fn a_stop_finishes_the_step_and_writes_the_results() {
    let dir = TempDir::new().expect("a folder");
    let out = dir.path().join("run");
    let mut ended = None;
    let report = run(short(&out, 50).on_event(|event| {
        if let TuneEvent::Trained(how) = event {
            ended = Some(*how);
        }
        match event {
            TuneEvent::Step(row) if row.step == 2 => Control::Stop,
            _ => Control::Continue,
        }
    }));
    assert_eq!((report.steps, report.interrupted, ended), (2, true, Some(Ended::Interrupted)));
    assert!(report.val_loss < report.val_loss_before, "{report:?}");
    assert_eq!(RunState::of(&out).expect("a run"), RunState::Interrupted);
    for file in ["adapter_model.safetensors", "exits.json", "result.json", "report.html"] {
        assert!(out.join(file).is_file(), "{file}");
    }
    // What was learned is there to be used, any number of times and for prompts of any length.
    let mut tuned = Inference::of_run(&out, "cpu").expect("a model");
    let text = tuned.generate("The ", 8).expect("a text");
    assert!(!text.is_empty());
    let longer = tuned.generate("The fox is at the mill. The ", 8).expect("a text");
    assert_eq!(tuned.generate("The ", 8).expect("a text"), text);
    let fresh = Inference::of_run(&out, "cpu").expect("a model").generate("The ", 8);
    assert_eq!(fresh.expect("a text"), text);
    let mut plain = Inference::open(demo("model").as_ref(), Some(&out), "cpu").expect("a model");
    assert!(!plain.generate(&longer, 1).expect("a text").is_empty());
    let loss = tuned.evaluate(&[demo("valid.txt").into()], 32).expect("losses");
    assert!(loss.exits.len() == 2 && loss.vote.is_finite(), "{loss:?}");
}

#[test]
fn a_stop_before_there_is_a_directory_leaves_nothing() {
    let dir = TempDir::new().expect("a folder");
    let out = dir.path().join("run");
    let mut words = Vec::new();
    let mut tuner = short(&out, 2)
        .on_event(|event| {
            words.extend(word(event));
            Control::Stop
        })
        .build()
        .expect("a tuner");
    let error = tuner.run().expect_err("it is stopped");
    assert!(error.is::<Interrupted>(), "{error:#}");
    drop(tuner);
    assert_eq!(words, ["planned edge"]);
    assert!(!out.exists());
}

#[test]
fn tuners_in_threads_and_in_turn_make_the_same_adapter() {
    let dir = TempDir::new().expect("a folder");
    let adapter = |name: &str, seed: u64| {
        let out = dir.path().join(name);
        run(short(&out, 3).method(Method::Lora).val_fraction(0.0).seed(seed));
        std::fs::read(out.join("adapter_model.safetensors")).expect("an adapter")
    };
    let apart = [adapter("first", 1), adapter("second", 2)];
    let together = std::thread::scope(|scope| {
        let threads = [("third", 1), ("fourth", 2)]
            .map(|(name, seed)| scope.spawn(move || adapter(name, seed)));
        threads.map(|thread| thread.join().expect("a run"))
    });
    assert!(apart == together, "a run depends on what runs beside it");
    assert!(apart[0] != apart[1], "the seed changes nothing");
}

#[test]
fn a_wrong_option_is_a_sentence() {
    let dir = TempDir::new().expect("a folder");
    let out = dir.path().join("run");
    let refused = |builder: TunerBuilder<'_>| {
        let error = builder.build().err().expect("it is refused");
        let text = format!("{error:#}");
        assert!(!text.contains('\n') && text.contains(": "), "{text}");
        text
    };
    let cases = [
        (short(&out, 3).epochs(1.0), "--steps, --epochs"),
        (short(&out, 3).rank(0), "--rank is 0"),
        (short(&out, 3).options(|options| options.micro_batch = 3), "--micro-batch 3"),
        (short(&out, 3).model("no/such/model"), "no/such/model"),
        (short(dir.path().parent().expect("a parent"), 3), "--out"),
        (Tuner::builder().data(demo("valid.txt")), "--model"),
        (Tuner::builder().model(demo("model")), "--data"),
    ];
    for (builder, part) in cases {
        let text = refused(builder);
        assert!(text.contains(part), "{text}");
    }
    // What only the data can show, the run says, and leaves nothing.
    let mut tuner = short(&out, 3).seq_len(1 << 20).build().expect("a tuner");
    let text = format!("{:#}", tuner.run().expect_err("it is refused"));
    assert!(text.contains("--seq-len") && !out.exists(), "{text}");
}
