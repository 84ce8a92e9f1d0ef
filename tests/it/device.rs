//! Devices: memory, errors, recording, profile. On the `cpu` device and on an adapter alike.

use edge_gpu::{Buffer, Device, Error, Options};
use edge_kernels::op::Op;
use edge_kernels::ops::matmul::matmul_nt;
use edge_kernels::ops::norm::rms_norm_forward::dispatch;
use edge_kernels::tuning::{Bucket, Tuning};
use edge_kernels::util::seeded;
use edge_kernels::{Call, Category, Dispatch};
use edge_tests::{compare, cpu, gpu, gpu_with};

/// The `cpu` device, and an adapter where there is one.
fn devices() -> Vec<Device> {
    std::iter::once(cpu()).chain(gpu()).collect()
}

fn filled(device: &Device, label: &str, values: &[f32]) -> Buffer {
    let words = values.len() as u64;
    let fill = |out: &mut [u32]| out.copy_from_slice(bytemuck::cast_slice(values));
    device.buffer_init(label, Category::Activations, words, fill).expect("a small buffer")
}

fn zeros(device: &Device, label: &str, words: u64) -> Buffer {
    device.buffer(label, words, Category::Activations).expect("a small buffer")
}

fn ramp(count: usize) -> Vec<f32> {
    (0..count).map(|i| ((i * 37 % 101) as f32 - 50.0) / 25.0).collect()
}

/// Normalises `x` again and again, `rounds` times, through two buffers.
fn chain(device: &Device, rows: u32, cols: u32, rounds: usize) -> Vec<f32> {
    let count = (rows * cols) as usize;
    let a = filled(device, "a", &ramp(count));
    let w = filled(device, "w", &vec![1.25; cols as usize]);
    let (b, rstd) = (zeros(device, "b", count as u64), zeros(device, "rstd", u64::from(rows)));
    let mut recorder = device.recorder();
    for round in 0..rounds {
        let (x, y) = if round.is_multiple_of(2) { (&a, &b) } else { (&b, &a) };
        let (x, y) = (x.whole(), y.whole());
        recorder.push(dispatch(rows, cols, 1e-5, x, w.whole(), y, rstd.whole()));
    }
    recorder.submit().expect("the chain runs");
    let last = if rounds.is_multiple_of(2) { &a } else { &b };
    device.read_f32(&last.whole()).expect("reading the result")
}

#[test]
fn fresh_buffers_are_zero_and_writes_come_back() {
    for device in devices() {
        let buffer = zeros(&device, "x", 1000);
        assert_eq!(device.read(&buffer.whole()), Ok(vec![0; 1000]));
        let at = device.info().alignment_words;
        let slice = buffer.slice(at, 10);
        device.write(&slice, &[7; 10]).expect("writing a slice");
        let all = device.read(&buffer.whole()).expect("reading");
        let inside = |i: usize| (at..at + 10).contains(&(i as u64));
        assert!((0..1000).all(|i| all[i] == if inside(i) { 7 } else { 0 }), "{device:?}");
        let error = device.write(&slice, &[1; 9]).expect_err("one word is missing");
        assert_eq!(error.to_string(), "buffer 'x' takes 10 words here but was given 9");
    }
}

