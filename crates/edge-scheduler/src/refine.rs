//! Improves an allocation by an error that is measured with all layers compressed at once.
//!
//! Errors of single layers do not add up: layers make each other's errors larger or smaller. From
//! an allocation on, each round measures what single steps of single layers change, one candidate
//! cheaper or dearer with all other layers as they are; corrects the table of errors by that; and
//! lets the allocator choose by the corrected table, freely and among the measured steps only.
//! What is really better when measured is kept; if nothing is, exchanges of two steps are tried.

use crate::allocate::{Problem, allocate};

/// Exchanges that are measured after a round that found nothing.
const EXCHANGES: usize = 8;

/// Most that a measured step corrects what is beyond it.
const MOST_CORRECTION: f64 = 10.0;

/// An allocation with its measured error.
#[derive(Clone, Debug, PartialEq)]
pub struct Refined {
    /// The candidate of each layer.
    pub choice: Vec<usize>,
    /// The error that was measured of it.
    pub error: f64,
    /// The error that was measured of the allocation that it began with.
    pub first_error: f64,
    /// Measurements that it took.
    pub evaluations: usize,
}

/// A candidate beside the one that a layer has.
#[derive(Clone, Copy, Debug)]
struct Step {
    layer: usize,
    to: usize,
    /// Change of the error: predicted by the table, then measured.
    error: f64,
    /// Change of the cost.
    cost: f64,
}

struct Search<'a, E> {
    problem: &'a Problem,
    joint: &'a mut dyn FnMut(&[usize]) -> Result<f64, E>,
    evaluations: usize,
    found: Refined,
}

/// Starts from `start`, an allocation of `problem` within its bounds, and measures at most
/// `evaluations` allocations (the first one included) with `joint`, which gets the candidate of
/// each layer. The result is within the bounds too, and never worse than the start.
///
/// # Errors
/// Those of `joint`.
///
/// # Panics
/// When `start` has not a candidate for each layer.
pub fn refine<E>(
    problem: &Problem,
    start: &[usize],
    evaluations: usize,
    joint: &mut dyn FnMut(&[usize]) -> Result<f64, E>,
) -> Result<Refined, E> {
    assert_eq!(problem.layers.len(), start.len(), "a candidate for each layer");
    let error = joint(start)?;
    let found = Refined { choice: start.to_vec(), error, first_error: error, evaluations: 1 };
    let mut search = Search { problem, joint, evaluations, found };
    while search.round()? {}
    Ok(search.found)
}

