//! Allocations against all choices there are, and large ones against their bounds.

use edge_kernels::util::SeededRng;
use rand::{RngExt, SeedableRng};

use super::*;

/// Every choice, one after the other.
fn brute_force(problem: &Problem) -> Option<f64> {
    let solver = Solver::new(problem);
    let mut choice = vec![0; problem.layers.len()];
    let mut best: Option<f64> = None;
    loop {
        let sums = solver.sums(&choice);
        if solver.fits(sums) && best.is_none_or(|error| sums.error < error) {
            best = Some(sums.error);
        }
        let Some(layer) = (0..choice.len()).find(|&i| choice[i] + 1 < problem.layers[i].len())
        else {
            return best;
        };
        choice[..layer].fill(0);
        choice[layer] += 1;
    }
}

/// Random errors and costs; whole numbers, or reals, or errors that fall with the cost.
fn random(rng: &mut SeededRng, kind: u32) -> Problem {
    let layers = (0..rng.random_range(1..7))
        .map(|_| {
            let candidates = 0..rng.random_range(1..5);
            let candidate = |_| {
                let bits = [2.0, 3.0, 4.0, 8.0, 16.0][rng.random_range(0..5)];
                let (error, cost): (f64, f64) = match kind {
                    0 => (f64::from(rng.random_range(0..6)), f64::from(rng.random_range(0..6))),
                    1 => (rng.random(), rng.random_range(-1.0..1.0)),
                    _ => (rng.random::<f64>() * f64::powf(4.0, -bits) * 1e-3, bits * 1e6),
                };
                let sparsity = if rng.random::<bool>() { 0.5 } else { 0.0 };
                Candidate { error, cost, sparsity }
            };
            candidates.map(candidate).collect()
        })
        .collect::<Vec<Vec<Candidate>>>();
    let range = |value: fn(&Candidate) -> f64, least: f64, most: f64| {
        let lows = layers.iter().map(|l| l.iter().map(value).fold(f64::INFINITY, f64::min));
        let highs = layers.iter().map(|l| l.iter().map(value).fold(f64::NEG_INFINITY, f64::max));
        let (low, high): (f64, f64) = (lows.sum(), highs.sum());
        (low + least * (high - low), low + most * (high - low))
    };
    let (low, high) = range(|c| c.cost, -0.1, 1.1);
    let budget = low + rng.random::<f64>() * (high - low);
    let min_sparsity = rng.random::<bool>().then(|| {
        let (low, high) = range(|c| c.sparsity, 0.0, 1.1);
        low + rng.random::<f64>() * (high - low)
    });
    Problem { layers, budget, min_sparsity }
}

#[test]
#[cfg_attr(miri, ignore = "minutes of arithmetic")]
fn the_choice_is_the_best_of_all() {
    let mut rng = SeededRng::seed_from_u64(1);
    let (mut solved, mut refused) = (0, 0);
    for round in 0..3000 {
        let problem = random(&mut rng, round % 3);
        match (allocate(&problem), brute_force(&problem)) {
            (Ok(found), Some(error)) => {
                let scale = error.abs().max(1e-12);
                assert!(found.exact, "{problem:?}");
                assert!((found.error - error).abs() <= 1e-9 * scale, "{found:?} {error}");
                assert!(found.cost <= problem.budget + 1e-7 * problem.budget.abs().max(1.0));
                assert!(found.sparsity >= problem.min_sparsity.unwrap_or(0.0) - 1e-6);
                assert_eq!(Ok(found), allocate(&problem));
                solved += 1;
            }
            (Err(_), None) => refused += 1,
            (found, error) => panic!("{found:?} for {error:?}: {problem:?}"),
        }
    }
    assert!(solved > 500 && refused > 100, "{solved} {refused}");
}

#[test]
#[cfg_attr(miri, ignore = "minutes of arithmetic")]
fn what_is_impossible_says_what_is_possible() {
    let candidate = |error, cost, sparsity| Candidate { error, cost, sparsity };
    let layer = vec![candidate(1.0, 2.0, 0.0), candidate(0.5, 4.0, 0.0), candidate(2.0, 3.0, 0.5)];
    let problem =
        |budget, min_sparsity| Problem { layers: vec![layer.clone(); 4], budget, min_sparsity };
    let error = allocate(&problem(7.0, None));
    assert_eq!(error, Err(AllocateError::OverBudget { budget: 7.0, least: 8.0 }));
    // Two sparse layers at 3, two dense ones at 2.
    let error = allocate(&problem(9.0, Some(1.0)));
    assert_eq!(error, Err(AllocateError::OverBudget { budget: 9.0, least: 10.0 }));
    let error = allocate(&problem(99.0, Some(2.5)));
    assert_eq!(error, Err(AllocateError::TooSparse { min_sparsity: 2.5, most: 2.0 }));
    assert_eq!(allocate(&problem(10.0, Some(1.0))).map(|found| found.error), Ok(6.0));
    let mut wrong = problem(10.0, None);
    wrong.layers[2][1].error = f64::NAN;
    let error = allocate(&wrong);
    assert_eq!(error, Err(AllocateError::NotANumber { layer: 2, candidate: 1 }));
    wrong.layers[1].clear();
    assert_eq!(allocate(&wrong), Err(AllocateError::NoCandidate { layer: 1 }));
}

/// 224 projections with ten formats each, costs in bits: exact; costs that are all different: at
/// least near the bound.
#[test]
#[cfg_attr(miri, ignore = "minutes of arithmetic")]
fn large_problems_are_solved_well() {
    let mut rng = SeededRng::seed_from_u64(5);
    for exact_costs in [true, false] {
        let mut layer = || {
            let sensitivity = rng.random::<f64>().powi(4) + 1e-3;
            let formats = [2.0, 3.0, 4.0, 8.0, 16.0].into_iter();
            let both = formats.flat_map(|bits| [(bits, 0.0), (bits, 0.5)]);
            both.map(|(bits, sparsity): (f64, f64)| {
                let noise = if exact_costs { 0.0 } else { rng.random::<f64>() };
                let error = sensitivity * (f64::powf(4.0, -bits) + sparsity * 0.01);
                Candidate { error, cost: bits + noise, sparsity }
            })
            .collect()
        };
        let layers: Vec<Vec<Candidate>> = (0..224).map(|_| layer()).collect();
        let problem = Problem { layers, budget: 5.0 * 224.0, min_sparsity: Some(0.25 * 224.0) };
        let found = allocate(&problem).unwrap();
        assert!(found.exact || !exact_costs);
        assert!(found.error <= found.bound * 1.01 + 1e-12, "{} {}", found.error, found.bound);
        assert!(found.cost <= problem.budget + 1e-6 && found.sparsity >= 56.0 - 1e-6);
    }
}
