//! Whether a device's answer is the reference's.

use anyhow::{Result, bail};
use edge_kernels::op::{Access, CaseBuffer, HostBuffer, Tolerance};

use crate::Subject;

/// What the reference leaves in each binding, given the words before the call.
pub fn expected(subject: &Subject, before: &[CaseBuffer]) -> Vec<Vec<u32>> {
    let mut words: Vec<Vec<u32>> = before.iter().map(CaseBuffer::words).collect();
    let bindings = subject.op.bindings(&subject.call);
    let mut buffers: Vec<HostBuffer<'_>> = words
        .iter_mut()
        .zip(&bindings)
        .map(|(words, binding)| match binding.access {
            Access::Read => HostBuffer::Read(words),
            Access::ReadWrite => HostBuffer::ReadWrite(words),
        })
        .collect();
    subject.op.reference(&subject.call, &mut buffers);
    words
}

/// Compares one binding after the call.
///
/// # Errors
/// Names the first element that differs by more than the op's tolerance, and how many do.
pub fn compare(
    name: &str,
    kind: &CaseBuffer,
    tolerance: &Tolerance,
    want: &[u32],
    got: &[u32],
) -> Result<()> {
    let exact = matches!(kind, CaseBuffer::U32(_));
    let equal = |want: u32, got: u32| {
        // Equal bits also cover what the op leaves as it was, poison included.
        want == got || !exact && close(f32::from_bits(want), f32::from_bits(got), tolerance)
    };
    if want.len() != got.len() {
        bail!("{name} has {} words on the device, {} in the reference", got.len(), want.len());
    }
    let wrong = want.iter().zip(got).filter(|(want, got)| !equal(**want, **got)).count();
    let first = want.iter().zip(got).position(|(want, got)| !equal(*want, *got));
    match first {
        None => Ok(()),
        Some(index) if exact => {
            bail!("{name}[{index}] is {}, not {} ({wrong} wrong)", got[index], want[index])
        }
        Some(index) => bail!(
            "{name}[{index}] is {}, not {} ({wrong} of {} outside {:e} + {:e}·|want|)",
            f32::from_bits(got[index]),
            f32::from_bits(want[index]),
            want.len(),
            tolerance.abs,
            tolerance.rel
        ),
    }
}

fn close(want: f32, got: f32, tolerance: &Tolerance) -> bool {
    want.is_nan() && got.is_nan()
        || want == got
        || want.is_finite() && (got - want).abs() <= tolerance.abs + tolerance.rel * want.abs()
}

#[cfg(test)]
mod tests {
    use super::*;

    const TOLERANCE: Tolerance = Tolerance { abs: 1e-6, rel: 1e-3, why: "a test" };

    fn floats(kind: &CaseBuffer, want: &[f32], got: &[f32]) -> Result<()> {
        let bits = |values: &[f32]| values.iter().map(|v| v.to_bits()).collect::<Vec<u32>>();
        compare("y", kind, &TOLERANCE, &bits(want), &bits(got))
    }

    #[test]
    fn differences_are_named() {
        let kind = CaseBuffer::Output(3);
        assert!(floats(&kind, &[1.0, 2.0, f32::NAN], &[1.0005, 2.0, f32::NAN]).is_ok());
        let error = floats(&kind, &[1.0, 2.0, 3.0], &[1.0, 2.1, 3.1]).expect_err("differs");
        assert!(error.to_string().starts_with("y[1] is 2.1, not 2 (2 of 3"), "{error}");
        assert!(floats(&kind, &[1.0], &[f32::NAN]).is_err());
        assert!(floats(&kind, &[f32::INFINITY], &[1.0]).is_err());
        assert!(floats(&kind, &[1.0], &[1.0, 1.0]).is_err());
    }

    #[test]
    fn integers_are_exact() {
        let kind = CaseBuffer::U32(vec![0]);
        assert!(compare("ids", &kind, &TOLERANCE, &[7], &[7]).is_ok());
        assert!(compare("ids", &kind, &TOLERANCE, &[1_000_000], &[1_000_001]).is_err());
    }

    #[test]
    fn the_reference_writes_its_outputs() {
        for subject in Subject::own().iter().filter(|one| one.op.name() == "rms_norm_forward") {
            let before = crate::runner::contents(subject);
            let after = expected(subject, &before);
            let y: Vec<f32> = after[2].iter().map(|bits| f32::from_bits(*bits)).collect();
            assert!(y.iter().all(|value| value.is_finite()));
            assert_eq!(after[0], before[0].words());
        }
    }
}
