//! The variants that calls run, each looked for once: an op makes its list of variants anew
//! whenever it is asked, which costs more than the rest of recording a dispatch.

use std::collections::HashMap;
use std::sync::Arc;

use edge_kernels::op::Variant;
use edge_kernels::{Call, Op};

use crate::error::Error;
use crate::pipeline::Pipeline;
use crate::sync::Lock;

/// Most calls that are remembered. A model has some hundred; calls whose parameters change at each
/// step (a position, a learning rate) come on top, and are forgotten with the others when full.
const MOST: usize = 4096;

/// A variant with its pipeline.
#[derive(Clone)]
pub(crate) struct Chosen {
    pub(crate) variant: Arc<Variant>,
    pub(crate) pipeline: Arc<Pipeline>,
}

impl Chosen {
    pub(crate) fn new(variant: Variant, pipeline: Arc<Pipeline>) -> Self {
        Self { variant: Arc::new(variant), pipeline }
    }
}

/// What was chosen so far, by op and call: both decide all of a variant and of the bindings.
pub(crate) struct Choices<C = Chosen>(Lock<Known<C>>);

struct Known<C> {
    by_call: HashMap<(&'static str, Call), C>,
    /// How often everything was forgotten.
    generation: u64,
}

impl<C> Default for Choices<C> {
    fn default() -> Self {
        Self(Lock::new(Known { by_call: HashMap::new(), generation: 0 }))
    }
}

impl<C: Clone> Choices<C> {
    /// What was chosen for a call, or what `choose` finds.
    pub(crate) fn get(
        &self,
        op: &dyn Op,
        call: &Call,
        choose: impl FnOnce() -> Result<C, Error>,
    ) -> Result<C, Error> {
        let key = (op.name(), *call);
        let known = self.0.lock();
        if let Some(chosen) = known.by_call.get(&key) {
            return Ok(chosen.clone());
        }
        let generation = known.generation;
        // Not held meanwhile: compiling takes long.
        drop(known);
        let chosen = choose()?;
        let mut known = self.0.lock();
        // What was chosen before everything was forgotten must not outlive it.
        if known.generation == generation {
            if known.by_call.len() >= MOST {
                known.by_call.clear();
            }
            known.by_call.insert(key, chosen.clone());
        }
        Ok(chosen)
    }

    /// Forgets everything.
    pub(crate) fn clear(&self) {
        let mut known = self.0.lock();
        known.by_call.clear();
        known.generation += 1;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use edge_kernels::ops::matmul::{matmul_nn, matmul_nt};

    fn call(m: usize) -> Call {
        Call::new(&matmul_nt::Params::dense(m as u32, 8, 8))
    }

    /// What is remembered, or else `found`.
    fn get(choices: &Choices<usize>, m: usize, found: usize) -> usize {
        choices.get(&matmul_nt::MatmulNt, &call(m), || Ok(found)).expect("found")
    }

    #[test]
    fn a_choice_is_looked_for_once_an_op_and_call() {
        let choices = Choices::default();
        assert_eq!(get(&choices, 1, 10), 10);
        assert_eq!(get(&choices, 1, 11), 10);
        assert_eq!(get(&choices, 2, 12), 12);
        let other = choices.get(&matmul_nn::MatmulNn, &call(1), || Ok(13)).expect("found");
        assert_eq!(other, 13, "another op with the same call");
    }

    #[test]
    fn a_failure_is_not_remembered() {
        let choices = Choices::default();
        let op = &matmul_nt::MatmulNt;
        let failed = choices.get(op, &call(1), || Err(Error::NoVariant { op: op.name() }));
        assert!(failed.is_err());
        assert_eq!(get(&choices, 1, 14), 14);
    }

    #[test]
    fn no_more_than_the_most_are_remembered() {
        let choices = Choices::default();
        for m in 1..=MOST {
            assert_eq!(get(&choices, m, m), m);
        }
        assert_eq!(choices.0.lock().by_call.len(), MOST);
        assert_eq!(get(&choices, 1, 0), 1, "full, and nothing is forgotten yet");
        assert_eq!(get(&choices, MOST + 1, 7), 7);
        assert_eq!(choices.0.lock().by_call.len(), 1);
        assert_eq!(get(&choices, MOST + 1, 0), 7, "the newest is kept");
        assert_eq!(get(&choices, 1, 0), 0, "the others are looked for again");
    }

    #[test]
    fn what_was_looked_for_before_clearing_is_not_kept() {
        let choices = Choices::default();
        let stale = choices.get(&matmul_nt::MatmulNt, &call(1), || {
            choices.clear();
            Ok(1)
        });
        assert_eq!(stale.expect("found"), 1);
        assert_eq!(get(&choices, 1, 2), 2);
        choices.clear();
        assert_eq!(get(&choices, 1, 3), 3);
    }
}
