//! Tests of the search: budgets are kept, more memory is never slower, nothing is left to chance.

use edge_kernels::Format;

use super::*;
use crate::job::Trained;
use crate::logits::LOGITS_BYTES;
use crate::shape::{BlockFormats, Extras, Projection, Window};

fn shape() -> ModelShape {
    ModelShape {
        vocab_size: 512,
        hidden_size: 64,
        intermediate_size: 172,
        num_blocks: 12,
        num_heads: 4,
        num_kv_heads: 2,
        head_dim: 16,
        tied_head: true,
        extras: Extras::NONE,
    }
}

fn job() -> Job {
    let blocks = vec![BlockFormats::uniform(Format::Q4); 12];
    Job {
        trained: Trained::Lora { rank: 8, targets: Projection::ALL.to_vec() },
        windows: Window::split(12, 4),
        exit_norms: true,
        training: true,
        eval_batch: 2,
        vote: true,
        phases: true,
        ..Job::new(blocks, [Format::F16; 2], 8, 32)
    }
}

const FACTS: DeviceFacts = DeviceFacts { max_binding_bytes: 128 << 20, staging_bytes: 1 << 20 };

const TURNS: [Turns; 2] = [
    Turns { window: 0, share: 0.1, cached: false },
    Turns { window: 3, share: 0.9, cached: false },
];

/// Time in proportion to the rows of a micro-batch, with a constant part for each task.
fn times(job: &Job, _: &Turns) -> TaskTimes {
    let each = |scale: f64| vec![scale * (f64::from(job.batch) + 0.2); 12];
    let again = if job.recompute { 1.0 } else { 0.0 };
    TaskTimes {
        embed_s: 0.01,
        restore_s: 0.01,
        trunk_s: each(0.01),
        forward_s: each(0.01),
        loss_s: 0.02 * f64::from(job.batch),
        backward_s: each(0.02 + 0.01 * again),
        update_s: 0.01,
        between_s: 0.001,
    }
}

fn space<'a>(shape: &'a ModelShape, job: &'a Job, budget_bytes: Option<u64>) -> Space<'a> {
    Space {
        shape,
        job,
        facts: FACTS,
        batch: 8,
        micro_batches: vec![1, 2, 4, 8],
        recompute: vec![false, true],
        paths: Path::ALL.to_vec(),
        logits_bytes: vec![LOGITS_BYTES, LOGITS_BYTES / 4],
        slots: (1..=SLOTS_MAX).collect(),
        staged: false,
        streaming: true,
        resident: None,
        ahead: vec![true, false],
        turns: &TURNS,
        rates: TransferRates {
            read_bytes_per_s: 2e6,
            copy_bytes_per_s: 4e6,
            transfer_bytes_per_s: None,
            load_s: 1e-4,
            interference: 0.0,
        },
        budget_bytes,
        times: &times,
    }
}

#[test]
fn without_a_budget_everything_stays_and_nothing_is_computed_again() {
    let (shape, job) = (shape(), job());
    let found = search(&space(&shape, &job, None), Objective::Time).expect("a schedule");
    let best = found.best;
    assert_eq!((best.job.streaming, best.path, best.job.recompute), (None, Path::Rows, false));
    assert_eq!((best.job.batch, best.wait_share), (8, 0.0));
}

#[test]
fn a_bigger_budget_is_never_slower_and_no_plan_exceeds_it() {
    let (shape, job) = (shape(), job());
    let whole = Plan::new(&shape, &job, FACTS).bytes();
    let mut before = f64::INFINITY;
    let mut fitted = 0;
    for percent in (20..=110).step_by(5) {
        let budget = whole * percent / 100;
        match search(&space(&shape, &job, Some(budget)), Objective::Time) {
            Ok(found) => {
                fitted += 1;
                assert!(found.best.step_s <= before + 1e-12, "{percent} %");
                before = found.best.step_s;
                for schedule in std::iter::once(&found.best).chain(&found.others) {
                    let plan = Plan::new(&shape, &schedule.job, FACTS);
                    assert_eq!(plan.bytes(), schedule.bytes);
                    assert!(plan.bytes() <= budget, "{percent} %");
                }
            }
            Err(misfit) => {
                let least = misfit.least.expect("a schedule");
                assert!(least.bytes > budget && before.is_infinite(), "{percent} %");
            }
        }
    }
    assert!(fitted > 8, "{fitted}");
}

#[test]
fn the_least_memory_keeps_to_the_step_time() {
    let (shape, job) = (shape(), job());
    let fastest = search(&space(&shape, &job, None), Objective::Time).expect("a schedule").best;
    let step_s = 1.3 * fastest.step_s;
    let least = search(&space(&shape, &job, None), Objective::Memory { step_s });
    let least = least.expect("a schedule").best;
    assert!(least.step_s <= step_s && least.bytes < fastest.bytes);
}

#[test]
fn results_are_the_same_each_time_and_do_not_take_long() {
    let (shape, job) = (shape(), job());
    let whole = Plan::new(&shape, &job, FACTS).bytes();
    let find = || search(&space(&shape, &job, Some(whole / 2)), Objective::Time);
    assert_eq!(find(), find());
}

#[test]
fn choices_keep_as_many_as_asked() {
    for choice in Choice::ALL {
        for count in 0..=12 {
            let kept = choice.resident(count, 12).into_iter().filter(|kept| *kept).count();
            assert_eq!(kept as u32, count);
        }
    }
}

#[test]
fn what_is_only_to_fit_keeps_as_many_blocks_as_it_can() {
    let (shape, job) = (shape(), job());
    let whole = Plan::new(&shape, &job, FACTS).bytes();
    assert_eq!(fit(&shape, &job, FACTS, false, whole), Some(job.clone()));
    let less = fit(&shape, &job, FACTS, false, whole - 1).expect("a job");
    assert_eq!(less.streaming.as_ref().map(Streaming::streamed), Some(3));
    assert!(Plan::new(&shape, &less, FACTS).bytes() < whole);
    assert_eq!(fit(&shape, &job, FACTS, false, 1000), None);
}

#[test]
fn an_empty_space_has_no_least() {
    let (shape, job) = (shape(), job());
    let one =
        Space { micro_batches: vec![8], paths: vec![Path::Mixed], ..space(&shape, &job, None) };
    let misfit = search(&one, Objective::Time).expect_err("nothing to search");
    assert_eq!(misfit.least, None);
}

/// Where copying slows compute down by more than it takes, nothing is loaded ahead.
#[test]
fn transfers_that_disturb_are_not_overlapped() {
    let (shape, job) = (shape(), job());
    let budget = Plan::new(&shape, &job, FACTS).bytes() / 2;
    let best = |interference: f64, ahead: &[bool]| {
        let mut space = space(&shape, &job, Some(budget));
        (space.rates.interference, space.ahead) = (interference, ahead.to_vec());
        search(&space, Objective::Time).expect("a schedule").best
    };
    let (quiet, disturbed) = (best(0.0, &[true, false]), best(3.0, &[true, false]));
    assert!(quiet.wait_share <= disturbed.wait_share);
    assert!(disturbed.step_s <= best(3.0, &[true]).step_s);
    assert!(quiet.step_s <= best(0.0, &[false]).step_s);
}
