//! Calibration on a small random checkpoint: streamed and whole models are the same to the bit,
//! weights in place of others are what a model loaded with them has, and what is measured is what
//! a computation in f64 on the host gives.

// One test prints what another one reads.
#![allow(clippy::print_stdout)]

use std::sync::Arc;

use edge_gpu::{Device, Options};
use edge_kernels::pack::{PackedHost, pack};
use edge_kernels::{Category, Format};
use edge_runtime::batch::IGNORE;
use edge_runtime::checkpoint::Checkpoint;
use edge_runtime::compress::calibrate::sensitivity::Layer;
use edge_runtime::compress::calibrate::{
    CalibrationSet, Granularity, Measure, Mode, Runner, RunnerOptions, Sensitivity, Spill,
};
use edge_runtime::compress::solve::Hessian;
use edge_runtime::config::ModelConfig;
use edge_runtime::data::Stream;
use edge_runtime::model::{LoraInit, Model};
use edge_scheduler::{BlockFormats, Job, LinearInput, Projection};
#[cfg(target_os = "linux")]
use edge_tests::anonymous_bytes;
use edge_tests::{gpu_with, tiny};
use tempfile::TempDir;

use crate::block_f64;

const SEQ_LEN: usize = 24;
const SEQUENCES: usize = 3;
const VOCAB: usize = 139;
const D: usize = 48;
const BLOCKS: u32 = 4;

/// The formats in tests of packed weights.
const FORMATS: [Format; 4] = [Format::Q4, Format::Q8, Format::row_grouped(4), Format::two_four(16)];

/// A policy that gives neighbouring projections different formats.
fn mixed() -> Vec<BlockFormats> {
    let block = |block: usize| BlockFormats(std::array::from_fn(|p| FORMATS[(block + p) % 4]));
    (0..BLOCKS as usize).map(block).collect()
}

/// A policy that changes nothing.
fn uncompressed() -> Vec<BlockFormats> {
    vec![BlockFormats::uniform(Format::F32); BLOCKS as usize]
}

/// Bindings so small that head, projections and second moments are cut.
const SMALL_BINDING_BYTES: u64 = 20 << 10;

pub(crate) struct Tiny {
    _dir: TempDir,
    config: ModelConfig,
    checkpoint: Checkpoint,
    set: CalibrationSet,
}

fn tiny() -> Tiny {
    tiny_of(&tiny::config())
}

pub(crate) fn tiny_of(config: &serde_json::Value) -> Tiny {
    let dir = TempDir::new().expect("a temporary folder");
    tiny::write_config(dir.path(), config, 11).expect("a checkpoint");
    let ids = (0..SEQUENCES * SEQ_LEN + 5).map(|i| ((i * i * 7 + i * 13 + 5) % VOCAB) as u32);
    let stream = Stream::text(ids.collect(), "a.txt".to_owned());
    Tiny {
        config: ModelConfig::load(dir.path()).expect("a config"),
        checkpoint: Checkpoint::open(dir.path()).expect("weights"),
        set: CalibrationSet::of_stream(&stream, SEQ_LEN, SEQUENCES, None).expect("a set"),
        _dir: dir,
    }
}

/// New devices, so that their peaks are of one test; with small bindings, too.
fn devices() -> Vec<Device> {
    let small = Options { max_binding_bytes: Some(SMALL_BINDING_BYTES), ..Options::default() };
    let cpu = |options| Device::open("cpu", options).expect("the cpu device always opens");
    let gpus = [gpu_with(&Options::default()), gpu_with(&small)].into_iter().flatten();
    [cpu(&Options::default()), cpu(&small)].into_iter().chain(gpus).collect()
}

impl Tiny {
    /// One sequence at a time; with everything on the device or with one block.
    fn options(&self, device: &Device, streamed: bool) -> RunnerOptions {
        let mut options = RunnerOptions::new(&FORMATS, &self.set);
        options.sequences = 1;
        options.tables = Some([Format::Q8; 2]);
        let plan = |options: &RunnerOptions| {
            Runner::plan(device, &self.checkpoint, &self.config, options).expect("a plan")
        };
        if streamed {
            let mut bytes = plan(&options).1.bytes();
            while plan(&options).0.blocks.len() > 1 {
                bytes -= 4096;
                options.budget_bytes = Some(bytes);
            }
        }
        options
    }

