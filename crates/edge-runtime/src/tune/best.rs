//! Which validation was the best so far, and whether a run should go on.

/// What a validation means for the run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// The best so far.
    Best,
    /// Not the best; the run goes on.
    Worse,
    /// Not the best, as all of the last ones that are allowed: the run should end.
    Stop,
}

/// The best validation so far.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Best {
    /// Validations without improvement behind which a run ends; `None`: any number.
    pub patience: Option<u64>,
    /// Its step and loss, nats.
    pub found: Option<(u64, f64)>,
    /// Validations since then that counted.
    pub since: u64,
}

impl Best {
    /// Before the first validation.
    pub fn new(patience: Option<u64>) -> Self {
        Self { patience, ..Self::default() }
    }

    /// Takes a validation into account. Where `counts` is false, one that is no improvement does
    /// not count towards an early end.
    pub fn judge(&mut self, step: u64, loss: f64, counts: bool) -> Verdict {
        // A loss that is no number is never an improvement.
        if loss.is_finite() && self.found.is_none_or(|(_, best)| loss < best) {
            (self.found, self.since) = (Some((step, loss)), 0);
            return Verdict::Best;
        }
        self.since += u64::from(counts);
        match self.patience {
            Some(patience) if counts && self.since >= patience => Verdict::Stop,
            _ => Verdict::Worse,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_run_ends_behind_so_many_validations_without_improvement() {
        let mut best = Best::new(Some(2));
        let losses = [3.0, 2.0, 2.5, f64::NAN];
        let verdicts: Vec<_> =
            (1..).zip(losses).map(|(i, loss)| best.judge(i, loss, true)).collect();
        assert_eq!(verdicts, [Verdict::Best, Verdict::Best, Verdict::Worse, Verdict::Stop]);
        assert_eq!((best.found, best.since), (Some((2, 2.0)), 2));
        // The same loss again is no improvement; a better one starts the count again.
        assert_eq!(best.judge(5, 1.0, true), Verdict::Best);
        assert_eq!(best.judge(6, 1.0, true), Verdict::Worse);
        let mut patient = Best::new(None);
        assert!((0..100).all(|i| patient.judge(i, f64::INFINITY, true) == Verdict::Worse));
        let mut early = Best::new(Some(1));
        early.judge(1, 2.0, false);
        assert_eq!(early.judge(2, 3.0, false), Verdict::Worse);
        assert_eq!(early.judge(3, 3.0, true), Verdict::Stop);
    }
}
