//! Whole models on a small random checkpoint: against candle, which shares no code with this
//! project; windows, exits and votes; devices against each other; plan against allocation.

use candle_core::{DType, Device as CandleDevice, Tensor};
use candle_nn::VarBuilder;
use candle_transformers::models::llama::{Cache, Llama, LlamaConfig};
use edge_gpu::{Device, Options};
use edge_kernels::{Category, Format, Packing};
use edge_runtime::adapter::AdapterTensors;
use edge_runtime::batch::Batch;
use edge_runtime::checkpoint::Checkpoint;
use edge_runtime::config::ModelConfig;
use edge_runtime::data::{Example, Stream};
use edge_runtime::exits::Vote;
use edge_runtime::family::names::HEAD;
use edge_runtime::generate::Sampling;
use edge_runtime::model::{LoraInit, Model};
use edge_runtime::tune::trainer::{AdamW, Trainer};
use edge_runtime::vote::Learned;
use edge_scheduler::{BlockFormats, Job, Optimizer, Projection, Trained, Window};
use edge_tests::{cpu, gpu, largest_difference, tiny};
use safetensors::tensor::{Dtype, SafeTensors, TensorView, serialize};
use tempfile::TempDir;

const SEQ_LEN: usize = 24;
const VOCAB: usize = 139;

pub(crate) struct Tiny {
    dir: TempDir,
    config: ModelConfig,
    checkpoint: Checkpoint,
}

pub(crate) fn tiny() -> Tiny {
    tiny_of(&tiny::config())
}

pub(crate) fn tiny_of(config: &serde_json::Value) -> Tiny {
    let dir = TempDir::new().expect("a temporary folder");
    tiny::write_config(dir.path(), config, 7).expect("a checkpoint");
    let config = ModelConfig::load(dir.path()).expect("a config");
    let checkpoint = Checkpoint::open(dir.path()).expect("weights");
    Tiny { dir, config, checkpoint }
}

fn ids(sequences: usize) -> Vec<u32> {
    (0..sequences * SEQ_LEN).map(|i| ((i * i * 7 + i * 13 + 5) % VOCAB) as u32).collect()
}

pub(crate) fn batch() -> Batch {
    Batch::new(ids(2), SEQ_LEN)
}

impl Tiny {
    pub(crate) fn path(&self) -> &std::path::Path {
        self.dir.path()
    }

    pub(crate) fn job(&self, blocks: Format, table: Format, trained: Trained, windows: u32) -> Job {
        let blocks = vec![BlockFormats::uniform(blocks); 4];
        Job {
            trained,
            windows: Window::split(4, windows),
            exit_norms: windows > 1,
            training: true,
            vote: windows > 1,
            ..Job::new(blocks, [table; 2], 2, SEQ_LEN as u32)
        }
    }

    pub(crate) fn load(&self, device: &Device, job: &Job) -> Model {
        let init = LoraInit { scale: 2.0, seed: 3 };
        Model::load(device, &self.checkpoint, &self.config, job, init, &mut |_| ())
            .expect("a model")
    }

    /// A tensor of the checkpoint.
    pub(crate) fn tensor(&self, name: &str) -> Vec<f32> {
        self.checkpoint.tensor(name).and_then(|tensor| tensor.to_f32()).expect("a tensor")
    }

    /// The same with another head.
    pub(crate) fn with_head(&self, head: &[f32]) -> Self {
        let bytes = std::fs::read(self.path().join("model.safetensors")).expect("weights");
        let tensors = SafeTensors::deserialize(&bytes).expect("tensors");
        let replace = |(name, view): (&str, TensorView<'_>)| {
            let data = if name == HEAD { bytemuck::cast_slice(head) } else { view.data() };
            (name.to_owned(), view.shape().to_vec(), data.to_vec())
        };
        let tensors: Vec<_> = tensors.iter().map(replace).collect();
        let view = |(name, shape, data)| {
            let shape: &Vec<usize> = shape;
            (name, TensorView::new(Dtype::F32, shape.clone(), data).expect("a tensor"))
        };
        let views = tensors.iter().map(|(name, shape, data)| view((name, shape, data)));
        let dir = TempDir::new().expect("a temporary folder");
        let path = dir.path().join("model.safetensors");
        std::fs::write(&path, serialize(views, None).expect("laid out")).expect("written");
        let checkpoint = Checkpoint::open_file(&path).expect("weights");
        Self { dir, config: self.config.clone(), checkpoint }
    }