    fn runner(&self, device: &Device, streamed: bool) -> Runner<'_> {
        let options = self.options(device, streamed);
        let runner = Runner::open(device, &self.checkpoint, &self.config, &options, &mut |_| ());
        let runner = runner.expect("a runner");
        assert_eq!(runner.is_resident(), !streamed);
        runner
    }

    fn job(&self, blocks: Vec<BlockFormats>) -> Job {
        Job::new(blocks, [Format::F32; 2], 1, SEQ_LEN as u32)
    }

    /// A model as commands load it.
    fn model(&self, device: &Device, job: &Job) -> Model {
        let (checkpoint, none) = (&self.checkpoint, LoraInit::NONE);
        Model::load(device, checkpoint, &self.config, job, none, &mut |_| ()).expect("a model")
    }

    /// Logits and final hidden states of all sequences by [`Model`].
    fn whole(&self, device: &Device, blocks: Vec<BlockFormats>) -> (Vec<f32>, Vec<f32>) {
        self.whole_of(device, &self.job(blocks))
    }

    fn whole_of(&self, device: &Device, job: &Job) -> (Vec<f32>, Vec<f32>) {
        let model = self.model(device, job);
        let (mut logits, mut states) = (Vec::new(), Vec::new());
        for sequence in 0..SEQUENCES {
            logits.extend(model.all_logits(&self.set.batch(sequence, 1)).expect("logits"));
            states.extend(device.read_f32(&model.workspace.slots[0].x).expect("states"));
        }
        (logits, states)
    }

    fn packed(&self, block: u32, projection: Projection, format: Format) -> Arc<PackedHost> {
        let (n, k) = self.config.shape().projection(projection);
        let weight = self.checkpoint.weight(&self.config, block as usize, projection);
        Arc::new(pack(format, n, k, &weight.expect("a weight").to_f32().expect("values")))
    }

    /// Replaces all projections of all blocks as [`mixed`] says.
    fn compress(&self, runner: &mut Runner<'_>) {
        for (block, formats) in (0..).zip(mixed()) {
            for projection in Projection::ALL {
                let weight = self.packed(block, projection, formats.get(projection));
                runner.set_weight(block, projection, weight).expect("a weight");
            }
        }
    }
}

/// All blocks one by one, as calibration does.
fn last_states(runner: &mut Runner<'_>, set: &CalibrationSet) -> Vec<f32> {
    let mut states = runner.embed(set).expect("embeddings");
    for block in 0..BLOCKS {
        states = runner.forward(block, &states).expect("hidden states");
    }
    states.to_vec().expect("hidden states")
}

fn bits(values: &[f32]) -> &[u32] {
    bytemuck::cast_slice(values)
}

#[test]
fn a_streamed_model_is_the_whole_one_to_the_bit() {
    let tiny = tiny();
    for device in devices() {
        check_streamed(&tiny, &device);
    }
}

pub(crate) fn check_streamed(tiny: &Tiny, device: &Device) {
    let (_, own) = tiny.whole(device, uncompressed());
    let (_, compressed) = tiny.whole(device, mixed());
    assert_ne!(bits(&own), bits(&compressed));
    for streamed in [false, true] {
        let mut runner = tiny.runner(device, streamed);
        let got = last_states(&mut runner, &tiny.set);
        assert!(bits(&got) == bits(&own), "own weights, streamed: {streamed}");
        tiny.compress(&mut runner);
        let got = last_states(&mut runner, &tiny.set);
        assert!(bits(&got) == bits(&compressed), "packed weights, streamed: {streamed}");
        let mut states = runner.embed(&tiny.set).expect("embeddings");
        runner.advance(0..BLOCKS, &mut states).expect("hidden states");
        assert!(bits(&states.to_vec().expect("states")) == bits(&compressed));
        runner.restore_all();
        let got = last_states(&mut runner, &tiny.set);
        assert!(bits(&got) == bits(&own), "restored weights, streamed: {streamed}");
    }
}

