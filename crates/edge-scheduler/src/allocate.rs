//! Which candidate each layer gets, so that the error is least within a budget: a multiple-choice
//! knapsack (Kellerer, Pferschy, Pisinger, *Knapsack Problems*, 2004, chapter 11).
//!
//! A budget on the sum of costs may go with a floor under the sum of sparsities. Three steps:
//!
//! 1. The Lagrangian dual gives a lower bound on the error, and choices on the way to it.
//! 2. Swaps of one layer's candidate, or of two layers' at once, improve the best of them.
//! 3. Dynamic programming over choices that no other choice beats in cost, sparsity and error,
//!    without those that the bound rules out. Costs that take few values, such as bits, keep it
//!    small. Above [`MAX_STATES`] it gives up, and the result of step 2 stands, with its bound.
//!
//! The same problem always has the same answer.

use std::collections::BTreeMap;
use std::fmt;

/// States of the dynamic programming in all layers together; 8 bytes each.
pub const MAX_STATES: usize = 1_000_000;

/// Halvings of an interval of a multiplier.
const HALVINGS: usize = 60;

/// Most rounds of swaps of two layers' candidates.
const PAIR_ROUNDS: usize = 20;

/// One way to store a layer.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Candidate {
    /// What it adds to the error.
    pub error: f64,
    /// What it adds to the cost: bits times the layer's share of the weights, bytes, or ms.
    pub cost: f64,
    /// What it adds to the sparsity: at least 0; 0 where sparsity does not count.
    pub sparsity: f64,
}

/// What is to be decided.
#[derive(Clone, Debug, PartialEq)]
pub struct Problem {
    /// Candidates of each layer.
    pub layers: Vec<Vec<Candidate>>,
    /// Most that the costs may add up to.
    pub budget: f64,
    /// Least that the sparsities must add up to; `None`: anything.
    pub min_sparsity: Option<f64>,
}

/// What was decided.
#[derive(Clone, Debug, PartialEq)]
pub struct Allocation {
    /// The candidate of each layer.
    pub choice: Vec<usize>,
    /// Sum of errors.
    pub error: f64,
    /// Sum of costs.
    pub cost: f64,
    /// Sum of sparsities.
    pub sparsity: f64,
    /// No choice has a smaller error than this.
    pub bound: f64,
    /// Whether no choice is better than this one, up to rounding.
    pub exact: bool,
}

/// Why there is no allocation.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum AllocateError {
    /// A layer has no candidate.
    NoCandidate {
        /// The layer.
        layer: usize,
    },
    /// A number is NaN or infinite, or a sparsity is below 0.
    NotANumber {
        /// The layer.
        layer: usize,
        /// The candidate.
        candidate: usize,
    },
    /// Nothing is as cheap as the budget and as sparse as demanded.
    OverBudget {
        /// The budget.
        budget: f64,
        /// The least possible cost at the demanded sparsity.
        least: f64,
    },
    /// Nothing is as sparse.
    TooSparse {
        /// What was demanded.
        min_sparsity: f64,
        /// The most that is possible at any cost.
        most: f64,
    },
}

impl fmt::Display for AllocateError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NoCandidate { layer } => write!(f, "layer {layer} has no candidate"),
            Self::NotANumber { layer, candidate } => {
                write!(f, "candidate {candidate} of layer {layer} has an error that is no number")
            }
            Self::OverBudget { budget, least } => {
                write!(f, "the budget {budget} cannot be met: the least possible is {least}")
            }
            Self::TooSparse { min_sparsity, most } => {
                write!(f, "the sparsity {min_sparsity} cannot be met: the most possible is {most}")
            }
        }
    }
}

impl std::error::Error for AllocateError {}

/// Sums over a choice.
#[derive(Clone, Copy, Default)]
struct Sums {
    error: f64,
    cost: f64,
    sparsity: f64,
}

impl Sums {
    fn plus(self, candidate: &Candidate) -> Self {
        Self {
            error: self.error + candidate.error,
            cost: self.cost + candidate.cost,
            sparsity: self.sparsity + candidate.sparsity,
        }
    }

    fn minus(self, candidate: &Candidate) -> Self {
        Self {
            error: self.error - candidate.error,
            cost: self.cost - candidate.cost,
            sparsity: self.sparsity - candidate.sparsity,
        }
    }
}

/// Multipliers of the two constraints.
#[derive(Clone, Copy, Default)]
struct Multipliers {
    cost: f64,
    sparsity: f64,
}