    pub(crate) fn edge(&self, device: &Device, format: Format) -> Trainer {
        let job = self.job(format, Format::F16, lora(), 2);
        Trainer::new(self.load(device, &job), AdamW::default())
    }
}

pub(crate) fn lora() -> Trained {
    Trained::Lora { rank: 4, targets: Projection::ALL.to_vec() }
}

pub(crate) fn devices() -> Vec<Device> {
    [Some(cpu()), gpu()].into_iter().flatten().collect()
}

#[test]
fn logits_equal_candles() {
    let tiny = tiny();
    let config: LlamaConfig = serde_json::from_value(tiny::config()).expect("candle's config");
    let config = config.into_config(false);
    let weights = candle_core::safetensors::load(
        tiny.dir.path().join("model.safetensors"),
        &CandleDevice::Cpu,
    );
    let builder =
        VarBuilder::from_tensors(weights.expect("weights"), DType::F32, &CandleDevice::Cpu);
    let theirs = Llama::load(builder, &config).expect("candle's model");
    let ids = ids(2);
    for device in devices() {
        let job = self::Tiny::job(&tiny, Format::F32, Format::F32, Trained::Nothing, 1);
        let model = tiny.load(&device, &Job { training: false, ..job });
        let ours = model.all_logits(&batch()).expect("logits");
        for (row, position) in [(0, 0), (0, 5), (0, 23), (1, 1), (1, 17)] {
            // candle returns the logits behind the last token only.
            let prefix = &ids[row * SEQ_LEN..row * SEQ_LEN + position + 1];
            let input = Tensor::new(prefix, &CandleDevice::Cpu).and_then(|t| t.unsqueeze(0));
            let mut cache =
                Cache::new(false, DType::F32, &config, &CandleDevice::Cpu).expect("a cache");
            let logits = theirs.forward(&input.expect("ids"), 0, &mut cache).expect("logits");
            let want: Vec<f32> =
                logits.flatten_all().and_then(|t| t.to_vec1()).expect("candle's logits");
            let at = (row * SEQ_LEN + position) * VOCAB;
            for (got, want) in ours[at..at + VOCAB].iter().zip(&want) {
                assert!((got - want).abs() < 1e-4, "{got} for {want} at {row}, {position}");
            }
        }
    }
}

#[test]
fn a_cache_continues_as_whole_sequences_do() {
    let tiny = tiny();
    for device in devices() {
        check_cache(&tiny, &device);
    }
}

pub(crate) fn check_cache(tiny: &Tiny, device: &Device) {
    let base = tiny.job(Format::F32, Format::F32, Trained::Nothing, 1);
    let whole = tiny.load(device, &Job { training: false, ..base.clone() });
    let cached = Job {
        training: false,
        batch: 1,
        seq_len: 7,
        cache: Some(SEQ_LEN as u32),
        vote: true,
        ..base
    };
    let cached = tiny.load(device, &cached);
    let sampling = Sampling { temperature: 0.0, top_p: 1.0, seed: 0, vote: Vote::Last };
    // Ten tokens: the prompt goes in pieces of seven.
    let prompt = &ids(1)[..10];
    let made = cached.generate(prompt, 8, &sampling, |_| false, |_| Ok(())).expect("tokens");
    assert_eq!(made.len(), 8);
    assert_greedy(&whole, prompt, &made);
}