/// Packed weights of single projections, and taken back one by one.
#[test]
fn weights_are_replaced_one_by_one() {
    let tiny = tiny();
    let device = Device::open("cpu", &Options::default()).expect("the cpu device");
    let mut runner = tiny.runner(&device, true);
    let input = runner.embed(&tiny.set).expect("embeddings");
    let own = runner.forward(1, &input).expect("states").to_vec().expect("states");
    for projection in Projection::ALL {
        let weight = tiny.packed(1, projection, Format::Q4);
        runner.set_weight(1, projection, weight).expect("a weight");
        let got = runner.forward(1, &input).expect("states").to_vec().expect("states");
        assert!(bits(&got) != bits(&own), "{projection:?} changes nothing");
        runner.restore(1, projection);
        let got = runner.forward(1, &input).expect("states").to_vec().expect("states");
        assert!(bits(&got) == bits(&own), "{projection:?} is not restored");
    }
    let message = |result: anyhow::Result<()>| format!("{:#}", result.expect_err("refused"));
    let weight = tiny.packed(0, Projection::Q, Format::Q2);
    assert!(message(runner.set_weight(0, Projection::Q, weight)).contains("q2"));
    let weight = tiny.packed(0, Projection::K, Format::Q4);
    assert!(message(runner.set_weight(0, Projection::Q, weight.clone())).contains("q_proj"));
    assert!(message(runner.set_weight(9, Projection::K, weight)).contains("block 9"));
}

/// `‖got - want‖ / ‖want‖` of `xᵀx`.
fn distance(hessian: &Hessian, x: &[f64]) -> f64 {
    let k = hessian.k;
    let mut want = vec![0.0; k * k];
    for x in x.chunks(k) {
        for (row, a) in want.chunks_mut(k).zip(x) {
            row.iter_mut().zip(x).for_each(|(sum, b)| *sum += a * b);
        }
    }
    let pairs = || hessian.sum.iter().zip(&want);
    let error: f64 = pairs().map(|(&got, want)| (f64::from(got) - want).powi(2)).sum();
    (error / want.iter().map(|want| want * want).sum::<f64>()).sqrt()
}

/// Second moments of block 2 with these options.
fn check_moments(tiny: &Tiny, device: &Device, options: &RunnerOptions) {
    let config = &tiny.config;
    let runner = Runner::open(device, &tiny.checkpoint, config, options, &mut |_| ());
    let mut runner = runner.expect("a runner");
    let mut states = runner.embed(&tiny.set).expect("embeddings");
    runner.advance(0..2, &mut states).expect("hidden states");
    let x = states.to_vec().expect("states");
    let x = block_f64::inputs(config, &tiny.checkpoint, 2, SEQ_LEN, &x);
    let all = runner.hessians(2, &states, &LinearInput::ALL).expect("second moments");
    assert_eq!(all.len(), 4);
    for ((hessian, x), input) in all.iter().zip(&x).zip(LinearInput::ALL) {
        assert_eq!(hessian.tokens, (SEQUENCES * SEQ_LEN) as u64);
        let error = distance(hessian, x);
        assert!(error < 1e-5, "{input:?}: {error:e}");
    }
    let which = [LinearInput::Hidden, LinearInput::Attention];
    let some = runner.hessians(2, &states, &which).expect("second moments");
    let sums = [&all[3], &all[0]].map(|hessian| hessian.sum.clone());
    assert!(some.iter().map(|hessian| &hessian.sum).eq(&sums));
}

/// With room for all parts at once, and with less and less.
#[test]
fn second_moments_are_those_of_the_definition() {
    let tiny = tiny();
    let mut several = false;
    for device in devices() {
        check_moments(&tiny, &device, &tiny.options(&device, false));
        let mut options = tiny.options(&device, true);
        let mut counts = Vec::new();
        let plan = |options: &RunnerOptions| {
            Runner::plan(&device, &tiny.checkpoint, &tiny.config, options)
        };
        while let Ok((job, plan)) = plan(&options) {
            let buffers = job.calibration.expect("calibration").moment_buffers;
            if counts.last() != Some(&buffers) {
                check_moments(&tiny, &device, &options);
                counts.push(buffers);
            }
            options.budget_bytes = Some(plan.bytes() - 1);
        }
        assert!(counts.len() > 1 && counts.last() == Some(&1), "{counts:?}");
        several |= counts.iter().any(|count| (2..counts[0]).contains(count));
    }
    assert!(several, "no device has several parts in one of several passes");
}

fn log_softmax(row: &[f32]) -> Vec<f64> {
    let max = row.iter().copied().fold(f32::MIN, f32::max);
    let sum: f64 = row.iter().map(|&z| f64::from(z - max).exp()).sum();
    row.iter().map(|&z| f64::from(z - max) - sum.ln()).collect()
}

