//! Low-rank terms of exits beside the head: against models whose head is another one, and its
//! gradient by method `full`.

use std::collections::BTreeMap;

use edge_gpu::{Device, Options};
use edge_kernels::Format;
use edge_kernels::util::{seeded, uniform_vec};
use edge_runtime::exits::{ExitTerms, Exits, Vote};
use edge_runtime::family::names::HEAD;
use edge_runtime::model::Model;
use edge_runtime::tune::trainer::{AdamW, Trainer};
use edge_runtime::vote::Learned;
use edge_scheduler::{Job, Owner, Trained};
use edge_tests::{cpu, gpu, largest_difference};

use crate::model::{Tiny, batch, lora, mixture_loss, tiny, vote_loss};

const RANK: usize = 5;
const SCALE: f32 = 1.5;
const VOCAB: usize = 139;
const HIDDEN: usize = 48;

/// Binds less than the head, which then is cut into shards.
const SMALL_BINDING_BYTES: u64 = 20 << 10;

fn devices() -> Vec<Device> {
    let small = Options { max_binding_bytes: Some(SMALL_BINDING_BYTES), ..Options::default() };
    let host = Device::open("cpu", &small).expect("the cpu device");
    let other = gpu().map(|device| Device::open(&device.info().name, &small).expect("again"));
    [Some(cpu()), Some(host), gpu(), other].into_iter().flatten().collect()
}

fn terms() -> ExitTerms {
    let mut rng = seeded(11);
    let mut draw = |count| uniform_vec(&mut rng, count, -0.3, 0.3);
    let matrices = (0..2).map(|_| (draw(RANK * HIDDEN), draw(VOCAB * RANK))).collect();
    ExitTerms { rank: RANK, scale: SCALE, matrices }
}

/// The head with an exit's term in it.
fn merged_head(tiny: &Tiny, (a, b): &(Vec<f32>, Vec<f32>)) -> Vec<f32> {
    let mut head = tiny.tensor(HEAD);
    for (row, b) in head.chunks_mut(HIDDEN).zip(b.chunks(RANK)) {
        for (a, b) in a.chunks(HIDDEN).zip(b) {
            row.iter_mut().zip(a).for_each(|(w, a)| *w += SCALE * b * a);
        }
    }
    head
}

type Gradients = BTreeMap<String, (Owner, Vec<f32>)>;

fn close(name: &str, got: &[f32], want: &[f32]) {
    let scale = want.iter().fold(0f32, |most, x| most.max(x.abs()));
    let off = largest_difference(got, want);
    assert!(off <= 1e-4 * scale + 1e-8, "{name}: {off} of {scale}");
}

#[test]
fn a_term_acts_as_if_it_were_in_the_head() {
    let tiny = tiny();
    let base = tiny.job(Format::F32, Format::F32, lora(), 2);
    let job = Job { exit_rank: RANK as u32, ..base.clone() };
    for device in devices() {
        let mut model = tiny.load(&device, &job);
        let plain = tiny.load(&device, &base).exit_logits(&batch()).expect("logits");
        // As it starts it adds nothing.
        for (got, want) in model.exit_logits(&batch()).expect("logits").iter().zip(&plain) {
            assert!(largest_difference(got, want) < 1e-5);
        }
        let gammas = model.exit_gammas().expect("norms");
        let (after_block, terms) = (vec![2, 4], Some(terms()));
        let (learned, vote, isolated) = (None, Vote::Last, false);
        model
            .set_exits(&Exits { after_block, vote, gammas, terms, learned, isolated })
            .expect("set");
        let logits = model.exit_logits(&batch()).expect("logits");
        // Votes of this batch are more than the small devices bind.
        if device.info().max_binding_bytes > SMALL_BINDING_BYTES {
            votes_follow(&mut model, &logits);
        }
        let mut trainer = Trainer::new(model, AdamW::default());
        for (exit, term) in self::terms().matrices.iter().enumerate() {
            let merged = tiny.with_head(&merged_head(&tiny, term));
            let mut whole = Trainer::new(merged.load(&device, &base), AdamW::default());
            let want = &whole.model.exit_logits(&batch()).expect("logits")[exit];
            assert!(largest_difference(&logits[exit], want) < 1e-4, "{device:?}, exit {exit}");
            assert!(largest_difference(&logits[exit], &plain[exit]) > 0.1, "it does nothing");
            trainer.gradients(exit, &[batch()], 46).expect("gradients");
            whole.gradients(exit, &[batch()], 46).expect("gradients");
            let own = trainer.read_gradients(exit).expect("gradients");
            for (name, (_, want)) in whole.read_gradients(exit).expect("gradients") {
                close(&name, &own[&name].1, &want);
            }
            if exit == 1 {
                term_gradients_are_those_of_the_head(&merged, term, &own);
            }
        }
    }
}

