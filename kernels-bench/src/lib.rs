//! Throughput of the registered kernels: which calls are timed ([`Subject`]), how an answer is
//! checked before it is timed ([`check`]), and how it is timed ([`runner`]).
//!
//! The table (`src/main.rs`) and the criterion benches (`benches/ops.rs`) loop over the same
//! subjects, and push the same [`edge_kernels::Dispatch`] that production pushes.

pub mod check;
pub mod row;
pub mod runner;

use edge_kernels::op::{Case, Op};
use edge_kernels::{Call, OPS};

/// A call that is timed.
pub struct Subject {
    /// The op.
    pub op: &'static dyn Op,
    /// Its case with the flag `bench`.
    pub case: Case,
}

impl Subject {
    /// All bench cases of all ops whose `op/format/shape` contains `filter`.
    pub fn all(filter: &str) -> Vec<Self> {
        let cases = OPS.iter().flat_map(|op| {
            let cases = op.cases().into_iter().filter(|case| case.bench);
            cases.map(move |case| Self { op: *op, case })
        });
        cases.filter(|subject| subject.name().contains(filter)).collect()
    }

    /// The call.
    pub fn call(&self) -> &Call {
        &self.case.call
    }

    /// `op/format/shape`: the key of a row, and the name of the criterion bench.
    pub fn name(&self) -> String {
        format!("{}/{}/{}", self.op.name(), self.call().format.name(), self.case.name)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashSet;

    #[test]
    fn every_op_has_a_bench_case() {
        for op in OPS {
            let timed = op.cases().iter().filter(|case| case.bench).count();
            assert!(timed > 0, "{}: flag a model-sized case with `Case::bench`", op.name());
        }
    }

    #[test]
    fn names_are_unique_and_filtered() {
        let all = Subject::all("");
        let names: HashSet<String> = all.iter().map(Subject::name).collect();
        assert_eq!(names.len(), all.len(), "two bench cases share op, format and name");
        let norms = Subject::all("rms_norm_forward");
        assert!(!norms.is_empty() && norms.iter().all(|s| s.op.name() == "rms_norm_forward"));
    }
}