#[test]
fn divergence_and_losses_are_those_of_the_definition() {
    let tiny = tiny();
    for device in devices() {
        let (p, _) = tiny.whole(&device, uncompressed());
        // What is made has other tables, too.
        let job = Job::new(mixed(), [Format::Q8; 2], 1, SEQ_LEN as u32);
        let (q, _) = tiny.whole_of(&device, &job);
        let targets = tiny.set.batch(0, SEQUENCES).targets;
        let (mut kl, mut losses) = (0.0, [0.0; 2]);
        for ((p, q), &target) in p.chunks(VOCAB).zip(q.chunks(VOCAB)).zip(&targets) {
            let (p, q) = (log_softmax(p), log_softmax(q));
            kl += p.iter().zip(&q).map(|(p, q)| p.exp() * (p - q)).sum::<f64>();
            if target != IGNORE {
                losses[0] -= p[target as usize];
                losses[1] -= q[target as usize];
            }
        }
        let (positions, predicted) = (SEQUENCES * SEQ_LEN, SEQUENCES * (SEQ_LEN - 1));
        for streamed in [false, true] {
            let mut runner = tiny.runner(&device, streamed);
            let mut reference = runner.embed(&tiny.set).expect("embeddings");
            runner.advance(0..BLOCKS, &mut reference).expect("hidden states");
            let same = runner.evaluate(&reference, &tiny.set).expect("a divergence");
            assert_eq!((same.kl, same.loss), (0.0, same.reference_loss));
            tiny.compress(&mut runner);
            runner.set_tables();
            let got = runner.evaluate(&reference, &tiny.set).expect("a divergence");
            let counts = (got.positions, got.predicted);
            assert_eq!(counts, (positions as u64, predicted as u64));
            let near = |got: f64, sum: f64, count: usize| {
                let want = sum / count as f64;
                assert!((got - want).abs() < 1e-6 + 1e-5 * want, "{got} for {want}");
            };
            assert!(got.kl > 1e-3, "{got:?}");
            near(got.kl, kl, positions);
            near(got.reference_loss, losses[0], predicted);
            near(got.loss, losses[1], predicted);
        }
    }
}

fn measure(candidates: &[Format]) -> Measure {
    Measure {
        candidates: candidates.to_vec(),
        mode: Mode::Loss,
        granularity: Granularity::Projection,
        hessians: true,
        method: "nearest".to_owned(),
    }
}

#[test]
fn sensitivity_is_nothing_without_change_and_grows_with_fewer_bits() {
    let tiny = tiny();
    let device = Device::open("cpu", &Options::default()).expect("the cpu device");
    let formats = [Format::F32, Format::Q8, Format::Q4];
    let dir = TempDir::new().expect("a folder");
    let path = dir.path().join("sensitivity.json");
    let mut found: Vec<Sensitivity> = Vec::new();
    for streamed in [false, true] {
        let mut options = tiny.options(&device, streamed);
        options.candidates = formats.to_vec();
        let config = &tiny.config;
        let runner = Runner::open(&device, &tiny.checkpoint, config, &options, &mut |_| ());
        let mut runner = runner.expect("a runner");
        let mut calls = 0;
        let mut work = |path| {
            let (runner, set) = (&mut runner, &tiny.set);
            let measure = measure(&formats);
            let result = Sensitivity::cached(
                path,
                (runner, set),
                &measure,
                "m",
                &mut |layer, formats| {
                    calls += 1;
                    assert_eq!(layer.hessian.expect("second moments").k, layer.shape.1 as usize);
                    Ok(all_of(layer, formats))
                },
                &mut |_, _| Ok(()),
            );
            let (measured, unsaved) = result.expect("a measurement");
            assert!(unsaved.is_none(), "{unsaved:?}");
            measured
        };
        let sensitivity = work(&path);
        assert_eq!(work(&path), sensitivity, "from the file");
        std::fs::write(&path, "{}").expect("damage");
        assert_eq!(work(&path), sensitivity, "measured again");
        std::fs::remove_file(&path).expect("removed");
        assert_eq!(calls, 2 * 4 * 7);
        found.push(sensitivity);
    }
    assert_eq!(found[0], found[1], "resident and streamed");
    for block in 0..BLOCKS {
        for projection in [None].into_iter().chain(Projection::ALL.map(Some)) {
            let get = |format| found[0].get(block, projection, format).expect("an entry");
            let (own, q8, q4) = (get(Format::F32), get(Format::Q8), get(Format::Q4));
            assert_eq!((own.output_mse, own.relative_mse, own.kl), (0.0, 0.0, Some(0.0)));
            assert!(q4.output_mse > 10.0 * q8.output_mse && q8.output_mse > 0.0, "{q8:?} {q4:?}");
            assert!(q4.relative_mse > q8.relative_mse && q4.kl > q8.kl, "{q8:?} {q4:?}");
            assert!(q4.relative_mse < 1.0, "{q4:?}");
        }
    }
}

