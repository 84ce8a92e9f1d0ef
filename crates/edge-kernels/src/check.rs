//! Whether a device's answer to a call is the reference's: what the throughput table, the
//! self-test and tuning ask before they believe a time.

use crate::op::{APPROXIMATE_NMSE, Access, Call, CaseBuffer, HostBuffer, Op, Tolerance, nmse};

/// What the reference leaves in each binding, given the contents before the call.
pub fn expected(op: &dyn Op, call: &Call, before: &[CaseBuffer]) -> Vec<Vec<u32>> {
    let mut words: Vec<Vec<u32>> = before.iter().map(CaseBuffer::words).collect();
    let bindings = op.bindings(call);
    let mut buffers: Vec<HostBuffer<'_>> = words
        .iter_mut()
        .zip(&bindings)
        .map(|(words, binding)| match binding.access {
            Access::Read => HostBuffer::Read(words),
            Access::ReadWrite => HostBuffer::ReadWrite(words),
        })
        .collect();
    op.reference(call, &mut buffers);
    words
}

/// Compares binding `name` after the call. Equal bits always pass, which covers what the op
/// leaves as it was, poison included; integers must be equal, floats within the tolerance.
///
/// # Errors
/// A sentence with the first element that differs, and how many do.
pub fn compare(
    name: &str,
    kind: &CaseBuffer,
    tolerance: &Tolerance,
    want: &[u32],
    got: &[u32],
) -> Result<(), String> {
    let exact = matches!(kind, CaseBuffer::U32(_));
    let equal = |want: u32, got: u32| {
        want == got || !exact && close(f32::from_bits(want), f32::from_bits(got), tolerance)
    };
    if want.len() != got.len() {
        let (got, want) = (got.len(), want.len());
        return Err(format!("{name} has {got} words on the device, {want} in the reference"));
    }
    let wrong: Vec<usize> = (0..want.len()).filter(|&i| !equal(want[i], got[i])).collect();
    let Some(&at) = wrong.first() else { return Ok(()) };
    let count = wrong.len();
    if exact {
        return Err(format!("{name}[{at}] is {}, not {} ({count} wrong)", got[at], want[at]));
    }
    Err(format!(
        "{name}[{at}] is {}, not {} ({count} of {} outside {:e} + {:e}·|want|)",
        f32::from_bits(got[at]),
        f32::from_bits(want[at]),
        want.len(),
        tolerance.abs,
        tolerance.rel
    ))
}

/// Compares floats of an approximate variant: only the error of the whole output is bounded.
///
/// # Errors
/// A sentence with the error, or the number of words where they differ.
pub fn compare_roughly(name: &str, want: &[u32], got: &[u32]) -> Result<(), String> {
    if want.len() != got.len() {
        let (got, want) = (got.len(), want.len());
        return Err(format!("{name} has {got} words on the device, {want} in the reference"));
    }
    // What the op leaves as it was may be poison.
    let poison = |want: u32, got: u32| want == got && f32::from_bits(want).is_nan();
    let pairs = want.iter().zip(got).filter(|(want, got)| !poison(**want, **got));
    let (want, got): (Vec<f32>, Vec<f32>) =
        pairs.map(|(want, got)| (f32::from_bits(*want), f32::from_bits(*got))).unzip();
    match nmse(&got, &want) {
        error if error <= APPROXIMATE_NMSE => Ok(()),
        error => Err(format!("{name}: NMSE {error:e}, at most {APPROXIMATE_NMSE:e}")),
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
    use crate::ops::norm::rms_norm_forward::RmsNormForward;
    use crate::util::seeded;

    const TOLERANCE: Tolerance = Tolerance { abs: 1e-6, rel: 1e-3, why: "a test" };

    fn floats(kind: &CaseBuffer, want: &[f32], got: &[f32]) -> Result<(), String> {
        let bits = |values: &[f32]| values.iter().map(|v| v.to_bits()).collect::<Vec<u32>>();
        compare("y", kind, &TOLERANCE, &bits(want), &bits(got))
    }

    #[test]
    fn differences_are_named() {
        let kind = CaseBuffer::Output(3);
        assert!(floats(&kind, &[1.0, 2.0, f32::NAN], &[1.0005, 2.0, f32::NAN]).is_ok());
        let error = floats(&kind, &[1.0, 2.0, 3.0], &[1.0, 2.1, 3.1]).expect_err("differs");
        assert!(error.starts_with("y[1] is 2.1, not 2 (2 of 3"), "{error}");
        assert!(floats(&kind, &[1.0], &[f32::NAN]).is_err());
        assert!(floats(&kind, &[f32::INFINITY], &[1.0]).is_err());
        assert!(floats(&kind, &[1.0], &[1.0, 1.0]).is_err());
    }

    #[test]
    fn approximate_answers_are_judged_as_a_whole() {
        let bits = |values: &[f32]| values.iter().map(|v| v.to_bits()).collect::<Vec<u32>>();
        let rough = |want: &[f32], got: &[f32]| compare_roughly("y", &bits(want), &bits(got));
        assert!(rough(&[1.0, 2.0, f32::NAN], &[1.01, 2.01, f32::NAN]).is_ok(), "poison stays");
        assert!(rough(&[1.0, 2.0], &[1.1, 2.0]).is_err());
        assert!(rough(&[1.0, 2.0], &[1.0, f32::NAN]).is_err());
        assert!(rough(&[1.0, 2.0], &[1.0]).is_err());
    }

    #[test]
    fn integers_are_exact() {
        let kind = CaseBuffer::U32(vec![0]);
        assert!(compare("ids", &kind, &TOLERANCE, &[7], &[7]).is_ok());
        assert!(compare("ids", &kind, &TOLERANCE, &[1_000_000], &[1_000_001]).is_err());
    }

    #[test]
    fn the_reference_writes_its_outputs() {
        for case in RmsNormForward.cases() {
            let before = RmsNormForward.buffers(&case.call, &mut seeded(1));
            let after = expected(&RmsNormForward, &case.call, &before);
            let y: Vec<f32> = after[2].iter().map(|bits| f32::from_bits(*bits)).collect();
            assert!(y.iter().all(|value| value.is_finite()));
            assert_eq!(after[0], before[0].words());
        }
    }
}
