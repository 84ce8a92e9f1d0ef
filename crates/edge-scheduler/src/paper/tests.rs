//! What has to hold for any device and any options, and where the figures lie.

use super::*;
use crate::profiles::Sourced;

fn paper() -> &'static DeviceProfile {
    DeviceProfile::find("paper").expect("a profile of the paper")
}

/// Options from one end of what makes sense to the other.
fn options() -> impl Iterator<Item = StudyOptions> {
    let numbers = [
        (1, 1, 1, 0.0),
        (1, 512, 4, 0.5),
        (6, 128, 5, 0.9),
        (16, 512, 4, 0.5),
        (2, 4096, 32, 1.0),
        (4, 2048, 3, 0.1),
    ];
    numbers.into_iter().map(|(batch, seq_len, windows, sparsity)| StudyOptions {
        batch,
        seq_len,
        windows,
        sparsity,
        ..StudyOptions::default()
    })
}

/// All times of a study, in a fixed order.
fn times_s(study: &Study) -> Vec<f64> {
    let of_case = |case: &StudyCase| {
        let stages = case.stages.map(|stage| stage.step_s);
        [&[case.vanilla_s, case.vanilla_scheduled_s], &stages[..]].concat()
    };
    study.cases.iter().flat_map(of_case).collect()
}

#[test]
fn no_feature_makes_a_step_slower_and_factors_multiply_to_the_ratio() {
    for profile in DeviceProfile::ALL {
        for options in options() {
            for case in study(profile, options).cases {
                for stage in case.stages {
                    assert!(stage.step_s.is_finite() && stage.step_s > 0.0);
                    let name = profile.name;
                    assert!(stage.factor >= 1.0 - 1e-12, "{name}: {options:?} {stage:?}");
                }
                assert!(case.vanilla_scheduled_s <= case.vanilla_s);
                let product: f64 = case.stages.iter().map(|stage| stage.factor).product();
                assert!((product / case.ratio() - 1.0).abs() < 1e-12);
                assert!((case.stages[4].ratio / case.ratio() - 1.0).abs() < 1e-12);
                assert!((case.ratios[2] / case.ratio() - 1.0).abs() < 1e-12);
                let shares: f64 = case.stages.iter().map(|stage| case.share(stage)).sum();
                assert!((shares - 1.0).abs() < 1e-9, "{shares}");
            }
        }
    }
}

#[test]
fn weights_on_ssd_are_read_once_for_several_sequences() {
    // Little DRAM, and nothing else that takes time: several at a time. All in DRAM: one.
    let mut profile = *paper();
    profile.memory_bytes_per_s.value = 1e30;
    profile.flops_f16.value = 1e30;
    let options = StudyOptions { seq_len: 32, ..StudyOptions::default() };
    profile.memory_bytes.value = paper().memory_bytes.value / 8.0;
    assert!(study(&profile, options).cases.iter().all(|case| case.group > 1));
    profile.memory_bytes.value = paper().memory_bytes.value * 8.0;
    assert!(study(&profile, options).cases.iter().all(|case| case.group == 1));
    // The paper's own array is bound by computing, where the order changes nothing.
    let study = study(paper(), StudyOptions::default());
    assert!(study.cases.iter().all(|case| case.group == 1));
}

#[test]
fn more_of_anything_is_never_slower() {
    type Field = fn(&mut DeviceProfile) -> &mut Sourced;
    let fields: [Field; 5] = [
        |profile| &mut profile.memory_bytes_per_s,
        |profile| &mut profile.storage_bytes_per_s,
        |profile| &mut profile.memory_bytes,
        |profile| &mut profile.sram_bytes,
        |profile| &mut profile.flops_f16,
    ];
    for options in options() {
        let before = times_s(&study(paper(), options));
        for (index, field) in fields.into_iter().enumerate() {
            for factor in [1.01, 1000.0] {
                let mut better = *paper();
                field(&mut better).value *= factor;
                let after = times_s(&study(&better, options));
                for (before_s, after_s) in before.iter().zip(after) {
                    assert!(after_s <= before_s * (1.0 + 1e-12), "{index} {factor} {options:?}");
                }
            }
        }
    }
}

