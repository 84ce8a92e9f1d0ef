//! Runs that go on: behind every step, with every method, order and meaning of windows, they end as
//! if nothing had happened, bit for bit; killed at any moment, too; and what is said of those that
//! cannot.
//!
//! `EDGE_RESUME_STEPS` (6) is the length of the runs that are resumed behind each of their steps,
//! `EDGE_KILL_RUNS` (4) how many runs are killed.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use edge_runtime::batch::Batch;
use edge_runtime::cli::args::{OptimizerName, Semantics, TrunkCache, WindowOrder};
use edge_runtime::cli::options::TuneOptions;
use edge_runtime::run_dir::RunState;
use edge_runtime::tune::trainer::{AdamW, Trainer};
use edge_runtime::{Control, Method, TuneEvent, Tuner, TunerBuilder};
use edge_scheduler::Path as Order;
use edge_tests::{cpu, gpu};
use rand::{RngExt, SeedableRng};
use serde_json::Value;
use tempfile::TempDir;

use crate::commands::{demo, program, refused};
use crate::follow::done;
use crate::model::tiny;
use crate::stream::job;

/// A number from the environment, for longer runs than the suite's.
fn count(name: &str, default: u64) -> u64 {
    std::env::var(name).ok().and_then(|value| value.parse().ok()).unwrap_or(default)
}

/// A run of a few short sequences, with a checkpoint behind each step.
fn short<'a>(out: &Path, device: &str, steps: u64) -> TunerBuilder<'a> {
    Tuner::builder()
        .model(demo("model"))
        .data(demo("valid.txt"))
        .val_fraction(0.02)
        .device(device)
        .out(out)
        .steps(steps)
        .batch_size(2)
        .seq_len(16)
        .windows(2)
        .lr(1e-2)
        .eval_every(4)
        .checkpoint_every(1)
}

/// What a run left that must not depend on how often it was killed.
pub(crate) fn results(run: &Path) -> BTreeMap<String, Vec<u8>> {
    let mut found = BTreeMap::new();
    for folder in ["", "best"] {
        for name in ["adapter_model.safetensors", "exits.safetensors", "model.safetensors"] {
            if let Ok(bytes) = fs::read(run.join(folder).join(name)) {
                found.insert(format!("{folder}/{name}"), bytes);
            }
        }
    }
    assert!(!found.is_empty(), "{} has no results", run.display());
    // Times differ; losses, learning rates and norms do not.
    let metrics = fs::read_to_string(run.join("metrics.csv")).expect("metrics");
    let timeless = |line: &str| -> String {
        let cells = line.split(',').enumerate();
        let kept = cells.filter(|(column, _)| !(7..=12).contains(column));
        kept.map(|(_, cell)| cell).collect::<Vec<_>>().join(",")
    };
    let lines: Vec<String> = metrics.lines().map(timeless).collect();
    found.insert("metrics.csv".into(), lines.join("\n").into_bytes());
    found
}

/// As a kill behind a step leaves it: options, that checkpoint and the metrics, no end.
fn killed(run: &Path, step: u64, to: &Path) {
    let name = format!("step-{step}");
    let checkpoint = to.join("checkpoints").join(&name);
    fs::create_dir_all(&checkpoint).expect("a folder");
    for file in fs::read_dir(run.join("checkpoints").join(&name)).expect("a checkpoint") {
        let file = file.expect("an entry");
        fs::copy(file.path(), checkpoint.join(file.file_name())).expect("a copy");
    }
    for file in fs::read_dir(run).expect("a run").flatten() {
        let name = file.file_name();
        let text = name.to_string_lossy();
        if text.starts_with("metrics") || text.contains("tfevents") || text.ends_with(".yaml") {
            fs::copy(file.path(), to.join(&name)).expect("a copy");
        }
    }
    let result = fs::read_to_string(run.join("result.json")).expect("a result");
    let result: Value = serde_json::from_str(&result).expect("JSON");
    if result["best"]["step"].as_u64().is_some_and(|best| best <= step) {
        fs::create_dir_all(to.join("best")).expect("a folder");
        for file in fs::read_dir(run.join("best")).expect("a folder").flatten() {
            fs::copy(file.path(), to.join("best").join(file.file_name())).expect("a copy");
        }
    }
    fs::write(to.join("events.jsonl"), "{\"unix_ms\":0,\"event\":\"start\"}\n").expect("written");
}

type Change = fn(&mut TuneOptions);

fn edge(semantics: Semantics, order: WindowOrder, options: &mut TuneOptions) {
    (options.semantics, options.window_order) = (semantics, order);
}