/// Each token must be the likeliest one behind the text before it, run as a whole sequence.
fn assert_greedy(whole: &Model, prompt: &[u32], made: &[u32]) {
    let mut text = prompt.to_vec();
    for &token in made {
        let logits = whole.all_logits(&Batch::new(text.clone(), text.len())).expect("logits");
        let last = &logits[(text.len() - 1) * VOCAB..];
        let best = (0..VOCAB).max_by(|&a, &b| last[a].total_cmp(&last[b])).expect("a token");
        assert_eq!(token as usize, best, "behind {} tokens", text.len());
        text.push(token);
    }
}

/// An adapter on all layers that changes much.
fn adapter(trainer: &Trainer) -> AdapterTensors {
    let mut tensors = trainer.model.adapter().expect("an adapter");
    for (layer, (_, b)) in tensors.iter_mut().map(|((layer, _), pair)| (*layer, pair)) {
        for (index, b) in b.iter_mut().enumerate() {
            *b = ((index * 7 + layer * 3) % 11) as f32 * 0.02 - 0.1;
        }
    }
    tensors
}

#[test]
fn isolated_windows_stand_on_the_base() {
    let tiny = tiny();
    for device in devices() {
        let stacked = tiny.edge(&device, Format::F32);
        let job = Job { isolated: true, phases: true, ..stacked.model.job.clone() };
        let mut isolated = Trainer::new(tiny.load(&device, &job), AdamW::default());
        // Adapters of one window at a time lie on the device: all start as they do together, and
        // come back as they were set.
        assert_eq!(
            isolated.model.adapter().expect("started"),
            stacked.model.adapter().expect("started")
        );
        let tensors = adapter(&stacked);
        isolated.model.set_adapter(&tensors).expect("set");
        assert_eq!(isolated.model.adapter().expect("set"), tensors);
        let got = isolated.model.exit_logits(&batch()).expect("logits");
        for (exit, window) in job.windows.iter().enumerate() {
            // The stacked model with no other window's adapters.
            let mut own = tensors.clone();
            for ((layer, _), (_, b)) in &mut own {
                if !window.contains(*layer as u32) {
                    b.fill(0.0);
                }
            }
            stacked.model.set_adapter(&own).expect("set");
            let want = &stacked.model.exit_logits(&batch()).expect("logits")[exit];
            let off = largest_difference(&got[exit], want);
            assert!(off < 1e-4, "exit {exit}: {off}");
            // And so it is while that window is trained.
            let loss = isolated.model.evaluate([batch()].into_iter(), Vote::Last, |_| ());
            let want = loss.expect("losses").exits[exit];
            isolated.begin(exit).expect("a phase");
            let got = isolated.step(exit, &[batch()], 0.0).expect("a step").loss;
            assert!((got - want).abs() < 1e-4, "exit {exit}: {got} {want}");
        }
    }
}

#[test]
fn isolated_streams_continue_in_their_caches() {
    let tiny = tiny();
    for device in devices() {
        let trainer = tiny.edge(&device, Format::F32);
        let tensors = adapter(&trainer);
        let job = Job { isolated: true, training: false, ..trainer.model.job.clone() };
        let whole = tiny.load(&device, &job);
        let cache = Some(SEQ_LEN as u32);
        let cached = tiny.load(&device, &Job { batch: 1, eval_batch: 1, seq_len: 7, cache, ..job });
        whole.set_adapter(&tensors).expect("set");
        cached.set_adapter(&tensors).expect("set");
        let sampling = Sampling { temperature: 0.0, top_p: 1.0, seed: 0, vote: Vote::Last };
        let prompt = &ids(1)[..10];
        let made = cached.generate(prompt, 8, &sampling, |_| false, |_| Ok(())).expect("tokens");
        assert_eq!(made.len(), 8);
        assert_greedy(&whole, prompt, &made);
    }
}

fn values(trainer: &Trainer) -> Vec<Vec<u32>> {
    let groups = &trainer.model.groups;
    let read = |slice| trainer.model.device.read(slice).expect("values");
    groups.iter().map(|group| group.values.iter().flat_map(read).collect()).collect()
}