/// Decides.
///
/// # Errors
/// Nothing fits, and then it says the least that is possible; or a number is not finite.
pub fn allocate(problem: &Problem) -> Result<Allocation, AllocateError> {
    check(problem)?;
    let start = feasible(problem)?;
    let solver = Solver::new(problem);
    let mut best = start;
    let multipliers = solver.dual(&mut best);
    solver.improve(&mut best);
    let bound = solver.bound(multipliers);
    let exact = solver.exact(multipliers, &mut best);
    let sums = solver.sums(&best);
    Ok(Allocation {
        error: sums.error,
        cost: sums.cost,
        sparsity: sums.sparsity,
        bound: if exact { sums.error } else { bound.min(sums.error) },
        exact,
        choice: best,
    })
}

fn check(problem: &Problem) -> Result<(), AllocateError> {
    for (layer, candidates) in problem.layers.iter().enumerate() {
        if candidates.is_empty() {
            return Err(AllocateError::NoCandidate { layer });
        }
        for (candidate, c) in candidates.iter().enumerate() {
            let finite = c.error.is_finite() && c.cost.is_finite() && c.sparsity.is_finite();
            if !finite || c.sparsity < 0.0 {
                return Err(AllocateError::NotANumber { layer, candidate });
            }
        }
    }
    Ok(())
}

/// The cheapest choice that is sparse enough, where it is within the budget.
fn feasible(problem: &Problem) -> Result<Vec<usize>, AllocateError> {
    let arg_min = |value: fn(&Candidate) -> f64| -> Vec<usize> {
        let first = |layer: &Vec<Candidate>| {
            let mut best = 0;
            for (index, candidate) in layer.iter().enumerate() {
                if value(candidate) < value(&layer[best]) {
                    best = index;
                }
            }
            best
        };
        problem.layers.iter().map(first).collect()
    };
    let solver = Solver::new(problem);
    let cheapest = arg_min(|c| c.cost);
    let choice = match problem.min_sparsity {
        Some(min_sparsity) if !solver.sparse_enough(solver.sums(&cheapest)) => {
            let most = solver.sums(&arg_min(|c| -c.sparsity));
            if !solver.sparse_enough(most) {
                return Err(AllocateError::TooSparse { min_sparsity, most: most.sparsity });
            }
            let turned =
                |c: &Candidate| Candidate { error: c.cost, cost: -c.sparsity, sparsity: 0.0 };
            let layers = problem.layers.iter();
            let least_cost = Problem {
                layers: layers.map(|layer| layer.iter().map(turned).collect()).collect(),
                budget: -min_sparsity,
                min_sparsity: None,
            };
            allocate(&least_cost)?.choice
        }
        _ => cheapest,
    };
    let sums = solver.sums(&choice);
    match solver.fits(sums) {
        true => Ok(choice),
        false => Err(AllocateError::OverBudget { budget: problem.budget, least: sums.cost }),
    }
}

struct Solver<'a> {
    layers: &'a [Vec<Candidate>],
    /// With a margin for rounding of sums.
    budget: f64,
    /// With a margin for rounding of sums.
    min_sparsity: f64,
}

impl<'a> Solver<'a> {
    fn new(problem: &'a Problem) -> Self {
        let scale = |value: fn(&Candidate) -> f64| -> f64 {
            let largest =
                |layer: &Vec<Candidate>| layer.iter().map(|c| value(c).abs()).fold(0.0, f64::max);
            1e-9 * problem.layers.iter().map(largest).sum::<f64>()
        };
        Self {
            layers: &problem.layers,
            budget: problem.budget + scale(|c| c.cost),
            min_sparsity: problem
                .min_sparsity
                .map_or(f64::NEG_INFINITY, |least| least - scale(|c| c.sparsity)),
        }
    }

    fn sums(&self, choice: &[usize]) -> Sums {
        let pairs = self.layers.iter().zip(choice);
        pairs.fold(Sums::default(), |sums, (layer, &index)| sums.plus(&layer[index]))
    }

    fn sparse_enough(&self, sums: Sums) -> bool {
        sums.sparsity >= self.min_sparsity
    }

    fn fits(&self, sums: Sums) -> bool {
        sums.cost <= self.budget && self.sparse_enough(sums)
    }

    fn constrains_sparsity(&self) -> bool {
        self.min_sparsity > 0.0
    }

    /// The least penalised error of a layer, and which candidate has it.
    fn relaxed(layer: &[Candidate], multipliers: Multipliers) -> (f64, usize) {
        let mut best = (f64::INFINITY, 0);
        for (index, c) in layer.iter().enumerate() {
            let value = c.error + multipliers.cost * c.cost - multipliers.sparsity * c.sparsity;
            if value < best.0 {
                best = (value, index);
            }
        }
        best
    }

    /// What the multipliers say of the whole constraints; added to the penalised errors.
    fn constant(&self, multipliers: Multipliers) -> f64 {
        let sparsity = match self.constrains_sparsity() {
            true => multipliers.sparsity * self.min_sparsity,
            false => 0.0,
        };
        sparsity - multipliers.cost * self.budget
    }