/// Resumes a run behind each step but the last.
fn resumes_alike(device: &str, steps: u64, name: &str, method: Method, change: Change) {
    let dir = TempDir::new().expect("a folder");
    let whole = dir.path().join("whole");
    let all = move |options: &mut TuneOptions| {
        options.keep_checkpoints = 1000;
        change(options);
    };
    let tuner = short(&whole, device, steps).method(method).options(all).build();
    tuner.expect("a tuner").run().expect("a run");
    let want = results(&whole);
    for step in 1..steps {
        let again = dir.path().join(format!("behind-{step}"));
        killed(&whole, step, &again);
        let report = Tuner::resume(&again).expect("a tuner").run().expect("a run");
        assert_eq!(report.steps, steps, "{name}");
        let found = results(&again);
        for (file, bytes) in &want {
            assert!(
                found.get(file) == Some(bytes),
                "{name} on {device}, resumed behind step {step} of {steps}: {file} differs"
            );
        }
        assert_eq!(RunState::of(&again).expect("a state"), RunState::Finished);
    }
}

/// Every method, order and meaning of windows.
const RUNS: [(&str, Method, Change); 13] = [
    ("lora", Method::Lora, |_| ()),
    ("lora, 8 bit moments", Method::Lora, |o| o.optimizer = OptimizerName::AdamW8bit),
    ("lora, micro-batches", Method::Lora, |o| (o.micro_batch, o.recompute) = (1, true)),
    ("qlora", Method::Qlora, |o| o.schedule = edge_runtime::schedule::Schedule::Linear),
    ("partial", Method::Partial, |_| ()),
    ("partial, no cache", Method::Partial, |o| o.trunk_cache = TrunkCache::Off),
    ("full", Method::Full, |o| o.lr = 1e-4),
    ("round robin", Method::Edge, |o| {
        edge(Semantics::Stacked, WindowOrder::RoundRobin, o);
        o.exit_rank = 3;
    }),
    ("random", Method::Edge, |o| edge(Semantics::Stacked, WindowOrder::Random, o)),
    ("sequential", Method::Edge, |o| edge(Semantics::Stacked, WindowOrder::Sequential, o)),
    ("progressive", Method::Edge, |o| {
        edge(Semantics::Progressive, WindowOrder::Sequential, o);
        o.window_shares = "1,1,1".parse().ok();
        o.windows = 3;
    }),
    ("isolated", Method::Edge, |o| {
        edge(Semantics::Isolated, WindowOrder::Sequential, o);
        o.window_shares = "1,1,1".parse().ok();
        o.windows = 3;
    }),
    ("isolated, no cache", Method::Edge, |o| {
        edge(Semantics::Isolated, WindowOrder::Sequential, o);
        o.window_shares = "1,1".parse().ok();
        o.trunk_cache = TrunkCache::Off;
        o.exit_rank = 3;
    }),
];

#[test]
fn a_resumed_run_ends_like_one_that_was_not_interrupted() {
    let steps = count("EDGE_RESUME_STEPS", 6);
    for (name, method, change) in RUNS {
        resumes_alike("cpu", steps, name, method, change);
    }
}

#[test]
fn a_resumed_run_ends_alike_on_a_gpu_and_with_streamed_blocks() {
    let Some(device) = gpu() else { return };
    let device = device.info().name.clone();
    let steps = count("EDGE_RESUME_STEPS", 6).div_ceil(2);
    let streamed: Change = |options| {
        edge(Semantics::Progressive, WindowOrder::Sequential, options);
        options.window_shares = "1,1".parse().ok();
        // Formats as in the file, so that blocks can be streamed.
        options.bits = None;
        options.plan = "resident=2,slots=1".parse().ok();
    };
    resumes_alike(&device, steps, "streamed", Method::Edge, streamed);
    resumes_alike("cpu", steps, "streamed", Method::Edge, streamed);
}

#[test]
fn one_more_step_needs_the_moments_too() {
    let (tiny, device) = (tiny(), cpu());
    let job = job(&tiny, Order::Rows, false);
    let ids: Vec<u32> = (0..24).map(|i| (i * i * 7 + 5) % 139).collect();
    let batches = [Batch::new(ids, 24)];
    let mut whole = Trainer::new(tiny.load(&device, &job), AdamW::default());
    for _ in 0..3 {
        whole.step(1, &batches, 1e-2).expect("a step");
    }
    let weights = whole.model.adapter().expect("an adapter");
    let mut restarted = Trainer::new(tiny.load(&device, &job), AdamW::default());
    restarted.model.set_adapter(&weights).expect("set");
    let exits = whole.model.exit_gammas().expect("norms");
    for (exit, gamma) in restarted.model.exits.iter().zip(&exits) {
        device.write(&exit.norm.weight, bytemuck::cast_slice(gamma)).expect("written");
    }
    let same = [&mut whole, &mut restarted].map(|trainer| {
        let outcome = trainer.step(1, &batches, 1e-2).expect("a step");
        (outcome.loss, trainer.model.adapter().expect("an adapter"))
    });
    assert_eq!(same[0].0, same[1].0, "the weights are the same");
    assert!(same[0].1 != same[1].1, "a restart with weights alone is no resumption");
}

