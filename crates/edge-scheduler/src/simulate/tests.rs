//! Properties of simulated steps, on random models, schedules and devices.

use rand::rngs::ChaCha8Rng;
use rand::{RngExt, SeedableRng};

use super::*;
use crate::shape::Window;
use crate::step::{Path, StepShape, tasks};

const BLOCKS: u32 = 7;

/// Random cases of a property; Miri takes a second for each.
const SEEDS: u64 = if cfg!(miri) { 2 } else { 500 };

struct Case {
    step: StepShape,
    times: TaskTimes,
    streaming: Streaming,
    block_bytes: Vec<u64>,
    rates: TransferRates,
}

fn case(seed: u64) -> Case {
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    let end = rng.random_range(1..=BLOCKS);
    let window = Window { first: rng.random_range(0..end), end };
    let path = Path::ALL[rng.random_range(0..3)];
    let mut some = |most: f64| (0..BLOCKS).map(|_| rng.random_range(0.0..most)).collect();
    let times = TaskTimes {
        embed_s: 0.01,
        restore_s: 0.02,
        trunk_s: some(1.0),
        forward_s: some(1.0),
        loss_s: 0.3,
        backward_s: some(2.0),
        update_s: 0.1,
        between_s: 0.05,
    };
    let staged = rng.random_bool(0.3);
    Case {
        step: StepShape {
            window,
            micro_batches: rng.random_range(1..5),
            path,
            recompute: path == Path::Columns,
            cached: rng.random_bool(0.3),
        },
        times,
        streaming: Streaming {
            resident: (0..BLOCKS).map(|_| rng.random_bool(0.4)).collect(),
            slots: rng.random_range(1..5),
            staged,
            ahead: true,
        },
        block_bytes: (0..BLOCKS).map(|_| rng.random_range(1..1000)).collect(),
        rates: TransferRates {
            read_bytes_per_s: rng.random_range(100.0..10_000.0),
            copy_bytes_per_s: rng.random_range(100.0..10_000.0),
            transfer_bytes_per_s: staged.then(|| rng.random_range(100.0..10_000.0)),
            load_s: rng.random_range(0.0..0.1),
            interference: 0.0,
        },
    }
}

fn run(case: &Case, ahead: bool) -> Timeline {
    let streaming = Streaming { ahead, ..case.streaming.clone() };
    let tasks = tasks(&case.step);
    simulate(&tasks, &case.times, Some(&streaming), &case.block_bytes, &case.rates)
}

fn of(timeline: &Timeline, track: Track) -> Vec<Span> {
    timeline.spans.iter().filter(|span| span.track == track).cloned().collect()
}

#[test]
fn every_resource_does_one_thing_at_a_time() {
    for seed in 0..SEEDS {
        for overlap in [false, true] {
            let timeline = run(&case(seed), overlap);
            for track in Track::ALL {
                for pair in of(&timeline, track).windows(2) {
                    assert!(pair[1].start_s >= pair[0].end_s - 1e-9, "{seed} {pair:?}");
                }
            }
        }
    }
}

/// Slots are replayed from the spans alone: a task finds its block in the slot, loaded before it
/// begins, and no load writes a slot whose block is in use or still needed by an earlier task.
#[test]
fn nothing_is_read_before_it_is_written_or_overwritten_in_use() {
    for seed in 0..SEEDS {
        let case = case(seed);
        let slot_of = case.streaming.slot_of();
        let timeline = run(&case, true);
        let loads = of(&timeline, Track::HostCopy);
        let block_of = |name: &str| -> Option<u32> {
            let digits = name.split(',').next()?.rsplit(' ').next()?;
            digits.parse().ok()
        };
        for task in of(&timeline, Track::Compute) {
            let kind = ["block", "forward", "backward"];
            let named = kind.iter().any(|kind| task.name.starts_with(kind));
            let Some(block) = block_of(&task.name).filter(|_| named) else { continue };
            let Some(slot) = slot_of[block as usize] else { continue };
            for load in &loads {
                let other = block_of(&load.name).expect("a block's number");
                if slot_of[other as usize] != Some(slot) {
                    continue;
                }
                let during = load.start_s < task.end_s - 1e-9 && load.end_s > task.start_s + 1e-9;
                assert!(!during, "seed {seed}: {load:?} during {task:?}");
            }
            let last =
                loads.iter().filter(|load| load.end_s <= task.start_s + 1e-9).rfind(|load| {
                    let other = block_of(&load.name).expect("a block's number");
                    slot_of[other as usize] == Some(slot)
                });
            // Without a load in this step the slot still holds what the step before left.
            if let Some(load) = last {
                assert_eq!(block_of(&load.name), Some(block), "seed {seed}: {task:?}");
            }
        }
    }
}

#[test]
fn no_step_is_faster_than_its_parts_or_slower_than_their_sum() {
    for seed in 0..SEEDS {
        let case = case(seed);
        let timeline = run(&case, true);
        let apart = timeline.compute_s + case.times.between_s;
        assert!(timeline.step_s >= apart - 1e-9, "seed {seed}");
        assert!((timeline.step_s - apart - timeline.wait_s).abs() < 1e-9, "seed {seed}");
        let naive = run(&case, false);
        assert!(timeline.step_s <= naive.step_s + 1e-9, "seed {seed}: overlap is never slower");
    }
}

#[test]
fn everything_resident_waits_for_nothing() {
    let mut case = case(3);
    case.streaming.resident = vec![true; BLOCKS as usize];
    let timeline = run(&case, true);
    assert_eq!((timeline.loads, timeline.wait_s), (0, 0.0));
    let tasks = tasks(&case.step);
    let sum: f64 = tasks.iter().map(|task| case.times.of(*task)).sum();
    assert!((timeline.compute_s - sum).abs() < 1e-12);
}

#[test]
fn faster_transfers_are_never_slower() {
    for seed in 0..SEEDS {
        let mut case = case(seed);
        let before = run(&case, true).step_s;
        case.rates.copy_bytes_per_s *= 2.0;
        case.rates.read_bytes_per_s *= 2.0;
        assert!(run(&case, true).step_s <= before + 1e-9, "seed {seed}");
    }
}

#[test]
fn prices_are_those_of_the_simulation() {
    for seed in 0..SEEDS {
        let case = case(seed);
        let tasks = tasks(&case.step);
        let streaming = Some(&case.streaming);
        let priced = price(&tasks, &case.times, streaming, &case.block_bytes, &case.rates);
        let timeline = Timeline { spans: Vec::new(), ..run(&case, true) };
        assert_eq!(priced, timeline);
    }
}
