//! Blocks that are streamed through transfer slots: the same bits as with all blocks on the device,
//! whatever the slots, the path of micro-batches and the way into the slots; the plan's bytes; and
//! what is said when the file goes away.

use std::collections::HashSet;
use std::fs::OpenOptions;

use edge_gpu::{Device, Options};
use edge_kernels::{Category, Format};
use edge_runtime::adapter::AdapterTensors;
use edge_runtime::batch::Batch;
use edge_runtime::exits::Vote;
use edge_runtime::tune::trainer::{AdamW, Trainer};
use edge_scheduler::{Job, Path, Streaming};
use edge_tests::{cpu, gpu, gpu_with};

use crate::model::{Tiny, lora, tiny};

const SEQ_LEN: usize = 24;
const MICRO_BATCHES: u32 = 3;

fn batches() -> Vec<Batch> {
    let ids = |seed: usize| (0..SEQ_LEN).map(move |i| ((i * i * 7 + i * seed + 5) % 139) as u32);
    (1..=MICRO_BATCHES as usize).map(|n| Batch::new(ids(n * 13).collect(), SEQ_LEN)).collect()
}

pub(crate) fn job(tiny: &Tiny, path: Path, recompute: bool) -> Job {
    Job {
        batch: 1,
        eval_batch: 1,
        recompute,
        streams: path.streams(MICRO_BATCHES),
        columns: path == Path::Columns,
        ..tiny.job(Format::F32, Format::F32, lora(), 2)
    }
}

pub(crate) fn streamed(job: &Job, resident: [bool; 4], slots: u32, staged: bool) -> Job {
    let streaming = Streaming { resident: resident.to_vec(), slots, staged, ahead: slots > 1 };
    Job { streaming: Some(streaming), ..job.clone() }
}

/// Losses of steps that take windows in turn, of all exits behind them, and the adapter.
pub(crate) fn train(tiny: &Tiny, device: &Device, job: &Job) -> (Vec<u64>, AdapterTensors) {
    device.reset_peak();
    let mut trainer = Trainer::new(tiny.load(device, job), AdamW::default());
    device.seal();
    let mut losses = Vec::new();
    for window in [1, 1, 0, 1] {
        let outcome = trainer.step(window, &batches(), 1e-2).expect("a step");
        losses.push(outcome.loss.to_bits());
    }
    let judged = trainer.model.evaluate(batches().into_iter(), Vote::Last, |_| ());
    losses.extend(judged.expect("losses").exits.iter().map(|loss| loss.to_bits()));
    device.unseal();
    // Uploads of a model as small as this do not fill a piece of staging memory (1 MiB).
    let (peak, plan) = (device.memory().peak_total, trainer.model.plan.bytes());
    assert!(peak <= plan && plan - peak < 1 << 20, "{peak} of {plan} planned");
    let adapter = trainer.model.adapter().expect("an adapter");
    if job.streaming.is_some() {
        let report = trainer.model.take_stream_report().expect("a report");
        assert!(report.loads > 0 && report.load_bytes > 0 && report.wait_ms >= 0.0);
    }
    (losses, adapter)
}

/// The `cpu` device and GPUs with and without mapped storage.
fn devices() -> Vec<Device> {
    let staging = Options { disable_mapping: true, ..Options::default() };
    [Some(cpu()), gpu(), gpu_with(&staging)].into_iter().flatten().collect()
}

#[test]
fn streamed_blocks_give_the_bits_of_resident_ones() {
    let tiny = tiny();
    for device in devices() {
        let staged = device.stages_uploads();
        let mut kinds = HashSet::new();
        for (path, recompute) in
            [(Path::Rows, false), (Path::Mixed, false), (Path::Rows, true), (Path::Columns, true)]
        {
            let job = job(&tiny, path, recompute);
            let want = train(&tiny, &device, &job);
            kinds.insert((recompute, want.0.clone()));
            for (resident, slots) in [
                ([false; 4], 1),
                ([false; 4], 2),
                ([false; 4], 3),
                ([true, false, false, true], 1),
                ([false, true, false, false], 2),
            ] {
                let job = streamed(&job, resident, slots, staged);
                let got = train(&tiny, &device, &job);
                assert!(got == want, "{path:?} {resident:?} {slots} slots on {device:?}");
            }
        }
        // Paths differ in nothing but time; recomputation may round otherwise.
        let kept = kinds.iter().filter(|(recompute, _)| !recompute);
        assert_eq!(kept.count(), 1);
        let losses = |recompute: bool| {
            let found = kinds.iter().find(|(own, _)| *own == recompute).map(|(_, bits)| bits);
            let bits = found.expect("losses").iter();
            bits.map(|bits| f64::from_bits(*bits)).collect::<Vec<_>>()
        };
        for (kept, again) in losses(false).iter().zip(losses(true)) {
            assert!((kept - again).abs() < 1e-5, "{kept} {again}");
        }
    }
}

#[test]
fn slots_take_the_place_of_weights_in_the_plan() {
    let tiny = tiny();
    let job = job(&tiny, Path::Rows, false);
    let whole = tiny.load(&cpu(), &job);
    let streamed = tiny.load(&cpu(), &streamed(&job, [false; 4], 2, false));
    let weights = |plan: &edge_scheduler::Plan| plan.bytes_by_category()[Category::Weights.index()];
    let projections = |plan: &edge_scheduler::Plan| {
        let own = plan.buffers.iter();
        let own = own.filter(|b| b.name.starts_with("block.") && b.name.contains("_proj"));
        own.map(|buffer| 4 * buffer.words).sum::<u64>()
    };
    let block = projections(&whole.plan) / 4;
    assert_eq!(projections(&streamed.plan), 0);
    let saved = weights(&whole.plan) - weights(&streamed.plan);
    // Parts of a block begin at multiples of 256 bytes.
    assert!(saved <= 2 * block && saved + 2 * 14 * 256 >= 2 * block, "{saved} of {block}");
}

#[test]
fn a_file_that_goes_away_is_named() {
    for device in devices() {
        let tiny = tiny();
        let job = streamed(&job(&tiny, Path::Rows, false), [false; 4], 1, device.stages_uploads());
        let mut trainer = Trainer::new(tiny.load(&device, &job), AdamW::default());
        trainer.step(1, &batches(), 1e-2).expect("a step");
        let file = tiny.path().join("model.safetensors");
        OpenOptions::new().write(true).open(&file).and_then(|f| f.set_len(64)).expect("cut off");
        let mut steps = (0..2).map(|_| trainer.step(1, &batches(), 1e-2));
        let error = steps.find_map(Result::err).expect("an error");
        let message = format!("{error:#}");
        assert!(message.contains("model.safetensors was changed"), "{message}");
    }
}