#[test]
fn a_stopped_run_goes_on_where_it_was_stopped() {
    let dir = TempDir::new().expect("a folder");
    let (whole, stopped) = (dir.path().join("whole"), dir.path().join("stopped"));
    let run = |out: &Path| short(out, "cpu", 6).checkpoint_every(0);
    run(&whole).build().expect("a tuner").run().expect("a run");
    assert!(!whole.join("checkpoints").exists());
    for (at, steps) in [(3, 3), (5, 5)] {
        let stop = move |event: &TuneEvent| match event {
            TuneEvent::Step(row) if row.step == at => Control::Stop,
            _ => Control::Continue,
        };
        let report = match stopped.exists() {
            false => run(&stopped).on_event(stop).build().expect("a tuner").run(),
            true => Tuner::resume(&stopped).expect("a tuner").on_event(stop).run(),
        };
        let report = report.expect("a run");
        assert!(report.interrupted && report.steps == steps, "{report:?}");
        assert_eq!(RunState::of(&stopped).expect("a state"), RunState::Interrupted);
    }
    Tuner::resume(&stopped).expect("a tuner").run().expect("a run");
    assert!(results(&stopped) == results(&whole));
    let finished = Tuner::resume(&stopped).map(|_| ()).expect_err("finished");
    assert!(finished.to_string().contains("is finished"), "{finished}");
}

/// The flags of the runs that are killed.
fn flags(out: &Path) -> Vec<String> {
    let fixed = "tune --device cpu --steps 12 --batch-size 2 --seq-len 16 --windows 2 --lr 1e-2 \
                 --semantics progressive --window-shares 1,1 --val-fraction 0.02 --eval-every 4 \
                 --checkpoint-every 2 --quiet --resume auto";
    let mut flags: Vec<String> = fixed.split_whitespace().map(str::to_owned).collect();
    let places = [("--model", demo("model")), ("--data", demo("valid.txt"))];
    flags.extend(places.into_iter().flat_map(|(flag, value)| [flag.to_owned(), value]));
    flags.extend(["--out".to_owned(), out.display().to_string()]);
    flags
}

// Elsewhere a program that is killed has a status like any other.
#[cfg(unix)]
#[test]
fn killed_runs_end_alike() {
    let dir = TempDir::new().expect("a folder");
    let whole = dir.path().join("whole");
    let start = |out: &Path| {
        let mut command = Command::new(program());
        command.args(flags(out)).stderr(Stdio::piped());
        command.spawn().expect("the program starts")
    };
    // The shorter of two: the first may wait for the disk.
    let mut longest = Duration::MAX;
    for out in [&dir.path().join("first"), &whole] {
        let started = Instant::now();
        let output = start(out).wait_with_output().expect("it ends");
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        longest = longest.min(started.elapsed());
    }
    let want = results(&whole);
    let mut rng = edge_kernels::util::SeededRng::seed_from_u64(count("EDGE_KILL_SEED", 7));
    let mut kills = 0;
    for number in 0..count("EDGE_KILL_RUNS", 4) {
        let out = dir.path().join(format!("killed-{number}"));
        let mut attempts = 0;
        loop {
            let mut child = start(&out);
            // At most three times, so that it ends.
            let at = longest.mul_f64(rng.random_range(0.0..1.0));
            let until = Instant::now() + at;
            while attempts < 3
                && Instant::now() < until
                && child.try_wait().expect("asked").is_none()
            {
                std::thread::sleep(Duration::from_millis(1));
            }
            if attempts < 3 {
                // It may be over already.
                let _ = child.kill();
            }
            let output = child.wait_with_output().expect("it ends");
            if output.status.success() {
                break;
            }
            let text = String::from_utf8_lossy(&output.stderr).into_owned();
            assert!(output.status.code().is_none(), "run {number} is unusable: {text}");
            (attempts, kills) = (attempts + 1, kills + 1);
        }
        assert!(results(&out) == want, "run {number}, killed {attempts} times, ends otherwise");
        fs::remove_dir_all(&out).expect("removed");
    }
    assert!(kills > 0, "nothing was killed");
    eprintln!("{kills} kills");
}

