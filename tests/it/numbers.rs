//! Losses and gradients that are no numbers: such a step changes nothing, and a run of them ends
//! with what was learned before.

use edge_gpu::Device;
use edge_runtime::batch::Batch;
use edge_runtime::run_dir::RunState;
use edge_runtime::tune::trainer::{AdamW, Trainer};
use edge_scheduler::{Path, Projection};
use edge_tests::{cpu, gpu};
use tempfile::TempDir;

use crate::commands::{demo, refused};
use crate::model::tiny;
use crate::stream::job;

fn is_cpu(device: &Device) -> bool {
    device.info().name == "cpu"
}

#[test]
fn a_step_whose_loss_is_no_number_changes_nothing() {
    let tiny = tiny();
    let job = job(&tiny, Path::Rows, false);
    let ids: Vec<u32> = (0..24).map(|i| (i * i * 7 + 5) % 139).collect();
    let batches = [Batch::new(ids, 24)];
    let bits = |trainer: &Trainer| -> Vec<u32> {
        let weights = trainer.model.adapter().expect("an adapter");
        let all = weights.values().flat_map(|(a, b)| a.iter().chain(b));
        all.map(|x| x.to_bits()).collect()
    };
    for device in [Some(cpu()), gpu()].into_iter().flatten() {
        let mut trainer = Trainer::new(tiny.load(&device, &job), AdamW::default());
        trainer.step(1, &batches, 1e-2).expect("a step");
        let weights = trainer.model.adapter().expect("an adapter");
        // Every adapter below the window or in it, so that what comes through it is no number.
        for (place, poison) in weights.keys().zip([f32::NAN, f32::INFINITY].iter().cycle()) {
            let mut poisoned = weights.clone();
            poisoned.get_mut(place).expect("an adapter").1.fill(*poison);
            trainer.model.set_adapter(&poisoned).expect("set");
            let (before, updates) = (bits(&trainer), trainer.updates().to_vec());
            let outcome = trainer.step(1, &batches, 1e-2).expect("a step");
            // Shading languages promise nothing about NaN, and the exponential of lavapipe, which
            // softmax takes of scores, makes a number of it.
            let hidden = matches!(place.1, Projection::Q | Projection::K) && !is_cpu(&device);
            if hidden && outcome.is_finite() {
                continue;
            }
            assert!(!outcome.is_finite(), "{place:?} {poison} on {device:?}: {outcome:?}");
            assert!(before == bits(&trainer), "{place:?} {poison} on {device:?} moved weights");
            assert_eq!(updates, trainer.updates(), "{place:?} {poison} was counted as an update");
        }
    }
}

#[test]
fn a_run_that_diverges_ends_with_what_was_learned_before() {
    let dir = TempDir::new().expect("a folder");
    let (out, data) = (dir.path().join("run"), demo("valid.txt"));
    let (model, shown) = (demo("model"), out.display().to_string());
    // AdamW moves each weight by about the learning rate, whatever the gradient.
    let args = "tune --device cpu --method full --lr 999 --schedule constant --clip 0 \
                --warmup-steps 0 --steps 60 --batch-size 1 --seq-len 16 --val-fraction 0.02 \
                --checkpoint-every 1 --weight-decay 999";
    let mut args: Vec<&str> = args.split_whitespace().collect();
    args.extend(["--model", &model, "--data", &data, "--out", &shown]);
    let text = refused(&args, 1);
    let end = text.lines().last().expect("a line");
    assert!(end.contains("was no number in the last 8 steps") && end.contains(&shown), "{text}");
    assert!(text.contains("is left out, its loss or gradient is no number"), "{text}");
    assert!(matches!(RunState::of(&out).expect("a state"), RunState::Failed(_)));
    // The newest checkpoint, which the sentence names, is whole.
    let kept = end.split_whitespace().find(|word| word.contains("step-")).expect("a checkpoint");
    assert!(std::path::Path::new(kept).join("state.safetensors").is_file(), "{text}");
}