#[test]
fn output_errors_are_those_of_the_definition() {
    let tiny = tiny();
    for device in devices() {
        let mut runner = tiny.runner(&device, true);
        let mut input = runner.embed(&tiny.set).expect("embeddings");
        runner.advance(0..1, &mut input).expect("hidden states");
        let output = runner.forward(1, &input).expect("hidden states");
        tiny.compress(&mut runner);
        let moved = runner.forward(1, &input).expect("hidden states");
        let [x, y, z] = [&input, &output, &moved].map(|states| states.to_vec().expect("states"));
        let difference = |a: &[f32], b: &[f32]| -> Vec<f64> {
            a.iter().zip(b).map(|(a, b)| f64::from(*a) - f64::from(*b)).collect()
        };
        let mean = |values: &mut dyn Iterator<Item = f64>| -> f64 {
            let values: Vec<f64> = values.collect();
            values.iter().sum::<f64>() / values.len() as f64
        };
        let want = mean(&mut difference(&z, &y).iter().map(|error| error * error));
        let got = runner.output_mse(1, &input, &output).expect("an error");
        assert!((got / want - 1.0).abs() < 1e-12, "{got} for {want}");
        let added = difference(&y, &x);
        let channel = |channel: usize| added.iter().copied().skip(channel).step_by(D);
        let variance = mean(&mut (0..D).map(|i| {
            let middle = mean(&mut channel(i));
            mean(&mut channel(i).map(|added| (added - middle).powi(2)))
        }));
        let got = runner.contribution_variance(&input, &output).expect("a variance");
        assert!((got / variance - 1.0).abs() < 1e-9, "{got} for {variance}");
    }
}

/// A layer rounded to each of some formats.
fn all_of(layer: &Layer<'_>, formats: &[Format]) -> Vec<Arc<PackedHost>> {
    let (n, k) = layer.shape;
    formats.iter().map(|format| Arc::new(pack(*format, n, k, layer.weight))).collect()
}

#[test]
fn a_measurement_that_is_ended_leaves_the_weights_alone() {
    let tiny = tiny();
    let device = Device::open("cpu", &Options::default()).expect("the cpu device");
    let mut runner = tiny.runner(&device, false);
    let mut reference = runner.embed(&tiny.set).expect("embeddings");
    runner.advance(0..BLOCKS, &mut reference).expect("hidden states");
    let ended = Sensitivity::measure(
        (&mut runner, &tiny.set),
        &measure(&[Format::Q4]),
        "m",
        &mut |layer, formats| Ok(all_of(layer, formats)),
        &mut |done, count| {
            assert_eq!(count, 4 * 8);
            anyhow::ensure!(done < 13, "that is enough");
            Ok(())
        },
    );
    assert!(format!("{:#}", ended.expect_err("ended")).contains("that is enough"));
    let same = runner.evaluate(&reference, &tiny.set).expect("a divergence");
    assert_eq!(same.kl, 0.0);
}

#[test]
fn the_peak_is_what_the_plan_says() {
    let tiny = tiny();
    for device in devices() {
        for streamed in [false, true] {
            // What was loaded before is gone with its model.
            device.reset_peak();
            let (_, plan) = {
                let options = tiny.options(&device, streamed);
                Runner::plan(&device, &tiny.checkpoint, &tiny.config, &options).expect("a plan")
            };
            let mut runner = tiny.runner(&device, streamed);
            device.seal();
            tiny.compress(&mut runner);
            runner.set_tables();
            let input = runner.embed(&tiny.set).expect("embeddings");
            runner.hessians(0, &input, &LinearInput::ALL).expect("second moments");
            let reference = runner.copy(&input).expect("a copy");
            runner.divergence(0, &input, &reference, &tiny.set).expect("a divergence");
            device.unseal();
            let (mut got, mut want) = (device.memory().peak, plan.bytes_by_category());
            let staging = Category::Staging.index();
            assert!(got[staging] <= want[staging]);
            (got[staging], want[staging]) = (0, 0);
            assert_eq!(got, want, "{}, streamed {streamed}", device.info().name);
        }
    }
}