#[test]
fn a_step_changes_its_window_and_nothing_else() {
    let tiny = tiny();
    for device in devices() {
        let mut trainer = tiny.edge(&device, Format::Q8);
        for window in [1, 0, 1] {
            let before = values(&trainer);
            let outcome = trainer.step(window, &[batch()], 1e-2).expect("a step");
            assert!(outcome.loss.is_finite() && outcome.grad_norm > 0.0);
            let after = values(&trainer);
            for index in 0..2 {
                let changed = before[index] != after[index];
                assert_eq!(changed, index == window, "window {index} in a step of {window}");
            }
        }
    }
}

#[test]
fn padding_behind_examples_changes_nothing() {
    let tiny = tiny();
    let mut stream = Stream::text(ids(2), "a.txt".to_owned());
    let example = |(start, len, prompt)| Example { start, len, prompt };
    stream.examples = [(0, 19, 4), (20, 9, 7)].map(example).to_vec().into();
    let answer = |at| u8::from((4..19).contains(&at) || at >= 27);
    stream.answers = (0..stream.ids.len()).map(answer).collect();
    let batches = |sequences| stream.eval_batches(SEQ_LEN, sequences, None).expect("batches");
    for device in devices() {
        let gradients = |batches: Vec<Batch>| {
            let mut trainer = tiny.edge(&device, Format::F32);
            trainer.step(0, &[batch()], 1e-2).expect("a step");
            trainer.gradients(0, &batches, 17).expect("gradients");
            let loss = device.read_f32(&trainer.model.workspace.loss).expect("a loss");
            (loss, trainer.read_gradients(0).expect("gradients"))
        };
        let (padded, together) = gradients(batches(2).collect());
        let (alone, apart) = gradients(batches(1).collect());
        // Targets are the ids of the answers: 15 and 2.
        assert_eq!((padded[1], alone[1]), (17.0, 17.0));
        assert!((padded[0] - alone[0]).abs() <= 1e-4 * alone[0], "{padded:?} {alone:?}");
        for (name, (_, want)) in &apart {
            let scale = want.iter().fold(0f32, |m, x| m.max(x.abs()));
            for (got, want) in together[name].1.iter().zip(want) {
                assert!((got - want).abs() <= 1e-4 * scale + 1e-9, "{name}: {got} {want}");
            }
        }
    }
}

#[test]
fn windows_in_phases_share_moments_and_train_alike() {
    let tiny = tiny();
    for optimizer in [Optimizer::AdamW, Optimizer::AdamW8bit] {
        let run = |phases: bool| {
            let job = tiny.job(Format::Q8, Format::F16, lora(), 3);
            let job = Job { optimizer, phases, ..job };
            let mut trainer = Trainer::new(tiny.load(&cpu(), &job), AdamW::default());
            let mut losses = Vec::new();
            for window in 0..3 {
                trainer.begin(window).expect("a phase");
                for _ in 0..3 {
                    losses.push(trainer.step(window, &[batch()], 1e-2).expect("a step").loss);
                }
            }
            let bytes = trainer.model.plan.bytes_by_category()[Category::Optimizer.index()];
            (losses, bytes)
        };
        let ((own, own_bytes), (shared, shared_bytes)) = (run(false), run(true));
        assert_eq!(own, shared);
        // Windows of 1, 1 and 2 blocks: the largest of them instead of all.
        let share = shared_bytes as f64 / own_bytes as f64;
        assert!((0.4..0.6).contains(&share), "{shared_bytes} of {own_bytes}");
    }
}

#[test]
fn recomputed_activations_give_the_same_gradients() {
    let tiny = tiny();
    for device in devices() {
        check_recomputed(&tiny, &device);
    }
}

