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
#[derive(Default)]
pub(crate) struct Choices(Lock<HashMap<(&'static str, Call), Chosen>>);

impl Choices {
    /// What was chosen for a call, or what `choose` finds.
    pub(crate) fn get(
        &self,
        op: &dyn Op,
        call: &Call,
        choose: impl FnOnce() -> Result<Chosen, Error>,
    ) -> Result<Chosen, Error> {
        let key = (op.name(), *call);
        if let Some(chosen) = self.0.lock().get(&key) {
            return Ok(chosen.clone());
        }
        // Not held meanwhile: compiling takes long.
        let chosen = choose()?;
        let mut all = self.0.lock();
        if all.len() >= MOST {
            all.clear();
        }
        all.insert(key, chosen.clone());
        Ok(chosen)
    }

    /// Forgets everything.
    pub(crate) fn clear(&self) {
        self.0.lock().clear();
    }
}