#[test]
fn hidden_states_go_to_a_file_where_memory_is_short() {
    let tiny = tiny();
    let device = Device::open("cpu", &Options::default()).expect("the cpu device");
    let dir = TempDir::new().expect("a folder");
    let mut options = tiny.options(&device, true);
    let config = &tiny.config;
    let mut peaks = Vec::new();
    let mut states = Vec::new();
    for above_bytes in [u64::MAX, 0] {
        options.spill = Some(Spill { dir: dir.path().to_owned(), above_bytes });
        let runner = Runner::open(&device, &tiny.checkpoint, config, &options, &mut |_| ());
        let mut runner = runner.expect("a runner");
        states.push(last_states(&mut runner, &tiny.set));
        peaks.push(runner.host().peak_bytes());
        assert_eq!(runner.host().current_bytes(), 0);
    }
    assert_eq!(states[0], states[1]);
    assert_eq!(peaks, [2 * 4 * (SEQUENCES * SEQ_LEN * D) as u64, 0]);
    options.budget_bytes = Some(10_000);
    let refused = Runner::plan(&device, &tiny.checkpoint, config, &options);
    let message = format!("{:#}", refused.expect_err("refused"));
    assert!(message.contains("--memory-budget leaves 0.0 MiB"), "{message}");
}

/// Many sequences, so that hidden states are most of what the process holds.
#[cfg(target_os = "linux")]
fn many_sequences() -> CalibrationSet {
    let ids = (0..8192 * SEQ_LEN as u32).map(|i| (i * 7 + 3) % VOCAB as u32).collect();
    let stream = Stream::text(ids, "a.txt".to_owned());
    CalibrationSet::of_stream(&stream, SEQ_LEN, 8192, None).expect("a set")
}

/// Prints what is counted of hidden states, in a file and in memory, and what the process took.
#[cfg(target_os = "linux")]
fn print_hidden_states() {
    let (tiny, set) = (tiny(), many_sequences());
    let device = Device::open("cpu", &Options::default()).expect("the cpu device");
    let dir = TempDir::new().expect("a folder");
    for above_bytes in [0, u64::MAX] {
        let mut options = RunnerOptions::new(&FORMATS, &set);
        options.spill = Some(Spill { dir: dir.path().to_owned(), above_bytes });
        let config = &tiny.config;
        let runner = Runner::open(&device, &tiny.checkpoint, config, &options, &mut |_| ());
        let mut runner = runner.expect("a runner");
        // Once before, so that the allocator has what a pass needs.
        drop(runner.embed(&tiny.set).expect("embeddings"));
        let before = anonymous_bytes();
        let states = runner.embed(&set).expect("embeddings");
        let after = anonymous_bytes();
        // On a line of its own: the harness begins one before it where tests run one by one.
        println!("\n{} {}", runner.host().current_bytes(), after.saturating_sub(before));
        drop(states);
    }
}

#[cfg(target_os = "linux")]
#[test]
fn anonymous_memory_is_what_the_runner_counts() {
    let name = "calibrate::anonymous_memory_is_what_the_runner_counts";
    let Some(text) = edge_tests::alone(name) else { return print_hidden_states() };
    let number = |word: &str| word.parse::<u64>().ok();
    let pair = |line: &str| line.split_once(' ').and_then(|(a, b)| number(a).zip(number(b)));
    let found: Vec<(u64, u64)> = text.lines().filter_map(pair).collect();
    let bytes = 4 * (8192 * SEQ_LEN * D) as u64;
    let [(in_file, grown), (in_memory, grown_by)] = found[..] else { panic!("{text}") };
    assert_eq!((in_file, in_memory), (0, bytes));
    assert!(grown < bytes / 8, "hidden states in a file take {grown} bytes of memory");
    let difference = grown_by.abs_diff(bytes);
    assert!(difference < bytes / 8, "{bytes} bytes are counted, and {grown_by} taken");
}
