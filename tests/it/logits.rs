//! Chunks of logits: wherever they lie and however they are cut, loss, gradients and logits are the
//! same.

use edge_gpu::Device;
use edge_kernels::Format;
use edge_runtime::batch::Batch;
use edge_runtime::tune::trainer::{AdamW, Trainer};
use edge_scheduler::logits::LogitsChunk;
use edge_scheduler::{Job, Trained};
use edge_tests::tiny;
use serde_json::json;

use crate::model::{Tiny, devices, lora, tiny_of};

const SEQ_LEN: usize = 24;

/// Two shards of the head.
const VOCAB: u32 = 8300;

/// More rows than a chunk has, the last one of them shorter.
fn batch() -> Batch {
    let id = |i: u32| (i * i * 7 + i * 131 + 5) % VOCAB;
    Batch::new((0..4 * SEQ_LEN as u32).map(id).collect(), SEQ_LEN)
}

fn wide(intermediate_size: u32) -> Tiny {
    let mut config = tiny::config();
    config["vocab_size"] = json!(VOCAB);
    config["intermediate_size"] = json!(intermediate_size);
    tiny_of(&config)
}

struct Found {
    chunk: LogitsChunk,
    values: Vec<(String, Vec<f32>)>,
}

fn found(model: &Tiny, device: &Device, (trained, windows): (&Trained, u32), bytes: u64) -> Found {
    let job = model.job(Format::F32, Format::F32, trained.clone(), windows);
    let job = Job { batch: 4, eval_batch: 4, logits_bytes: bytes, ..job };
    let mut trainer = Trainer::new(model.load(device, &job), AdamW::default());
    let (batch, window) = (batch(), windows as usize - 1);
    trainer.step(window, std::slice::from_ref(&batch), 1e-2).expect("a step");
    trainer.gradients(window, std::slice::from_ref(&batch), 92).expect("gradients");
    let loss = device.read_f32(&trainer.model.workspace.loss).expect("a loss");
    let mut values = vec![("loss".to_owned(), loss)];
    let gradients = trainer.read_gradients(window).expect("gradients");
    values.extend(gradients.into_iter().map(|(name, (_, values))| (name, values)));
    values.push(("logits".into(), trainer.model.all_logits(&batch).expect("logits")));
    if windows > 1 {
        let scores = trainer.model.score_exits([batch].into_iter(), || ()).expect("scores");
        values.push(("scores".into(), scores.log_p.into_iter().flatten().flatten().collect()));
    }
    Found { chunk: trainer.model.plan.logits, values }
}

#[test]
fn wherever_chunks_lie_nothing_changes() {
    // In a buffer of its own, one shard at a time or whole; in that of the blocks, whole.
    let own_whole = |chunk: LogitsChunk| chunk.whole && !chunk.in_hidden && chunk.tokens == 64;
    let shard = |chunk: LogitsChunk| !chunk.whole && !chunk.in_hidden && chunk.tokens == 64;
    let in_hidden = |chunk: LogitsChunk| chunk.whole && chunk.in_hidden && chunk.tokens == 64;
    let cases: [(u32, &dyn Fn(LogitsChunk) -> bool); 2] = [(100, &shard), (5600, &in_hidden)];
    for (intermediate_size, small) in cases {
        let model = wide(intermediate_size);
        for device in devices() {
            for kind in [(&lora(), 2), (&Trained::Full, 1)] {
                let (got, want) = (found(&model, &device, kind, 0), 64 << 20);
                let want = found(&model, &device, kind, want);
                assert!(own_whole(want.chunk), "{:?}", want.chunk);
                assert!(small(got.chunk), "{:?}", got.chunk);
                assert_eq!(got.values.len(), want.values.len());
                for ((name, got), (_, want)) in got.values.iter().zip(&want.values) {
                    let scale = want.iter().fold(0f32, |most, value| most.max(value.abs()));
                    let near = |(a, b): (&f32, &f32)| (a - b).abs() <= 1e-4 * scale + 1e-9;
                    assert!(got.iter().zip(want).all(near), "{name} on {}", device.info().name);
                }
            }
        }
    }
}