#[test]
fn large_transfers_are_cut_into_pieces() {
    // Above the pieces of writing and reading (1 MiB each), and no multiple of them.
    let words = (5 << 20) + 3;
    let value = |i: usize| (i as u32).wrapping_mul(2_654_435_761);
    let unmapped = gpu_with(&Options { disable_mapping: true, ..Options::default() });
    for device in devices().into_iter().chain(unmapped) {
        let fill = |out: &mut [u32]| {
            assert_eq!(out.len(), words);
            out.iter_mut().enumerate().for_each(|(i, word)| *word = value(i));
        };
        let first = device.buffer_init("first", Category::Weights, words as u64, fill);
        let first = first.expect("20 MiB");
        let second = device.buffer("second", words as u64, Category::Weights).expect("20 MiB");
        let copy = device.read(&first.whole()).expect("reading");
        assert!((0..words).all(|i| copy[i] == value(i)), "{device:?}: buffer_init");
        device.write(&second.whole(), &copy).expect("writing");
        assert!(device.read(&second.whole()).expect("reading") == copy, "{device:?}: write");
        let pieces = device.write_with(&second.whole(), |at, piece| {
            piece.iter_mut().zip(at as u32..).for_each(|(word, i)| *word = !i);
        });
        pieces.expect("writing in pieces");
        let copy = device.read(&second.whole()).expect("reading");
        assert!((0..words).all(|i| copy[i] == !(i as u32)), "{device:?}: write_with");
        let staging = device.memory().peak[Category::Staging.index()];
        assert!(staging <= 10 << 20, "{device:?}: {staging} bytes of staging");
    }
}

#[test]
fn memory_is_charged_and_given_back() {
    for device in devices() {
        let start = device.memory();
        let weights = device.buffer("w", 1000, Category::Weights).expect("small");
        let gradients = device.buffer("g", 500, Category::Gradients).expect("small");
        let slice = weights.slice(0, 10);
        drop(weights);
        let report = device.memory();
        assert_eq!(report.current[Category::Weights.index()], 4000, "a slice keeps the buffer");
        assert_eq!(report.current_total - start.current_total, 6000);
        drop(gradients);
        drop(slice);
        let report = device.memory();
        assert_eq!(report.current, start.current);
        assert_eq!(report.peak_total - start.current_total, 6000);
        device.reset_peak();
        assert_eq!(device.memory().peak_total, start.current_total);
    }
}

#[test]
fn sealing_ends_allocation() {
    for device in devices() {
        device.seal();
        let error = device.buffer("late", 16, Category::Logits).expect_err("sealed");
        assert_eq!(error, Error::Sealed { label: "late".into(), bytes: 64 });
        assert!(device.buffer_init("late", Category::Logits, 16, |_| {}).is_err());
        device.unseal();
        assert!(device.buffer("late", 16, Category::Logits).is_ok());
    }
}

#[test]
fn impossible_buffers_are_errors_that_name_them() {
    for device in devices() {
        let error = device.buffer("none", 0, Category::Logits).expect_err("no words");
        assert_eq!(error, Error::EmptyBuffer { label: "none".into() });
        let error = device.buffer("huge", u64::MAX / 8, Category::Logits).expect_err("too large");
        assert!(error.to_string().contains("'huge'"), "{error}");
        assert_eq!(device.memory().current[Category::Logits.index()], 0);
    }
}

#[test]
fn a_dispatch_that_cannot_run_is_an_error_that_names_it() {
    let options = Options { max_binding_bytes: Some(4096), ..Options::default() };
    let limited = Device::open("cpu", &options).expect("cpu");
    for device in devices().into_iter().chain([limited]).chain(gpu_with(&options)) {
        let (x, w) = (zeros(&device, "x", 1024), zeros(&device, "w", 512));
        let (y, rstd) = (zeros(&device, "y", 1024), zeros(&device, "rstd", 2));
        let run = |dispatch: Dispatch<_>| {
            let mut recorder = device.recorder();
            recorder.push(dispatch);
            recorder.submit()
        };
        let good = || {
            let slices = [&x, &w, &y, &rstd].map(Buffer::whole);
            let [x, w, y, rstd] = slices;
            dispatch(2, 512, 1e-5, x, w, y, rstd)
        };
        assert_eq!(run(good()), Ok(()));

        let mut wrong = good();
        wrong.bindings.pop();
        let error = run(wrong).expect_err("a binding is missing");
        assert_eq!(error, Error::BindingCount { op: "rms_norm_forward", expected: 4, found: 3 });

        let mut wrong = good();
        wrong.bindings[2] = x.whole();
        let error = run(wrong).expect_err("x is read and written");
        assert!(matches!(error, Error::BindingOverlap { written: "y", other: "x", .. }), "{error}");

        let mut wrong = good();
        wrong.bindings[1] = zeros(&cpu(), "elsewhere", 512).whole();
        let error = run(wrong).expect_err("another device's buffer");
        assert!(error.to_string().contains("'elsewhere' belongs to another device"), "{error}");

        let mut wrong = good();
        wrong.bindings[0] = zeros(&device, "long", 1025).whole();
        let limited = device.info().max_binding_bytes == 4096;
        let result = run(wrong);
        let refused = matches!(
            result,
            Err(Error::BindingTooLarge { binding: "x", bytes: 4100, limit: 4096, .. })
        );
        assert_eq!(refused, limited, "{device:?}: {result:?}");

        // The device goes on, and so does a recorder behind an error.
        assert_eq!(run(good()), Ok(()));
    }
}