fn votes_follow(model: &mut Model, logits: &[Vec<f32>]) {
    for vote in [Vote::Last, Vote::Max, Vote::Mean] {
        let got = model.evaluate([batch()].into_iter(), vote, |_| ()).expect("losses").vote;
        let want = vote_loss(logits, &batch(), vote);
        assert!((got - want).abs() < 1e-4, "{vote:?}: {got} for {want}");
    }
    let learned = Learned { temperatures: vec![0.7, 1.4], weights: vec![0.3, 0.7] };
    model.set_learned(learned.clone()).expect("a vote");
    let got = model.evaluate([batch()].into_iter(), Vote::Learned, |_| ()).expect("losses").vote;
    let want = mixture_loss(logits, &batch(), &learned);
    assert!((got - want).abs() < 1e-4, "learned: {got} for {want}");
}

/// dB = scale · dW·Aᵀ and dA = scale · Bᵀ·dW, where dW is the gradient of a head that is trained.
fn term_gradients_are_those_of_the_head(
    merged: &Tiny,
    (a, b): &(Vec<f32>, Vec<f32>),
    own: &Gradients,
) {
    let job = merged.job(Format::F32, Format::F32, Trained::Full, 1);
    let mut full = Trainer::new(merged.load(&cpu(), &job), AdamW::default());
    full.gradients(0, &[batch()], 46).expect("gradients");
    let mut d_w = vec![0.0f32; VOCAB * HIDDEN];
    for (owner, values) in full.read_gradients(0).expect("gradients").values() {
        if let Owner::Head(shard) = owner {
            let first = shard.row0 as usize * HIDDEN;
            d_w[first..first + values.len()].copy_from_slice(values);
        }
    }
    let (mut d_a, mut d_b) = (vec![0.0f32; RANK * HIDDEN], vec![0.0f32; VOCAB * RANK]);
    for (v, d_w) in d_w.chunks(HIDDEN).enumerate() {
        for r in 0..RANK {
            let at = r * HIDDEN..(r + 1) * HIDDEN;
            d_b[v * RANK + r] =
                SCALE * a[at.clone()].iter().zip(d_w).map(|(a, d)| a * d).sum::<f32>();
            let b = SCALE * b[v * RANK + r];
            d_a[at].iter_mut().zip(d_w).for_each(|(d_a, d)| *d_a += b * d);
        }
    }
    assert!(d_a.iter().chain(&d_b).any(|d| d.abs() > 1e-4), "no gradient to compare");
    let of = |owner| &own.values().find(|(found, _)| *found == owner).expect("an entry").1;
    close("dA", of(Owner::ExitA(1)), &d_a);
    close("dB", of(Owner::ExitB(1)), &d_b);
}

#[test]
fn a_term_is_trained_with_its_window_alone() {
    let tiny = tiny();
    let base = tiny.job(Format::Q8, Format::Q8, lora(), 2);
    for isolated in [false, true] {
        let job = Job { exit_rank: 3, isolated, phases: isolated, ..base.clone() };
        for device in [Some(cpu()), gpu()].into_iter().flatten() {
            let mut trainer = Trainer::new(tiny.load(&device, &job), AdamW::default());
            let read =
                |trainer: &Trainer| trainer.model.exit_terms().expect("read").expect("terms");
            for window in 0..2 {
                trainer.begin(window).expect("a phase");
                let before = read(&trainer).matrices;
                let first = trainer.step(window, &[batch()], 1e-2).expect("a step").loss;
                let second = trainer.step(window, &[batch()], 1e-2).expect("a step").loss;
                assert!(second < first, "{second} {first}");
                let after = read(&trainer).matrices;
                for exit in 0..2 {
                    // B moves in the first step and lets a gradient through to A.
                    let (old, new) = (&before[exit], &after[exit]);
                    let moved = (old.0 != new.0, old.1 != new.1);
                    assert_eq!(moved, (exit == window, exit == window), "exit {exit}");
                }
            }
        }
    }
}

#[test]
fn exits_of_another_rank_are_refused() {
    let tiny = tiny();
    let job = Job { exit_rank: 3, ..tiny.job(Format::F32, Format::F32, lora(), 2) };
    let mut model = tiny.load(&cpu(), &job);
    let gammas = model.exit_gammas().expect("norms");
    let exits = Exits {
        after_block: vec![2, 4],
        vote: Vote::Last,
        gammas,
        terms: Some(terms()),
        learned: None,
        isolated: false,
    };
    let error = model.set_exits(&exits).expect_err("rank 5 for 3").to_string();
    assert!(error.contains("exits of rank 3"), "{error}");
}
