//! A quick test that the kernels of a device answer right. What a driver makes wrong is replaced
//! by another variant of the op, and remembered with what was measured of the device
//! ([`crate::autotune`]), so that every later run leaves it alone.

use std::time::{Duration, Instant};

use anyhow::Result;
use edge_gpu::{Device, Error, Trial};
use edge_kernels::op::Case;
use edge_kernels::tuning::Wrong;
use edge_kernels::{OPS, Op};
use serde::Serialize;

/// What a self-test found.
#[derive(Clone, Debug, Default, Serialize)]
pub struct SelfTest {
    /// Kernels whose preferred variant answered right.
    pub right: usize,
    /// Kernels that another variant stands in for, a sentence each.
    pub replaced: Vec<String>,
    /// Kernels that were left out because time was up.
    pub left_out: usize,
    /// Kernels of which no variant is right, a sentence each.
    pub wrong: Vec<String>,
    /// How long it took, milliseconds.
    pub elapsed_ms: f64,
    /// The kernels that were tested, by the variant that is preferred.
    #[serde(skip)]
    pub tested: Vec<Wrong>,
    /// The variants that answered wrongly, or that the driver refused.
    #[serde(skip)]
    pub distrusted: Vec<Wrong>,
}

/// Runs the kernels that production would run against their references: the largest case of every
/// op, and then, until `most` is over, the largest of every other weight format and of every other
/// kernel that the device prefers. Behind a wrong answer the op's other variants are tried in the
/// order of the device's preference.
///
/// The device should have been opened without what an earlier test found, which is tested again.
///
/// # Errors
/// The device fails.
pub fn self_test(device: &Device, most: Duration) -> Result<SelfTest> {
    let start = Instant::now();
    let mut found = SelfTest::default();
    let (first, more) = cases(device);
    let always = first.len();
    for (index, (op, case)) in first.into_iter().chain(more).enumerate() {
        if index >= always && start.elapsed() > most {
            found.left_out += 1;
        } else {
            one(device, op, &case, &mut found)?;
        }
    }
    found.elapsed_ms = start.elapsed().as_secs_f64() * 1e3;
    Ok(found)
}

fn one(device: &Device, op: &'static dyn Op, case: &Case, found: &mut SelfTest) -> Result<()> {
    let trial = Trial::new(device, op, case.call)?;
    // Approximate ones run where they were measured alone, and the `cpu` device has one kernel.
    let variants: Vec<_> =
        trial.variants().into_iter().filter(|variant| !variant.approximate).collect();
    let tries: Vec<_> = match variants.len() {
        0 => vec![None],
        _ => variants.iter().map(Some).collect(),
    };
    let mut sentences = Vec::new();
    for variant in tries {
        let name = variant.map_or("chosen", |variant| variant.name);
        let kernel = Wrong::new(op, &case.call, name);
        if sentences.is_empty() {
            found.tested.push(kernel.clone());
        }
        match trial.check(variant) {
            Ok(()) if sentences.is_empty() => {
                found.right += 1;
                return Ok(());
            }
            Ok(()) => {
                let errors = sentences.join("; ");
                found.replaced.push(format!("case {}: {errors}: '{name}' is used", case.name));
                return Ok(());
            }
            Err(error @ (Error::WrongAnswer { .. } | Error::Shader { .. })) => {
                sentences.push(error.to_string());
                found.distrusted.push(kernel);
            }
            Err(error) => return Err(error.into()),
        }
    }
    found.wrong.push(format!("case {}: {}", case.name, sentences.join("; ")));
    Ok(())
}

type Cases = Vec<(&'static dyn Op, Case)>;

/// The largest case of each op, and the largest of each of its other formats and of the kernels
/// that the device prefers.
fn cases(device: &Device) -> (Cases, Cases) {
    let (mut first, mut more): (Cases, Cases) = Default::default();
    for op in OPS {
        let mut cases = op.cases();
        cases.retain(|case| !case.bench);
        cases.sort_by_key(|case| std::cmp::Reverse(op.work(&case.call).bytes));
        let mut kernels = Vec::new();
        for case in cases {
            let preferred = device.variants(*op, &case.call).first().map(|variant| variant.name);
            let kernel = (case.call.format.name(), preferred);
            if kernels.contains(&kernel) {
                continue;
            }
            let list = if kernels.is_empty() { &mut first } else { &mut more };
            kernels.push(kernel);
            list.push((*op, case));
        }
    }
    (first, more)
}

#[cfg(test)]
mod tests {
    use super::*;
    use edge_gpu::Options;

    fn cpu(faults: Option<&str>) -> Device {
        let faults = faults.map(|text| std::sync::Arc::new(text.parse().unwrap()));
        Device::open("cpu", &Options { faults, ..Options::default() }).unwrap()
    }

    #[test]
    fn it_passes_on_the_host_and_covers_every_op() {
        let (first, _) = cases(&cpu(None));
        assert_eq!(first.len(), OPS.len());
        let found = self_test(&cpu(None), Duration::ZERO).unwrap();
        assert_eq!((found.wrong.len(), found.replaced.len()), (0, 0));
        assert_eq!((found.right, found.tested.len()), (OPS.len(), OPS.len()));
        assert!(found.left_out > 0);
    }

    #[test]
    fn a_kernel_without_another_variant_stays_wrong() {
        let found = self_test(&cpu(Some("wrong@swiglu_forward:1")), Duration::ZERO).unwrap();
        assert_eq!((found.right, found.wrong.len()), (OPS.len() - 1, 1));
        assert!(found.wrong[0].contains("swiglu_forward"), "{:?}", found.wrong);
    }
}