#[test]
fn nothing_behind_an_error_runs() {
    for device in devices() {
        let x = filled(&device, "x", &ramp(64));
        let [w, y, rstd] =
            [zeros(&device, "w", 64), zeros(&device, "y", 64), zeros(&device, "r", 1)];
        let good = || dispatch(1, 64, 1e-5, x.whole(), w.whole(), y.whole(), rstd.whole());
        let mut recorder = device.recorder();
        let mut wrong = good();
        wrong.bindings.pop();
        recorder.push(wrong);
        recorder.push(good());
        assert!(recorder.submit().is_err());
        assert_eq!(device.read_f32(&rstd.whole()), Ok(vec![0.0]), "{device:?}");
        recorder.push(good());
        assert_eq!(recorder.submit(), Ok(()));
        assert_ne!(device.read_f32(&rstd.whole()), Ok(vec![0.0]), "{device:?}");
    }
}

#[test]
fn unknown_selectors_list_the_choices() {
    let error = Device::open("no such gpu", &Options::default()).expect_err("unknown");
    assert!(error.to_string().contains(": cpu (host)"), "{error}");
    let list = Device::list();
    assert_eq!(list.last().map(|last| last.name.as_str()), Some("cpu"));
    let last = (list.len() - 1).to_string();
    let device = Device::open(&last, &Options::default()).expect("the cpu device by index");
    assert_eq!(device.info().name, "cpu");
}

#[test]
fn an_adapter_and_the_cpu_device_agree_on_a_recording() {
    let want = chain(&cpu(), 9, 70, 7);
    let tolerance = edge_kernels::op::Tolerance { abs: 1e-5, rel: 1e-5, why: "seven rounds" };
    let modes = [
        Options::default(),
        Options { disable_immediates: true, ..Options::default() },
        Options { checked: true, ..Options::default() },
        Options { profile: true, ..Options::default() },
        Options { variant: Some("plain".into()), ..Options::default() },
    ];
    for options in modes {
        let Some(device) = gpu_with(&options) else { return };
        let got = chain(&device, 9, 70, 7);
        compare(&got, &want, tolerance).unwrap_or_else(|error| panic!("{options:?}: {error}"));
    }
}

#[test]
fn long_recordings_are_cut_into_submissions() {
    // More dispatches than a submission holds: parameters, order and results must survive.
    let rounds = 1300;
    let want = chain(&cpu(), 2, 33, rounds);
    let tolerance = edge_kernels::op::Tolerance { abs: 1e-4, rel: 1e-4, why: "many rounds" };
    for disable_immediates in [false, true] {
        let options = Options { disable_immediates, ..Options::default() };
        let Some(device) = gpu_with(&options) else { return };
        let got = chain(&device, 2, 33, rounds);
        compare(&got, &want, tolerance).unwrap_or_else(|error| panic!("{options:?}: {error}"));
        assert_eq!(device.wait(), Ok(()));
    }
}