pub(crate) fn check_recomputed(tiny: &Tiny, device: &Device) {
    let trained = [lora(), Trained::Full];
    for (trained, windows) in trained.into_iter().zip([2, 1]) {
        let mut job = tiny.job(Format::F32, Format::F32, trained, windows);
        job.vote = false;
        let gradients = |job: &Job| {
            let mut trainer = Trainer::new(tiny.load(device, job), AdamW::default());
            let window = windows as usize - 1;
            // An update first: with B = 0 nothing flows back through A.
            trainer.step(window, &[batch()], 1e-2).expect("a step");
            trainer.gradients(window, &[batch()], 46).expect("gradients");
            (trainer.read_gradients(window).expect("gradients"), trainer.model.plan.bytes())
        };
        let (kept, kept_bytes) = gradients(&job);
        job.recompute = true;
        let (recomputed, bytes) = gradients(&job);
        assert!(bytes < kept_bytes, "{bytes} instead of less than {kept_bytes}");
        for (name, (_, want)) in &kept {
            let (_, got) = &recomputed[name];
            let scale = want.iter().fold(0f32, |m, x| m.max(x.abs()));
            for (got, want) in got.iter().zip(want) {
                assert!((got - want).abs() <= 1e-4 * scale + 1e-9, "{name}: {got} {want}");
            }
        }
    }
}

#[test]
fn a_window_gradient_equals_the_full_pass_at_its_exit() {
    // With one window over all blocks and the same exit, the top window's gradient is the same
    // whether or not the blocks below keep activations.
    let tiny = tiny();
    let device = cpu();
    let mut windowed = tiny.edge(&device, Format::F32);
    let mut job = tiny.job(Format::F32, Format::F16, lora(), 1);
    job.exit_norms = true;
    let mut whole = Trainer::new(tiny.load(&device, &job), AdamW::default());
    windowed.gradients(1, &[batch()], 46).expect("gradients");
    whole.gradients(0, &[batch()], 46).expect("gradients");
    let whole = whole.read_gradients(0).expect("gradients");
    let mut compared = 0;
    for (name, (_, got)) in windowed.read_gradients(1).expect("gradients") {
        let name = name.replace("ExitNorm(1)", "ExitNorm(0)");
        let (_, want) = &whole[&name];
        for (got, want) in got.iter().zip(want) {
            assert!((got - want).abs() <= 1e-5 + 1e-3 * want.abs(), "{name}: {got} for {want}");
        }
        compared += 1;
    }
    assert_eq!(compared, 2 * 14 + 1);
}

#[test]
fn one_batch_is_learned_by_heart() {
    let tiny = tiny();
    // No token occurs twice, so that nothing but the weights keeps the loss above zero.
    let batch = || Batch::new((0..48).map(|i| (29 * i + 5) % VOCAB as u32).collect(), SEQ_LEN);
    // Behind a frozen norm a hidden state has a fixed length, about sqrt(48), and the rows of the
    // frozen head have length 1: the best logit is about 7 against 138 others around 0, a loss of
    // 0.2. Full tuning moves norm and head, and has no such floor.
    for (trained, floor) in [(lora(), 0.3), (Trained::Full, 0.05)] {
        let lr = 1e-2;
        let job = tiny.job(Format::F32, Format::F32, trained, 1);
        let mut trainer = Trainer::new(tiny.load(&cpu(), &job), AdamW::default());
        let first = trainer.step(0, &[batch()], lr).expect("a step").loss;
        let mut last = first;
        for _ in 0..300 {
            last = trainer.step(0, &[batch()], lr).expect("a step").loss;
        }
        assert!(first > 4.0 && last < floor, "loss {first} -> {last}");
    }
}

/// Moments in 8 bits: a quarter of the memory, nearly the same losses, and the same on devices.
#[test]
fn moments_in_8_bits_learn_nearly_as_well() {
    let tiny = tiny();
    let trainer = |device: &Device, optimizer| {
        let job = Job { optimizer, ..tiny.job(Format::F32, Format::F32, lora(), 1) };
        Trainer::new(tiny.load(device, &job), AdamW::default())
    };
    let run = |mut trainer: Trainer, steps: usize| -> Vec<f64> {
        (0..steps).map(|_| trainer.step(0, &[batch()], 1e-2).expect("a step").loss).collect()
    };
    let bytes = |trainer: &Trainer| {
        let bytes = trainer.model.plan.bytes_by_category();
        bytes[Category::Optimizer.index()] as f64
    };
    let (wide, narrow) = (trainer(&cpu(), Optimizer::AdamW), trainer(&cpu(), Optimizer::AdamW8bit));
    let ratio = bytes(&narrow) / bytes(&wide);
    assert!((0.25..0.27).contains(&ratio), "{ratio} of the memory");
    let (wide, narrow) = (run(wide, 80), run(narrow, 80));
    assert_eq!(wide[0], narrow[0]);
    let (first, want, got) = (wide[0], wide[79], narrow[79]);
    assert!(want < 0.7 * first, "32 bits learn nothing: {first} to {want}");
    assert!((got - want).abs() < 0.05 * (first - want), "{got} for {want}, from {first}");
    let Some(device) = gpu() else { return };
    let again = run(trainer(&device, Optimizer::AdamW8bit), 5);
    for (a, b) in narrow.iter().zip(&again) {
        assert!((a - b).abs() < 1e-3, "cpu {narrow:?}, {} {again:?}", device.info().name);
    }
}