#[test]
fn fewer_bits_are_never_more_bytes_nor_slower() {
    for options in options() {
        let simulator = Simulator::new(paper(), options);
        for block in 0..LLAMA_7B.num_blocks {
            let bytes = [8, 7, 6, 5, 4, 3, 2, 1].map(|bits| simulator.bytes_of(bits, block));
            assert!(bytes.is_sorted_by(|more, fewer| fewer <= more), "{bytes:?}");
        }
        for cases in study(paper(), options).cases.chunks(3) {
            assert!(cases.is_sorted_by(|more, fewer| fewer.step_s() <= more.step_s() + 1e-12));
        }
    }
}

#[test]
fn without_transfers_the_ratio_is_that_of_operations() {
    let mut profile = *paper();
    profile.memory_bytes_per_s.value = 1e30;
    profile.storage_bytes_per_s.value = 1e30;
    // Operations a token: projections, attention, head; adapters have 0.625 M values a block.
    let (linear, attention, head) =
        (2.0 * 202_375_168.0, 4.0 * 512.0 * 4096.0, 2.0 * 131_072_000.0);
    let adapters = 2.0 * 624_640.0;
    let forward = |linear_scale: f64, scale: f64| linear_scale * linear + scale * attention;
    let pass = |blocks: f64, tuned: f64, linear_scale: f64, scale: f64| {
        let backward = linear_scale * linear + 2.0 * scale * (attention + adapters);
        let tuned = tuned * (backward + scale * adapters);
        blocks * forward(linear_scale, scale) + tuned + 2.0 * scale * head
    };
    let study = study(&profile, StudyOptions::default());
    let case = |compute, bits| {
        let found = study.cases.iter().find(|case| (case.compute, case.bits) == (compute, bits));
        found.expect("a case").stages
    };
    let close = |a: f64, b: f64| assert!((a / b - 1.0).abs() < 1e-9, "{a} {b}");
    let fixed = case(Compute::Fixed, 5);
    close(fixed[0].ratio, pass(32.0, 32.0, 1.0, 1.0) / pass(32.0, 8.0, 1.0, 1.0));
    close(fixed[4].ratio, pass(32.0, 32.0, 1.0, 1.0) / pass(20.0, 8.0, 1.0, 1.0));
    let scales = case(Compute::Scales, 3);
    close(scales[1].ratio, pass(32.0, 32.0, 1.0, 2.0) / pass(20.0, 8.0, 1.0, 2.0));
    // Steps of the four windows: block 2 is in all forward passes, 29 to 31 in the last only.
    let bits = (20.0 * 3.0 + 1.0 + 0.25 * 3.0 + 8.0 * 3.0 + 0.25 * 4.0) / 28.0;
    let [_, _, with_bits, sparse, _] = scales;
    let rest = pass(20.0, 8.0, 0.0, 2.0);
    let linear = pass(20.0, 8.0, 1.0, 2.0) - rest;
    close(with_bits.ratio, pass(32.0, 32.0, 1.0, 2.0) / (rest + linear * bits / 8.0));
    close(sparse.ratio, pass(32.0, 32.0, 1.0, 2.0) / (rest + linear * bits / 16.0));
}

#[test]
fn counts_of_zero_are_taken_as_one() {
    let none = StudyOptions { batch: 0, seq_len: 0, windows: 0, ..StudyOptions::default() };
    let one = StudyOptions { batch: 1, seq_len: 1, windows: 1, ..StudyOptions::default() };
    assert_eq!(study(paper(), none), study(paper(), one));
}

#[test]
fn the_page_has_all_cases_and_assumptions() {
    let study = study(paper(), StudyOptions::default());
    let page = study.to_string();
    for feature in Feature::ALL {
        assert_eq!(page.matches(&format!("| {:<24} |", feature.name())).count(), 2);
    }
    for word in ["5 bits", "4 bits", "3 bits", "2.92", "assumed", "25.60 GB/s", "1.00 MiB"] {
        assert!(page.contains(word), "{word}\n{page}");
    }
    assert_eq!(study.cases.len(), 6);
}