    /// The value of the dual: a lower bound on the error.
    fn bound(&self, multipliers: Multipliers) -> f64 {
        let least = self.layers.iter().map(|layer| Self::relaxed(layer, multipliers).0);
        least.sum::<f64>() + self.constant(multipliers)
    }

    /// Tries the choice of some multipliers; returns its sums.
    fn try_choice(&self, multipliers: Multipliers, best: &mut Vec<usize>) -> Sums {
        let choice = self.layers.iter().map(|layer| Self::relaxed(layer, multipliers).1);
        let choice: Vec<usize> = choice.collect();
        let sums = self.sums(&choice);
        if self.fits(sums) && sums.error < self.sums(best).error {
            *best = choice;
        }
        sums
    }

    /// Multipliers near the largest bound; `best` takes the best choice seen that fits.
    fn dual(&self, best: &mut Vec<usize>) -> Multipliers {
        let for_sparsity = |sparsity: f64, best: &mut Vec<usize>| {
            let at = |cost| Multipliers { cost, sparsity };
            let over =
                |cost, best: &mut Vec<usize>| self.try_choice(at(cost), best).cost > self.budget;
            at(bisect(|cost| over(cost, best)))
        };
        if !self.constrains_sparsity() {
            return for_sparsity(0.0, best);
        }
        let sparsity = bisect(|sparsity| {
            let multipliers = for_sparsity(sparsity, best);
            self.try_choice(multipliers, best).sparsity < self.min_sparsity
        });
        let found = for_sparsity(sparsity, best);
        let plain = for_sparsity(0.0, best);
        if self.bound(found) >= self.bound(plain) { found } else { plain }
    }

    /// Swaps candidates of one layer, then of two, as long as that lowers the error.
    fn improve(&self, best: &mut [usize]) {
        for _ in 0..PAIR_ROUNDS {
            while self.swap_one(best) {}
            if !self.swap_two(best) {
                return;
            }
        }
    }

    fn swap_one(&self, best: &mut [usize]) -> bool {
        let sums = self.sums(best);
        let mut found = (sums.error, 0, 0);
        for (layer, candidates) in self.layers.iter().enumerate() {
            let rest = sums.minus(&candidates[best[layer]]);
            for (index, candidate) in candidates.iter().enumerate() {
                let sums = rest.plus(candidate);
                if index != best[layer] && self.fits(sums) && sums.error < found.0 {
                    found = (sums.error, layer, index);
                }
            }
        }
        self.take(best, &[(found.1, found.2)])
    }

    fn swap_two(&self, best: &mut [usize]) -> bool {
        let sums = self.sums(best);
        let mut found = (sums.error, [(0, best.first().copied().unwrap_or(0)); 2]);
        for (i, first) in self.layers.iter().enumerate() {
            for (j, second) in self.layers.iter().enumerate().skip(i + 1) {
                let rest = sums.minus(&first[best[i]]).minus(&second[best[j]]);
                for (a, candidate) in first.iter().enumerate() {
                    let part = rest.plus(candidate);
                    for (b, candidate) in second.iter().enumerate() {
                        let sums = part.plus(candidate);
                        if self.fits(sums) && sums.error < found.0 {
                            found = (sums.error, [(i, a), (j, b)]);
                        }
                    }
                }
            }
        }
        self.take(best, &found.1)
    }

    /// Makes swaps that lower the error also when it is summed again.
    fn take(&self, best: &mut [usize], swaps: &[(usize, usize)]) -> bool {
        let mut choice = best.to_vec();
        for &(layer, index) in swaps {
            if let Some(place) = choice.get_mut(layer) {
                *place = index;
            }
        }
        let better = self.sums(&choice).error < self.sums(best).error;
        let taken = better && self.fits(self.sums(&choice));
        if taken {
            best.copy_from_slice(&choice);
        }
        taken
    }