#[test]
fn devices_agree_on_training_and_repeat_themselves() {
    let tiny = tiny();
    let Some(device) = gpu() else { return };
    let run = |device: &Device| -> Vec<f64> {
        let mut trainer = tiny.edge(device, Format::Q4);
        let steps = 0..6;
        steps.map(|s| trainer.step(s % 2, &[batch()], 5e-3).expect("a step").loss).collect()
    };
    let (host, first, second) = (run(&cpu()), run(&device), run(&device));
    assert_eq!(first, second, "two runs on one device differ");
    for (a, b) in host.iter().zip(&first) {
        assert!((a - b).abs() < 1e-4, "cpu {host:?}, {} {first:?}", device.info().name);
    }
}

#[test]
fn accumulated_micro_batches_equal_one_batch() {
    let tiny = tiny();
    let ids = ids(2);
    let half = |row: usize| Batch::new(ids[row * SEQ_LEN..(row + 1) * SEQ_LEN].to_vec(), SEQ_LEN);
    for device in devices() {
        let whole = tiny.edge(&device, Format::F32).step(1, &[batch()], 1e-3).expect("a step");
        let parts = tiny.edge(&device, Format::F32).step(1, &[half(0), half(1)], 1e-3);
        let parts = parts.expect("a step");
        assert!((whole.loss - parts.loss).abs() < 1e-5);
        assert!((whole.grad_norm / parts.grad_norm - 1.0).abs() < 1e-4);
    }
}

#[test]
fn votes_follow_their_definition() {
    let tiny = tiny();
    for device in devices() {
        let mut trainer = tiny.edge(&device, Format::F32);
        let model = &mut trainer.model;
        let logits = model.exit_logits(&batch()).expect("logits");
        // Not fitted, the learned vote is the last exit's.
        for vote in Vote::ALL {
            let got = model.evaluate([batch()].into_iter(), vote, |_| ()).expect("losses");
            let want = vote_loss(&logits, &batch(), vote);
            assert!((got.vote - want).abs() < 1e-4, "{vote:?}: {} for {want}", got.vote);
        }
        let learned = Learned { temperatures: vec![0.7, 1.4], weights: vec![0.3, 0.7] };
        model.set_learned(learned.clone()).expect("a vote");
        let votes = model.evaluate_all([batch()].into_iter(), &Vote::ALL, |_| ()).expect("losses");
        let want = mixture_loss(&logits, &batch(), &learned);
        let got = votes.votes[3].val_loss;
        assert!((got - want).abs() < 1e-4, "{got} for {want}");
        assert!((votes.votes[2].val_loss - vote_loss(&logits, &batch(), Vote::Mean)).abs() < 1e-4);
    }
}