impl<E> Search<'_, E> {
    fn left(&self) -> usize {
        self.evaluations.saturating_sub(self.found.evaluations)
    }

    /// Whether it found something better, so that another round may, too.
    fn round(&mut self) -> Result<bool, E> {
        let mut steps = self.steps();
        // What is found by the steps has to be measured as well.
        let most = self.left().saturating_sub(2);
        self.promising(&mut steps, most);
        if steps.is_empty() {
            return Ok(false);
        }
        let before = self.found.clone();
        for step in &mut steps {
            let mut choice = before.choice.clone();
            choice[step.layer] = step.to;
            step.error = self.measure(&choice)? - before.error;
        }
        for table in [self.corrected(&before.choice, &steps), self.near(&before.choice, &steps)] {
            let Ok(proposal) = allocate(&table) else { continue };
            self.propose(&proposal.choice, &before.choice)?;
        }
        if self.found.error < before.error {
            return Ok(true);
        }
        for choice in self.exchanges(&before.choice, &steps) {
            if self.propose(&choice, &before.choice)? {
                return Ok(true);
            }
        }
        Ok(false)
    }

    fn measure(&mut self, choice: &[usize]) -> Result<f64, E> {
        self.found.evaluations += 1;
        (self.joint)(choice)
    }

    /// Measures an allocation other than `known` and keeps it if it is better.
    fn propose(&mut self, choice: &[usize], known: &[usize]) -> Result<bool, E> {
        if choice == known || choice == self.found.choice || self.left() == 0 {
            return Ok(false);
        }
        let error = self.measure(choice)?;
        let better = error < self.found.error;
        if better {
            (self.found.error, self.found.choice) = (error, choice.to_vec());
        }
        Ok(better)
    }

    /// For each layer the next cheaper and the next dearer candidate of the same sparsity.
    fn steps(&self) -> Vec<Step> {
        let mut steps = Vec::new();
        for (layer, candidates) in self.problem.layers.iter().enumerate() {
            let own = candidates[self.found.choice[layer]];
            let alike = || {
                let all = candidates.iter().enumerate();
                all.filter(|(_, other)| other.sparsity == own.sparsity)
            };
            let cheaper = alike().filter(|(_, other)| other.cost < own.cost);
            let dearer = alike().filter(|(_, other)| other.cost > own.cost);
            let ends = [
                cheaper.max_by(|a, b| a.1.cost.total_cmp(&b.1.cost)),
                dearer.min_by(|a, b| a.1.cost.total_cmp(&b.1.cost)),
            ];
            steps.extend(ends.into_iter().flatten().map(|(to, other)| Step {
                layer,
                to,
                error: other.error - own.error,
                cost: other.cost - own.cost,
            }));
        }
        steps
    }

    /// Keeps the steps that promise most by the table, at most so many: half of them cheaper, with
    /// the least loss for what they save, half of them dearer, with the most gain for their cost.
    fn promising(&self, steps: &mut Vec<Step>, most: usize) {
        if steps.len() <= most {
            return;
        }
        let rate = |step: &Step| step.error / step.cost.abs();
        let (mut cheaper, mut dearer): (Vec<Step>, Vec<Step>) =
            steps.iter().partition(|step| step.cost < 0.0);
        for steps in [&mut cheaper, &mut dearer] {
            steps.sort_by(|a, b| rate(a).total_cmp(&rate(b)));
            steps.truncate(most / 2);
        }
        *steps = cheaper.into_iter().chain(dearer).collect();
    }

    /// The problem with errors relative to `choice`: measured ones for steps; beyond a step the
    /// table's differences, scaled by how the step was measured against how it was predicted.
    fn corrected(&self, choice: &[usize], steps: &[Step]) -> Problem {
        let mut problem = self.problem.clone();
        for (layer, candidates) in problem.layers.iter_mut().enumerate() {
            let (table, own) = (&self.problem.layers[layer], choice[layer]);
            for (index, candidate) in candidates.iter_mut().enumerate() {
                candidate.error = table[index].error - table[own].error;
                let side = candidate.cost - table[own].cost;
                let step = steps.iter().find(|s| s.layer == layer && s.cost * side > 0.0);
                let Some(step) = step.filter(|_| index != own) else { continue };
                let predicted = table[step.to].error - table[own].error;
                let factor = if predicted == 0.0 { 1.0 } else { step.error / predicted };
                let factor = factor.clamp(0.0, MOST_CORRECTION);
                let beyond = table[index].error - table[step.to].error;
                candidate.error = step.error + factor * beyond;
            }
        }
        problem
    }

    /// The problem with no candidates but those that were measured.
    fn near(&self, choice: &[usize], steps: &[Step]) -> Problem {
        let mut problem = self.corrected(choice, steps);
        for (layer, candidates) in problem.layers.iter_mut().enumerate() {
            let measured = |index| steps.iter().any(|s| (s.layer, s.to) == (layer, index));
            for (index, candidate) in candidates.iter_mut().enumerate() {
                if index != choice[layer] && !measured(index) {
                    // Kept in its place, so that indices stay those of the problem.
                    candidate.error = f64::MAX / 1e6;
                }
            }
        }
        problem
    }

    /// Pairs of a cheaper and a dearer step within the bounds, the most promising first.
    fn exchanges(&self, choice: &[usize], steps: &[Step]) -> Vec<Vec<usize>> {
        let cost: f64 = self.problem.layers.iter().zip(choice).map(|(c, &i)| c[i].cost).sum();
        let room = self.problem.budget - cost + 1e-9 * self.problem.budget.abs();
        let (cheaper, dearer): (Vec<Step>, Vec<Step>) =
            steps.iter().partition(|step| step.cost < 0.0);
        let mut pairs = Vec::new();
        for down in &cheaper {
            for up in dearer.iter().filter(|up| up.layer != down.layer) {
                if up.cost + down.cost <= room {
                    pairs.push((up.error + down.error, up, down));
                }
            }
        }
        pairs.sort_by(|a, b| a.0.total_cmp(&b.0));
        let exchanged = pairs.into_iter().take(EXCHANGES).map(|(_, up, down)| {
            let mut choice = choice.to_vec();
            (choice[up.layer], choice[down.layer]) = (up.to, down.to);
            choice
        });
        exchanged.collect()
    }
}

#[cfg(test)]
mod tests {
    use edge_kernels::util::SeededRng;
    use rand::{RngExt, SeedableRng};

    use super::*;
    use crate::allocate::Candidate;

    const LAYERS: usize = 12;

