//! Criterion over the registry's bench cases, on `EDGE_BENCH_DEVICE` (else `auto`):
//! `cargo bench -p kernels-bench`; with `-- --test` each runs once, its answer checked.

use std::time::Duration;

use criterion::{Criterion, criterion_group, criterion_main};
use edge_gpu::{Device, Options};
use kernels_bench::Subject;
use kernels_bench::runner::{Prepared, Which, default_selector};

/// Most dispatches that one submission takes.
const CHUNK: u64 = 256;

fn ops(criterion: &mut Criterion) {
    let options = Options { profile: true, ..Options::default() };
    let selector = default_selector();
    let device = Device::open(&selector, &options)
        .unwrap_or_else(|error| panic!("EDGE_BENCH_DEVICE `{selector}`: {error}"));
    for subject in Subject::own() {
        criterion.bench_function(&subject.name(), |bencher| {
            let prepared = Prepared::new(&subject, &device, Which::Production)
                .unwrap_or_else(|error| panic!("{error:#}"));
            if let Some(error) = prepared.wrong.first() {
                panic!("{error:#}");
            }
            bencher.iter_custom(|iterations| {
                let mut total_ms = 0.0;
                let mut left = iterations;
                while left > 0 {
                    let count = left.min(CHUNK);
                    let mean_ms = prepared
                        .time(&prepared.choices[0], count as u32)
                        .unwrap_or_else(|error| panic!("{}: {error:#}", subject.name()));
                    total_ms += mean_ms * count as f64;
                    left -= count;
                }
                Duration::from_secs_f64(total_ms / 1e3)
            });
        });
    }
}

criterion_group! {
    name = benches;
    config = Criterion::default().sample_size(10).measurement_time(Duration::from_secs(2));
    targets = ops
}
criterion_main!(benches);