#[test]
fn the_profile_counts_every_call() {
    let options = Options { profile: true, ..Options::default() };
    let host = Device::open("cpu", &options).expect("cpu");
    for device in std::iter::once(host).chain(gpu_with(&options)) {
        chain(&device, 16, 512, 150);
        let profile = device.take_profile();
        assert_eq!(profile.len(), 1, "{profile:?}");
        assert_eq!((profile[0].op, profile[0].calls), ("rms_norm_forward", 150));
        assert!(profile[0].total_ms > 0.0, "{profile:?}");
        assert!(device.take_profile().is_empty());
    }
    let plain = cpu();
    chain(&plain, 1, 8, 1);
    assert!(plain.take_profile().is_empty(), "only with Options::profile");
}

#[test]
fn bind_groups_go_with_their_buffers() {
    let Some(device) = gpu() else { return };
    chain(&device, 2, 33, 6);
    assert_eq!(device.cached_bind_groups(), 0, "all buffers of the chain are gone");
    let x = filled(&device, "x", &ramp(64));
    let [w, y, rstd] = [zeros(&device, "w", 64), zeros(&device, "y", 64), zeros(&device, "r", 1)];
    for _ in 0..3 {
        let mut recorder = device.recorder();
        recorder.push(dispatch(1, 64, 1e-5, x.whole(), w.whole(), y.whole(), rstd.whole()));
        recorder.submit().expect("runs");
    }
    assert_eq!(device.cached_bind_groups(), 1);
    drop(rstd);
    assert_eq!(device.cached_bind_groups(), 0);
}

#[test]
fn devices_are_shared_between_threads() {
    for device in devices() {
        let want = chain(&device, 3, 40, 5);
        std::thread::scope(|scope| {
            let threads: Vec<_> = (0..4)
                .map(|_| scope.spawn(|| (0..5).map(|_| chain(&device, 3, 40, 5)).collect()))
                .collect();
            for thread in threads {
                let results: Vec<Vec<f32>> = thread.join().expect("no panic");
                assert!(results.iter().all(|got| *got == want), "{device:?}");
            }
        });
    }
}

/// The variants that a product ran, each with how often, since the last time.
fn ran(device: &Device, call: &Call) -> Vec<(&'static str, u64)> {
    let op = &matmul_nt::MatmulNt;
    let contents = op.buffers(call, &mut seeded(1));
    let mut bindings = Vec::new();
    for (contents, binding) in contents.iter().zip(op.bindings(call)) {
        let words = contents.words();
        let copy = |out: &mut [u32]| out.copy_from_slice(&words);
        let len = words.len() as u64;
        let buffer = device.buffer_init(binding.name, Category::Activations, len, copy);
        bindings.push(buffer.expect("a small buffer").whole());
    }
    let mut recorder = device.recorder();
    for _ in 0..2 {
        recorder.push(Dispatch::new(op, *call, bindings.clone()));
    }
    recorder.submit().expect("the product runs");
    let times = device.take_profile();
    times.iter().map(|time| (time.variant, time.calls)).collect()
}

#[test]
fn what_was_chosen_first_gives_way_to_what_was_measured() {
    let Some(device) = gpu_with(&Options { profile: true, ..Options::default() }) else { return };
    let call = Call::new(&matmul_nt::Params::dense(64, 64, 64));
    let variants = device.variants(&matmul_nt::MatmulNt, &call);
    let (first, last) = (variants[0].name, variants[variants.len() - 1].name);
    assert_ne!(first, last, "there is something to choose");
    assert_eq!(ran(&device, &call), [(first, 2)]);
    let bucket = Bucket::of(&matmul_nt::MatmulNt, &call).expect("products have sizes");
    let mut tuning = Tuning::default();
    tuning.set(bucket, last);
    device.set_tuning(tuning.clone());
    assert_eq!(ran(&device, &call), [(last, 2)], "behind a dispatch of the same call");
    // The first tuning counts.
    tuning.set(bucket, first);
    device.set_tuning(tuning);
    assert_eq!(ran(&device, &call), [(last, 2)]);
}