#[test]
fn a_damaged_checkpoint_is_not_used_and_the_one_before_it_is() {
    let dir = TempDir::new().expect("a folder");
    let (whole, again) = (dir.path().join("whole"), dir.path().join("again"));
    let run = short(&whole, "cpu", 5).options(|options| options.keep_checkpoints = 9).build();
    run.expect("a tuner").run().expect("a run");
    killed(&whole, 3, &again);
    killed(&whole, 2, &again);
    let damaged = again.join("checkpoints/step-3/state.safetensors");
    let mut bytes = fs::read(&damaged).expect("a file");
    let middle = bytes.len() / 2;
    bytes[middle] ^= 0x10;
    fs::write(&damaged, &bytes).expect("written");
    // Where no other one is usable, nothing is begun anew and nothing removed.
    let other = again.join("checkpoints/step-2/state.safetensors");
    let usable = fs::read(&other).expect("a file");
    fs::write(&other, &usable[..usable.len() - 1]).expect("written");
    let shown = again.display().to_string();
    let text = refused(&["tune", "--resume", &shown], 1);
    assert!(text.contains("no checkpoint of") && text.contains("restore one"), "{text}");
    assert_eq!(fs::read(&damaged).expect("still there"), bytes);
    fs::write(&other, &usable).expect("restored");
    let (_, errors) = done(&["tune", "--resume", &shown]);
    assert!(errors.contains("step-3 is damaged and not used"), "{errors}");
    assert!(errors.contains("going on behind step 2"), "{errors}");
    assert!(results(&again) == results(&whole));
}

#[test]
fn runs_that_cannot_go_on_say_why() {
    let dir = TempDir::new().expect("a folder");
    let (whole, again) = (dir.path().join("whole"), dir.path().join("again"));
    short(&whole, "cpu", 3).build().expect("a tuner").run().expect("a run");
    killed(&whole, 2, &again);
    let (run, shown) = (again.display().to_string(), whole.display().to_string());
    let (_, finished) = done(&["tune", "--resume", &shown]);
    assert!(finished.contains("is finished: there is nothing to resume"), "{finished}");
    let none = dir.path().display().to_string();
    let other = demo("train.txt");
    for (args, code, words) in [
        (vec!["--resume", &none], 1, "no config.resolved.yaml"),
        (vec!["--resume", &run, "--lr", "0.3"], 2, "--lr is 0.3 and"),
        (vec!["--resume", &run, "--rank", "4"], 2, "--rank is 4 and"),
        (vec!["--resume", &run, "--data", &other], 1, "the data are not those that"),
        (vec!["--resume", &run, "--dry-run"], 2, "--dry-run"),
        (vec!["--resume", &run, "--out", &other], 2, "is not the run that --resume names"),
    ] {
        let text = refused(&[&["tune"][..], &args].concat(), code);
        assert!(text.contains(words), "{args:?}: {text}");
    }
    // Another one has it.
    let stop = |_: &TuneEvent| Control::Continue;
    let mut held = None;
    let hold = |event: &TuneEvent| {
        if let TuneEvent::Step(_) = event {
            held.get_or_insert_with(|| refused(&["tune", "--resume", &run], 1));
        }
        stop(event)
    };
    Tuner::resume(&again).expect("a tuner").on_event(hold).run().expect("a run");
    let text = held.expect("a step");
    assert!(text.contains("is in use by another process"), "{text}");
}

#[test]
fn an_adapter_is_a_starting_point() {
    let dir = TempDir::new().expect("a folder");
    let (first, second) = (dir.path().join("first"), dir.path().join("second"));
    let narrow = |options: &mut TuneOptions| {
        (options.rank, options.alpha) = (4, 12.0);
        options.targets = "q_proj,v_proj".parse().expect("layers");
    };
    let tuner = short(&first, "cpu", 4).method(Method::Lora).options(narrow).build();
    let report = tuner.expect("a tuner").run().expect("a run");
    let mut tuner = short(&second, "cpu", 1).method(Method::Lora).adapter(&first).build();
    let options = tuner.as_ref().expect("a tuner").options();
    let taken = (options.rank, options.alpha, options.targets.to_string());
    assert_eq!(taken, (4, 12.0, "q_proj,v_proj".to_owned()));
    let again = tuner.as_mut().expect("a tuner").run().expect("a run");
    assert_eq!(again.val_loss_before, report.val_loss);
    let (model, adapter) = (demo("model"), first.display().to_string());
    let base = ["tune", "--model", &model, "--data", &demo("valid.txt"), "--adapter", &adapter];
    for (more, words) in [
        (&["--rank", "8"][..], "has rank 4 and alpha 12"),
        (&["--method", "full"], "goes with methods that train adapters"),
        (&["--targets", "q_proj"], "check --targets"),
    ] {
        let out = dir.path().join("third").display().to_string();
        let text = refused(&[&base[..], more, &["--device", "cpu", "--out", &out]].concat(), 1);
        assert!(text.contains(words), "{more:?}: {text}");
        assert!(!dir.path().join("third").exists());
    }
}