    /// Dynamic programming below the error of `best`, which takes what is better. False where
    /// there are too many states.
    fn exact(&self, multipliers: Multipliers, best: &mut Vec<usize>) -> bool {
        let rests = self.rests(multipliers);
        let limit = self.sums(best).error;
        let mut states = vec![Sums::default()];
        let mut steps: Vec<Vec<Step>> = Vec::with_capacity(self.layers.len());
        let mut count = 0;
        for (layer, candidates) in self.layers.iter().enumerate() {
            let rest = &rests[layer + 1];
            let mut next = Vec::new();
            for (from, state) in states.iter().enumerate() {
                for (choice, candidate) in candidates.iter().enumerate() {
                    let sums = state.plus(candidate);
                    if rest.allows(self, sums) && rest.bound(self, multipliers, sums) < limit {
                        next.push((sums, Step { from: from as u32, choice: choice as u32 }));
                    }
                }
                if next.len() > MAX_STATES {
                    return false;
                }
            }
            let kept = self.undominated(next);
            count += kept.len();
            if count > MAX_STATES {
                return false;
            }
            let (sums, back) = kept.into_iter().unzip();
            states = sums;
            steps.push(back);
        }
        let mut least: Option<usize> = None;
        for (index, sums) in states.iter().enumerate() {
            if self.fits(*sums) && least.is_none_or(|at| sums.error < states[at].error) {
                least = Some(index);
            }
        }
        if let Some(mut at) = least {
            let mut choice = vec![0; self.layers.len()];
            for (layer, back) in steps.iter().enumerate().rev() {
                choice[layer] = back[at].choice as usize;
                at = back[at].from as usize;
            }
            if self.fits(self.sums(&choice)) && self.sums(&choice).error < limit {
                *best = choice;
            }
        }
        true
    }

    /// What the layers from each one on can do at best.
    fn rests(&self, multipliers: Multipliers) -> Vec<Rest> {
        let mut rests = vec![Rest::default()];
        for layer in self.layers.iter().rev() {
            let last = rests[rests.len() - 1];
            let least = |value: fn(&Candidate) -> f64| {
                layer.iter().map(value).fold(f64::INFINITY, f64::min)
            };
            rests.push(Rest {
                penalised: last.penalised + Self::relaxed(layer, multipliers).0,
                error: last.error + least(|c| c.error),
                cost: last.cost + least(|c| c.cost),
                sparsity: last.sparsity - least(|c| -c.sparsity),
            });
        }
        rests.reverse();
        rests
    }

    /// Without the states that another one beats in all respects.
    fn undominated(&self, mut states: Vec<(Sums, Step)>) -> Vec<(Sums, Step)> {
        states.sort_by(|(a, _), (b, _)| {
            let by_error = a.cost.total_cmp(&b.cost).then(a.error.total_cmp(&b.error));
            by_error.then(b.sparsity.total_cmp(&a.sparsity))
        });
        // By sparsity, whose bits are ordered as its values are: at least 0.
        let mut stairs: BTreeMap<u64, f64> = BTreeMap::new();
        states.retain(|(sums, _)| {
            let key = if self.constrains_sparsity() { sums.sparsity.to_bits() } else { 0 };
            if stairs.range(key..).next().is_some_and(|(_, error)| *error <= sums.error) {
                return false;
            }
            while let Some((&below, &error)) = stairs.range(..=key).next_back() {
                if error < sums.error {
                    break;
                }
                stairs.remove(&below);
            }
            stairs.insert(key, sums.error);
            true
        });
        states
    }
}

/// How a state was reached.
#[derive(Clone, Copy)]
struct Step {
    from: u32,
    choice: u32,
}

/// Bounds on what some last layers add.
#[derive(Clone, Copy, Default)]
struct Rest {
    penalised: f64,
    error: f64,
    cost: f64,
    sparsity: f64,
}

impl Rest {
    fn allows(&self, solver: &Solver<'_>, sums: Sums) -> bool {
        // The sums may differ from those in another order by rounding: let too many through.
        let (cost, sparsity) = (sums.cost + self.cost, sums.sparsity + self.sparsity);
        let slack = 1e-12 * (sums.cost.abs() + self.cost.abs());
        cost <= solver.budget + slack && sparsity >= solver.min_sparsity - 1e-12 * sparsity.abs()
    }

    fn bound(&self, solver: &Solver<'_>, multipliers: Multipliers, sums: Sums) -> f64 {
        let spent = multipliers.cost * sums.cost - multipliers.sparsity * sums.sparsity;
        let dual = sums.error + spent + self.penalised + solver.constant(multipliers);
        // Far from the optimum the dual cancels large numbers.
        let noise = 1e-12 * (spent.abs() + self.penalised.abs());
        (dual - noise).max(sums.error + self.error)
    }
}

/// The multiplier from which on `violated` is false, which it is for all that are large enough, or
/// the largest that was tried.
fn bisect(mut violated: impl FnMut(f64) -> bool) -> f64 {
    if !violated(0.0) {
        return 0.0;
    }
    // Errors and costs have any unit: find the magnitude first.
    let (mut low, mut high) = (0.0, 1e-12);
    while violated(high) && high < 1e30 {
        low = high;
        high *= 8.0;
    }
    for _ in 0..HALVINGS {
        let middle = low + (high - low) / 2.0;
        if violated(middle) { low = middle } else { high = middle }
    }
    high
}

#[cfg(test)]
mod tests;