#[test]
fn a_fitted_vote_is_no_worse_than_any_exit_on_what_it_was_fitted_on() {
    let tiny = tiny();
    for device in devices() {
        let mut trainer = tiny.edge(&device, Format::F32);
        for step in 0..30 {
            trainer.step(step % 2, &[batch()], 5e-3).expect("a step");
        }
        let model = &mut trainer.model;
        let other = || [Batch::new(ids(2).iter().map(|id| (id * 3 + 1) % 139).collect(), SEQ_LEN)];
        let scores = model.score_exits(other().into_iter(), || ()).expect("scores");
        let learned = scores.fit().expect("a fit");
        model.set_learned(learned.clone()).expect("a vote");
        let result = model.evaluate_all(other().into_iter(), &Vote::ALL, |_| ()).expect("losses");
        for (exit, loss) in result.exits.iter().enumerate() {
            assert!((scores.exit_loss(exit) - loss).abs() < 1e-5, "exit {exit}");
            assert!(result.votes[3].val_loss <= loss + 1e-4, "{result:?}");
        }
        let (host, device) = (scores.vote_loss(&learned).expect("a loss"), &result.votes[3]);
        assert!((host - device.val_loss).abs() < 1e-5, "{host} for {device:?}");
    }
}

/// The learned vote in f64.
pub(crate) fn mixture_loss(exits: &[Vec<f32>], batch: &Batch, learned: &Learned) -> f64 {
    let counted = batch.targets.iter().enumerate();
    let counted = counted.filter(|(_, target)| **target != edge_runtime::batch::IGNORE);
    let losses = counted.map(|(row, &target)| {
        let voters = exits.iter().zip(&learned.temperatures).zip(&learned.weights);
        let p = voters.map(|((logits, &temperature), &weight)| {
            let row = &logits[row * VOCAB..(row + 1) * VOCAB];
            let exp = row.iter().map(|&z| (f64::from(z) / f64::from(temperature)).exp());
            let exp: Vec<f64> = exp.collect();
            f64::from(weight) * exp[target as usize] / exp.iter().sum::<f64>()
        });
        -p.sum::<f64>().ln()
    });
    losses.sum::<f64>() / batch.trained_tokens as f64
}

/// The vote in f64: `max` renormalises, `mean` averages, `last` takes the top exit.
pub(crate) fn vote_loss(exits: &[Vec<f32>], batch: &Batch, vote: Vote) -> f64 {
    let mut sum = 0.0;
    for (row, &target) in batch.targets.iter().enumerate() {
        if target == edge_runtime::batch::IGNORE {
            continue;
        }
        let softmax = |logits: &Vec<f32>| -> Vec<f64> {
            let row = &logits[row * VOCAB..(row + 1) * VOCAB];
            let exp: Vec<f64> = row.iter().map(|&z| f64::from(z).exp()).collect();
            let total: f64 = exp.iter().sum();
            exp.iter().map(|e| e / total).collect()
        };
        let all: Vec<Vec<f64>> = exits.iter().map(softmax).collect();
        let combined: Vec<f64> = (0..VOCAB)
            .map(|v| match vote {
                Vote::Last | Vote::Learned => all[all.len() - 1][v],
                Vote::Max => all.iter().map(|p| p[v]).fold(0.0, f64::max),
                Vote::Mean => all.iter().map(|p| p[v]).sum::<f64>(),
            })
            .collect();
        let total: f64 = combined.iter().sum();
        sum -= (combined[target as usize] / total).ln();
    }
    sum / batch.trained_tokens as f64
}

#[test]
fn the_plan_is_what_is_allocated() {
    let tiny = tiny();
    for (format, optimizer) in [
        (Format::F32, Optimizer::AdamW8bit),
        (Format::Bf16, Optimizer::AdamW),
        (Format::Q8, Optimizer::AdamW),
        (Packing::new(4).group_size(64).format(), Optimizer::AdamW8bit),
        (Format::Q3, Optimizer::AdamW),
    ] {
        for trained in [lora(), Trained::Full, Trained::Nothing] {
            for windows in [1, 3] {
                if trained == Trained::Full && windows > 1 {
                    continue;
                }
                let device = Device::open("cpu", &Options::default()).expect("the cpu device");
                let mut job = tiny.job(format, Format::F16, trained.clone(), windows);
                job.training = trained != Trained::Nothing;
                job.optimizer = optimizer;
                let model = tiny.load(&device, &job);
                assert_eq!(device.memory().peak, model.plan.bytes_by_category());
            }
        }
    }
}