    /// Four widths; the table says that all layers but one are alike.
    fn problem() -> Problem {
        let layer = |layer: usize| {
            let scale = if layer == 7 { 30.0 } else { 1.0 };
            let candidate = |bits: f64| Candidate {
                error: scale * 0.25f64.powf(bits),
                cost: bits,
                sparsity: 0.0,
            };
            [2.0, 3.0, 4.0, 8.0].map(candidate).to_vec()
        };
        let layers = (0..LAYERS).map(layer).collect();
        Problem { layers, budget: 3.0 * LAYERS as f64, min_sparsity: None }
    }

    /// An error in which some layers count more than the table says, and neighbours interact.
    fn joint(choice: &[usize]) -> f64 {
        let bits = |layer: usize| [2, 3, 4, 8][choice[layer]];
        let own = |layer: usize| {
            let scale = if layer % 4 == 1 { 6.0 } else { 1.0 };
            scale * 0.25f64.powi(bits(layer))
        };
        let all: f64 = (0..LAYERS).map(own).sum();
        let pairs = (1..LAYERS).map(|layer| (own(layer) * own(layer - 1)).sqrt());
        all + pairs.sum::<f64>()
    }

    fn cost(problem: &Problem, choice: &[usize]) -> f64 {
        problem.layers.iter().zip(choice).map(|(layer, &index)| layer[index].cost).sum()
    }

    #[test]
    #[cfg_attr(miri, ignore = "minutes of arithmetic")]
    fn what_is_measured_wins_over_what_was_predicted() {
        let problem = problem();
        let start = allocate(&problem).unwrap().choice;
        let mut count = 0;
        let mut measured = |choice: &[usize]| {
            count += 1;
            Ok::<f64, ()>(joint(choice))
        };
        let refined = refine(&problem, &start, 400, &mut measured).unwrap();
        assert_eq!((refined.first_error, refined.error), (joint(&start), joint(&refined.choice)));
        assert_eq!(refined.evaluations, count);
        assert!(count <= 400);
        assert!(cost(&problem, &refined.choice) <= problem.budget + 1e-9);
        // The layers that count more than the table says have more bits than the table gave them.
        assert!(refined.error < 0.8 * refined.first_error, "{refined:?}");
        let mut rng = SeededRng::seed_from_u64(5);
        for _ in 0..2000 {
            let choice: Vec<usize> = (0..LAYERS).map(|_| rng.random_range(0..4)).collect();
            let fits = cost(&problem, &choice) <= problem.budget;
            assert!(!fits || joint(&choice) >= refined.error, "{choice:?}");
        }
    }

    #[test]
    fn few_measurements_are_enough_for_a_valid_answer() {
        let problem = problem();
        let start = allocate(&problem).unwrap().choice;
        for most in [1, 2, 3, 4, 7, 20] {
            let mut count = 0;
            let mut measured = |choice: &[usize]| {
                count += 1;
                Ok::<f64, ()>(joint(choice))
            };
            let refined = refine(&problem, &start, most, &mut measured).unwrap();
            assert!(count <= most && refined.evaluations == count, "{most}: {count}");
            assert!(refined.error <= refined.first_error);
            assert!(cost(&problem, &refined.choice) <= problem.budget + 1e-9);
        }
        let error = refine(&problem, &start, 9, &mut |_| Err::<f64, _>("device lost"));
        assert_eq!(error, Err("device lost"));
    }

    #[test]
    #[cfg_attr(miri, ignore = "minutes of arithmetic")]
    fn sparsity_stays_where_it_was_demanded() {
        let mut problem = problem();
        for candidates in &mut problem.layers {
            let sparse = candidates.clone().into_iter().map(|dense| Candidate {
                error: 3.0 * dense.error,
                sparsity: 0.5 / LAYERS as f64,
                ..dense
            });
            candidates.extend(sparse.collect::<Vec<_>>());
        }
        problem.min_sparsity = Some(0.25);
        let start = allocate(&problem).unwrap().choice;
        let with_sparse = |choice: &[usize]| {
            let dense: Vec<usize> = choice.iter().map(|index| index % 4).collect();
            let sparse = choice.iter().filter(|index| **index >= 4).count();
            Ok::<f64, ()>(joint(&dense) * (1.0 + sparse as f64))
        };
        let refined = refine(&problem, &start, 200, &mut { with_sparse }).unwrap();
        let sparse = refined.choice.iter().filter(|index| **index >= 4).count();
        assert!(2 * sparse >= LAYERS, "{refined:?}");
        assert!(refined.error < refined.first_error);
    }
}
